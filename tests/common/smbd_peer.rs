//! A scripted MS-SMBD peer: it says what a test tells it, right or wrong, and
//! checks that the side under test keeps the rules. No state machine of ours is behind it, so that
//! no mistake of ours can be on both sides.
#![allow(dead_code)] // Each test uses a part of it.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use smbdirect::fabric::{Access, ConnectOptions, ListenOptions};
use smbdirect::mem::MemSlice;
use smbdirect::peer::{Config, ConnectionId, EndReason, Endpoint, PeerEvent};
use smbdirect::proto::Params;
use smbdirect::smb::{self, Carrier, SmbError};
use smbdirect::wire::{
    status, BufferDescriptor, DataTransfer, NegotiateRequest, NegotiateResponse,
};

use crate::common::target::{self, address, client_kind};

/// How long anything may take before the test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a peer behaves when it is not told each message.
pub(crate) struct Script {
    /// CreditsRequested of its messages.
    pub(crate) credits_requested: u16,
    /// Credits that the other side shall hold; 0: it gets none but what a test sends.
    pub(crate) grants: u32,
    /// They are granted when this many are missing.
    pub(crate) grant_batch: u32,
    /// Payload of the segments of a message, bytes, over and over; none: as much as fits.
    pub(crate) segments: Vec<usize>,
    /// Messages with payload are filled up to MaxSendSize.
    pub(crate) has_junk: bool,
    /// Upper-layer messages are kept in [`SmbdPeer::held`] instead of being sent.
    pub(crate) holds: bool,
}

/// A message that came.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) header: DataTransfer,
    pub(crate) bytes: Vec<u8>,
    pub(crate) invalidated: Option<u32>,
}

impl Message {
    /// Nothing but a header.
    pub(crate) fn is_empty(&self) -> bool {
        self.header.data_length == 0
    }
}

/// The peer, and its one connection.
pub(crate) struct SmbdPeer {
    endpoint: Endpoint,
    id: ConnectionId,
    pub(crate) script: Script,
    /// Messages we may send, as far as we know.
    pub(crate) credits: u32,
    /// Messages the other side may send.
    pub(crate) granted: u32,
    /// The most CreditsRequested of any message.
    most_asked: u16,
    /// What the negotiation agreed on, as if we had asked.
    pub(crate) request: NegotiateRequest,
    pub(crate) response: NegotiateResponse,
    /// Headers of the Data Transfer messages that came.
    pub(crate) log: Vec<DataTransfer>,
    pub(crate) held: Vec<Vec<u8>>,
    raw: VecDeque<(Vec<u8>, Option<u32>)>,
    end: Option<EndReason>,
    /// The message that is being received: its bytes so far, how many are missing, its token.
    partial: (Vec<u8>, u32, Option<u32>),
    pdus: VecDeque<(Vec<u8>, Option<u32>)>,
}

/// What the suite asks for, unless a case says otherwise.
pub(crate) fn request() -> NegotiateRequest {
    NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    }
}

/// A message without payload.
pub(crate) fn empty(credits_granted: u16) -> DataTransfer {
    DataTransfer {
        credits_requested: 10,
        credits_granted,
        ..DataTransfer::default()
    }
}

/// The header in front of `data_length` bytes.
pub(crate) fn data(credits_granted: u16, data_length: u32, remaining: u32) -> DataTransfer {
    DataTransfer {
        data_offset: if data_length > 0 { 24 } else { 0 },
        data_length,
        remaining_data_length: remaining,
        ..empty(credits_granted)
    }
}

/// The suite's checker for a negotiation that has to succeed.
pub(crate) fn check_success(request: &NegotiateRequest, response: &NegotiateResponse) {
    let versions = (
        response.min_version,
        response.max_version,
        response.negotiated_version,
    );
    assert_eq!(versions, (0x0100, 0x0100, 0x0100));
    assert_eq!(response.status, status::SUCCESS);
    assert!((1..=request.credits_requested).contains(&response.credits_granted));
    assert!(response.credits_requested > 0);
    assert!(response.max_read_write_size >= 1 << 20);
    assert!((128..=request.max_receive_size).contains(&response.preferred_send_size));
    let preferred = request.preferred_send_size.max(128);
    assert!((128..=preferred).contains(&response.max_receive_size));
    assert!(response.max_fragmented_size >= 131_072);
}

impl SmbdPeer {
    /// Connects the fabric; nothing of MS-SMBD is said yet.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, 255)
    }

    /// The same with so many receives, and one more.
    pub(crate) fn connect_with(address: SocketAddr, receives: u16) -> Self {
        let connected = target::connect(|| Self::try_connect(address, receives));
        connected.unwrap_or_else(|end| panic!("no connection: {end}"))
    }

    fn try_connect(address: SocketAddr, receives: u16) -> Result<Self, EndReason> {
        let mut endpoint = endpoint(receives);
        let options = ConnectOptions {
            peer: address,
            crc: false,
            mpa_revision: 2,
            ird: 32,
            ord: 32,
            private_data: Vec::new(),
            timeout: PATIENCE,
        };
        let id = endpoint.connect(&options).unwrap();
        let mut peer = Self::on(endpoint, id);
        let start = Instant::now();
        while !peer.step(PATIENCE) {
            if let Some(end) = peer.end {
                return Err(end);
            }
            assert!(start.elapsed() < PATIENCE, "no connection");
        }
        Ok(peer)
    }

    fn on(endpoint: Endpoint, id: ConnectionId) -> Self {
        Self {
            endpoint,
            id,
            script: Script {
                credits_requested: 10,
                grants: 10,
                grant_batch: 1,
                segments: Vec::new(),
                has_junk: false,
                holds: false,
            },
            credits: 0,
            granted: 0,
            most_asked: 0,
            request: request(),
            response: NegotiateResponse::failure(0),
            log: Vec::new(),
            held: Vec::new(),
            raw: VecDeque::new(),
            end: None,
            partial: (Vec::new(), 0, None),
            pdus: VecDeque::new(),
        }
    }

    /// Connects and negotiates what the suite asks for.
    pub(crate) fn negotiated(address: SocketAddr) -> Self {
        Self::negotiated_with(address, request())
    }

    /// Connects and negotiates with success.
    pub(crate) fn negotiated_with(address: SocketAddr, request: NegotiateRequest) -> Self {
        let mut peer = Self::connect(address);
        let response = peer.negotiate(request).expect("a response");
        check_success(&request, &response);
        peer
    }

    /// Sends a Negotiate Request and takes the answer.
    pub(crate) fn negotiate(
        &mut self,
        request: NegotiateRequest,
    ) -> Result<NegotiateResponse, EndReason> {
        self.negotiate_bytes(request, &request.emit())
    }

    /// The same with these bytes.
    pub(crate) fn negotiate_bytes(
        &mut self,
        request: NegotiateRequest,
        bytes: &[u8],
    ) -> Result<NegotiateResponse, EndReason> {
        self.send_bytes(bytes);
        let (bytes, invalidated) = self.raw()?;
        assert_eq!((bytes.len(), invalidated), (NegotiateResponse::LEN, None));
        assert_eq!(bytes[6..8], [0, 0], "Reserved");
        let response = NegotiateResponse::parse(&bytes).unwrap();
        self.most_asked = request.credits_requested;
        self.request = request;
        self.response = response;
        self.credits = response.credits_granted.into();
        Ok(response)
    }

    /// On the passive side: answers the other side's `asked` with success.
    pub(crate) fn answer(&mut self, asked: NegotiateRequest, response: NegotiateResponse) {
        self.answer_bytes(asked, response, &response.emit());
    }

    /// The same with these bytes.
    pub(crate) fn answer_bytes(
        &mut self,
        asked: NegotiateRequest,
        response: NegotiateResponse,
        bytes: &[u8],
    ) {
        self.granted = response.credits_granted.into();
        self.most_asked = response.credits_requested;
        self.request = NegotiateRequest {
            credits_requested: response.credits_requested,
            max_fragmented_size: response.max_fragmented_size,
            ..asked
        };
        self.response = NegotiateResponse {
            credits_requested: asked.credits_requested,
            preferred_send_size: asked.preferred_send_size.min(response.max_receive_size),
            max_receive_size: asked.max_receive_size.min(response.preferred_send_size),
            max_fragmented_size: asked.max_fragmented_size,
            ..response
        };
        self.send_bytes(bytes);
    }

    /// Sends these bytes as one message. No credit is counted.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        // Whether it is still there shows when something is awaited.
        let _ = self.endpoint.send_raw(self.id, bytes, 0, None);
        self.endpoint.flush();
    }

    /// Sends a message with this header, and the credits counted. The header may be wrong.
    pub(crate) fn send(&mut self, header: DataTransfer, payload: &[u8]) {
        assert!(self.credits > 0, "the peer itself has to keep the rules");
        self.credits -= 1;
        self.granted += u32::from(header.credits_granted);
        self.most_asked = self.most_asked.max(header.credits_requested);
        let mut bytes = header.emit_padded().to_vec();
        bytes.extend(payload);
        if payload.is_empty() {
            bytes.truncate(DataTransfer::LEN);
        } else if self.script.has_junk {
            bytes.resize(self.response.max_receive_size as usize, 0xee);
        }
        self.send_bytes(&bytes);
    }

    /// Sends an upper-layer message as the script has it, waiting for credits.
    pub(crate) fn send_pdu(&mut self, pdu: &[u8]) -> Result<(), EndReason> {
        let most = self.response.max_receive_size as usize - DataTransfer::DATA_OFFSET;
        let lengths = if self.script.segments.is_empty() {
            vec![most]
        } else {
            self.script.segments.clone()
        };
        let mut left = pdu;
        for length in lengths.into_iter().cycle() {
            let (segment, rest) = left.split_at(length.min(left.len()));
            left = rest;
            let header = data(0, segment.len() as u32, rest.len() as u32);
            self.send_segment(header, segment)?;
            if left.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Sends a message with credits of the script, when there is a credit for it.
    pub(crate) fn send_segment(
        &mut self,
        header: DataTransfer,
        payload: &[u8],
    ) -> Result<(), EndReason> {
        while self.credits == 0 {
            self.take()?;
        }
        let mut credits_granted = self.grants_due();
        if self.credits == 1 && self.script.grants > 0 {
            // `[MS-SMBD] 3.1.5.9`: whatever it holds.
            credits_granted = credits_granted.max(1);
        }
        let header = DataTransfer {
            credits_requested: self.script.credits_requested,
            credits_granted,
            ..header
        };
        self.send(header, payload);
        Ok(())
    }

    fn grants_due(&self) -> u16 {
        let missing = self.script.grants.saturating_sub(self.granted);
        if missing < self.script.grant_batch {
            return 0;
        }
        missing as u16
    }

    /// The next message, which keeps all rules of `[MS-SMBD] 3.1.5.1` and 3.1.5.4.
    pub(crate) fn take(&mut self) -> Result<Message, EndReason> {
        let (bytes, invalidated) = self.raw()?;
        let header = DataTransfer::parse(&bytes).expect("20 bytes");
        assert!(self.granted > 0, "a message without a credit: {header:?}");
        assert!(
            self.granted > 1 || header.credits_granted > 0,
            "the last credit without a grant: {header:?}"
        );
        assert_eq!(header.credits_requested, self.response.credits_requested);
        assert_eq!(header.flags & !DataTransfer::RESPONSE_REQUESTED, 0);
        assert_eq!(bytes[6..8], [0, 0], "Reserved");
        assert!(bytes.len() <= self.response.preferred_send_size as usize);
        let (length, remaining) = (header.data_length, header.remaining_data_length);
        if length == 0 {
            assert_eq!((bytes.len(), header.data_offset, remaining), (20, 0, 0));
            assert_eq!(invalidated, None, "a token without a PDU");
            assert_eq!(self.partial.1, 0, "an empty message inside of another");
        } else {
            assert_eq!(header.data_offset, 24);
            assert_eq!(bytes.len(), 24 + length as usize);
            assert_eq!(bytes[20..24], [0; 4], "Padding");
            let most = self.request.max_fragmented_size;
            assert!(remaining <= most && length + remaining <= most);
            if self.partial.1 > 0 {
                assert_eq!(length + remaining, self.partial.1, "{header:?}");
            }
            self.partial.0.extend(&bytes[24..]);
            self.partial.1 = remaining;
            assert!(
                self.partial.2.is_none() || invalidated.is_none(),
                "two tokens"
            );
            self.partial.2 = self.partial.2.or(invalidated);
            if remaining == 0 {
                let (pdu, _, token) = std::mem::take(&mut self.partial);
                self.pdus.push_back((pdu, token));
            }
        }
        self.granted -= 1;
        self.credits += u32::from(header.credits_granted);
        // One more than asked for may come with the last credit of the other side.
        assert!(self.credits <= u32::from(self.most_asked) + 1, "{header:?}");
        self.log.push(header);
        Ok(Message {
            header,
            bytes,
            invalidated,
        })
    }

    /// The next upper-layer message, with credits granted meanwhile as the script has it.
    pub(crate) fn receive_pdu(&mut self) -> Result<(Vec<u8>, Option<u32>), EndReason> {
        loop {
            if let Some(pdu) = self.pdus.pop_front() {
                return Ok(pdu);
            }
            if self.credits > 0 && self.granted * 2 <= self.script.grants {
                let credits_granted = self.grants_due();
                if credits_granted > 0 {
                    self.grant(credits_granted);
                }
            }
            self.take()?;
        }
    }

    /// Sends an empty message.
    pub(crate) fn grant(&mut self, credits_granted: u16) {
        self.send(self.of_script(empty(credits_granted)), &[]);
    }

    fn of_script(&self, header: DataTransfer) -> DataTransfer {
        DataTransfer {
            credits_requested: self.script.credits_requested,
            ..header
        }
    }

    /// Asks for a sign of life and takes everything up to the answer, which is an empty message.
    pub(crate) fn probe(&mut self, credits_granted: u16) -> Result<Message, EndReason> {
        let probe = DataTransfer {
            flags: DataTransfer::RESPONSE_REQUESTED,
            ..self.of_script(empty(credits_granted))
        };
        self.send(probe, &[]);
        loop {
            let message = self.take()?;
            if message.is_empty() {
                return Ok(message);
            }
        }
    }

    /// The next message of whatever form.
    pub(crate) fn raw(&mut self) -> Result<(Vec<u8>, Option<u32>), EndReason> {
        let start = Instant::now();
        loop {
            if let Some(message) = self.raw.pop_front() {
                return Ok(message);
            }
            if let Some(reason) = &self.end {
                return Err(reason.clone());
            }
            assert!(
                start.elapsed() < PATIENCE,
                "nothing comes; {} credits, {} granted, last {:?}",
                self.credits,
                self.granted,
                self.log.last()
            );
            self.step(PATIENCE);
        }
    }

    /// Waits until the other side has ended the connection. Nothing more comes before.
    pub(crate) fn expect_end(&mut self) -> EndReason {
        match self.raw() {
            Ok((bytes, _)) => panic!("an answer instead of the end: {bytes:02x?}"),
            Err(reason) => reason,
        }
    }

    /// Waits until the other side has ended the connection; at most credits come before.
    pub(crate) fn until_end(&mut self) -> EndReason {
        loop {
            match self.take() {
                Ok(message) => assert!(message.is_empty(), "an answer: {message:?}"),
                Err(reason) => return reason,
            }
        }
    }

    /// Whether something has come, or the end, after a wait of at most this long.
    pub(crate) fn has_news(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        // Looked at once also without time to wait.
        self.step(Duration::ZERO);
        loop {
            if !self.raw.is_empty() || self.end.is_some() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.step(left);
        }
    }

    /// Lets the other side reach memory.
    pub(crate) fn register(&mut self, memory: &MemSlice, access: Access) -> BufferDescriptor {
        let memory = memory.clone();
        self.endpoint.register(self.id, memory, access).unwrap()
    }

    /// Takes it back; false: it is gone already.
    pub(crate) fn deregister(&mut self, token: u32) -> bool {
        self.endpoint.deregister(self.id, token)
    }

    /// No receive is posted any more; the ones that stand are used up.
    pub(crate) fn stop_receiving(&mut self) {
        self.endpoint.set_receiving(self.id, false);
    }

    /// Our address.
    pub(crate) fn local(&self) -> SocketAddr {
        self.endpoint.addresses(self.id).expect("connected").0
    }

    /// Ends the connection without a word.
    pub(crate) fn abort(mut self) {
        self.endpoint.abort(self.id);
        self.endpoint.flush();
    }

    /// Waits for something to happen; true when the fabric has connected.
    fn step(&mut self, wait: Duration) -> bool {
        let mut events = Vec::new();
        self.endpoint.poll(Some(wait), &mut events).unwrap();
        self.handle(events)
    }

    fn handle(&mut self, events: impl IntoIterator<Item = PeerEvent>) -> bool {
        let mut is_connected = false;
        for event in events {
            match event {
                PeerEvent::Established { .. } => is_connected = true,
                PeerEvent::Raw {
                    message,
                    invalidated,
                    ..
                } => self.raw.push_back((message.to_vec(), invalidated)),
                PeerEvent::Disconnected { reason, .. } => self.end = Some(reason),
                _ => {}
            }
        }
        is_connected
    }
}

/// A peer that waits for the side under test to connect.
pub(crate) struct Listening {
    endpoint: Endpoint,
    pub(crate) address: SocketAddr,
}

impl Listening {
    pub(crate) fn new() -> Self {
        let mut endpoint = endpoint(255);
        let any = (address(), 0).into();
        let (_, address) = endpoint.listen(any, &ListenOptions::default()).unwrap();
        Self { endpoint, address }
    }

    /// Waits for the connection. The other side may have said something already.
    pub(crate) fn accept(mut self) -> SmbdPeer {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "nobody connects");
            let mut events = Vec::new();
            self.endpoint.poll(Some(PATIENCE), &mut events).unwrap();
            let mut events = events.into_iter();
            while let Some(event) = events.next() {
                if let PeerEvent::Established { connection, .. } = event {
                    let mut peer = SmbdPeer::on(self.endpoint, connection);
                    peer.handle(events);
                    return peer;
                }
            }
        }
    }
}

fn endpoint(receives: u16) -> Endpoint {
    let params = Params {
        receive_credit_max: receives,
        // Room for the longest message there is.
        max_receive_size: 65_536,
        ..Params::default()
    };
    let config = Config {
        kind: client_kind(),
        raw: true,
        active: params.clone(),
        passive: params,
        ..Config::default()
    };
    Endpoint::new(config).unwrap()
}

/// A peer under an SMB client of ours.
#[derive(Clone)]
pub(crate) struct Shared(Rc<RefCell<SmbdPeer>>);

impl Shared {
    pub(crate) fn get(&self) -> RefMut<'_, SmbdPeer> {
        self.0.borrow_mut()
    }

    /// Puts an SMB connection on a peer that has negotiated.
    pub(crate) fn under(
        peer: SmbdPeer,
        options: &smb::Options,
    ) -> Result<(smb::Connection, Self), SmbError> {
        let shared = Self(Rc::new(RefCell::new(peer)));
        let connection = smb::Connection::over(Box::new(shared.clone()), options)?;
        Ok((connection, shared))
    }

    /// What `submit` would send.
    pub(crate) fn hold(&self, submit: impl FnOnce()) -> Vec<u8> {
        self.get().script.holds = true;
        submit();
        let mut peer = self.get();
        peer.script.holds = false;
        peer.held.pop().expect("a message")
    }
}

impl Carrier for Shared {
    fn send(&mut self, parts: &[&[u8]], _deadline: Instant) -> Result<(), SmbError> {
        let mut peer = self.get();
        let pdu = parts.concat();
        if peer.script.holds {
            peer.held.push(pdu);
            return Ok(());
        }
        peer.send_pdu(&pdu).map_err(|end| failure(&end))
    }

    fn receive(&mut self, _deadline: Instant) -> Result<(Vec<u8>, Option<u32>), SmbError> {
        self.get().receive_pdu().map_err(|end| failure(&end))
    }

    fn max_send(&self) -> usize {
        self.get().response.max_fragmented_size as usize
    }

    fn max_receive(&self) -> usize {
        self.get().request.max_fragmented_size as usize
    }
}

fn failure(end: &EndReason) -> SmbError {
    SmbError::Connection(end.to_string())
}
