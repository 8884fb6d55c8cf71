//! One connection: message ids, credits, signatures, requests in flight.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use binrw::BinWrite;
use smb_msg::{CancelRequest, Command, Header, HeaderFlags, SigningAlgorithmId};

use super::crypto::{Preauth, Signer, HEADER};
use super::direct::Direct;
use super::encryption::{is_encrypted, Encryption, TRANSFORM_HEADER};
use super::error::{status, SmbError};
use super::message::{Request, Response};
use super::negotiate::Negotiating;
use super::options::{Dialect, Negotiated, Options, Profile};
use super::transport::{Carrier, Transport};

/// A request in flight; its MessageId.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

/// A connection to a server. See the [module](super).
pub struct Connection {
    pub(super) transport: Transport,
    pub(super) options: Options,
    pub(super) negotiated: Negotiated,
    /// The hash over the NEGOTIATE exchange.
    pub(super) preauth: Preauth,
    pub(super) channel: Channel,
    /// Connection.RDMATransformIds.
    pub(super) transforms: Vec<u16>,
    /// For payloads on their way through a cipher.
    pub(super) scratch: Vec<u8>,
    next_id: u64,
    credits: u32,
    in_flight: HashMap<MessageId, Pending>,
    done: VecDeque<(MessageId, Response)>,
}

/// What the session of a connection asks of its messages.
#[derive(Clone, Default)]
pub(super) struct Channel {
    pub(super) session_id: u64,
    /// None before there is a key, and for guests.
    pub(super) signer: Option<Signer>,
    /// Every request is signed.
    pub(super) signs: bool,
    /// Responses are verified; not while the session is set up.
    pub(super) verifies: bool,
    /// None before there are keys, for guests, and without a cipher.
    pub(super) crypt: Option<Arc<Crypt>>,
    /// Every request is encrypted.
    pub(super) encrypts: bool,
}

/// What all channels of a session share to encrypt.
pub(super) struct Crypt {
    pub(super) encryption: Encryption,
    /// Trees whose share wants encryption.
    trees: Mutex<HashSet<u32>>,
}

impl Crypt {
    pub(super) fn new(encryption: Encryption) -> Self {
        Self {
            encryption,
            trees: Mutex::default(),
        }
    }

    /// `[MS-SMB2] 3.2.5.5`: TreeConnect.EncryptData.
    pub(super) fn set_tree(&self, tree_id: u32, encrypts: bool) {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if encrypts {
            trees.insert(tree_id);
        } else {
            trees.remove(&tree_id);
        }
    }

    fn has_tree(&self, tree_id: u32) -> bool {
        let trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        trees.contains(&tree_id)
    }
}

/// A request that was sent.
#[derive(Debug, Default)]
struct Pending {
    is_signed: bool,
    is_encrypted: bool,
    was_pending: bool,
    async_id: Option<u64>,
    invalidated_by_interim: Option<u32>,
}

/// A message ready to be sent.
pub(super) struct Built {
    pub(super) id: MessageId,
    pub(super) head: Vec<u8>,
    tail: Option<Arc<Vec<u8>>>,
    is_signed: bool,
    is_encrypted: bool,
}

impl Connection {
    /// Connects by plain TCP and negotiates.
    ///
    /// # Errors
    /// No connection, or no dialect in common.
    pub fn tcp(peer: SocketAddr, options: &Options) -> Result<Self, SmbError> {
        Negotiating::tcp(peer, options)?.finish()
    }

    /// Connects by SMB Direct and negotiates.
    ///
    /// # Errors
    /// As [`Connection::tcp`].
    pub fn direct(
        peer: SocketAddr,
        profile: &Profile,
        options: &Options,
    ) -> Result<Self, SmbError> {
        Negotiating::direct(peer, profile, options)?.finish()
    }

    /// Negotiates over a transport that the caller has connected: for tests that do below SMB2 what
    /// no well-behaved transport does.
    ///
    /// # Errors
    /// As [`Connection::tcp`].
    pub fn over(carrier: Box<dyn Carrier>, options: &Options) -> Result<Self, SmbError> {
        Negotiating::over(carrier, options)?.finish()
    }

    /// A connection on which nothing was said yet.
    pub(super) fn new(transport: Transport, options: &Options) -> Self {
        Self {
            transport,
            options: options.clone(),
            negotiated: Negotiated {
                dialect: Dialect::Smb300,
                multi_channel: false,
                signing_required: false,
                max_transact_size: 65_536,
                max_read_size: 65_536,
                max_write_size: 65_536,
                server_guid: [0; 16],
                cipher: None,
                algorithm: SigningAlgorithmId::AesCmac,
            },
            preauth: Preauth::new(),
            channel: Channel::default(),
            transforms: Vec::new(),
            scratch: Vec::new(),
            next_id: 0,
            // `[MS-SMB2] 3.2.5.1.4`: a new connection has one.
            credits: 1,
            in_flight: HashMap::new(),
            done: VecDeque::new(),
        }
    }

    /// What NEGOTIATE agreed on.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// The RDMA transforms that NEGOTIATE agreed on, of [`transform_id`](super::transform_id).
    pub fn transforms(&self) -> &[u16] {
        &self.transforms
    }

    /// The SMB Direct side.
    ///
    /// # Errors
    /// This is a connection over TCP, or over the caller's transport.
    pub fn direct_mut(&mut self) -> Result<&mut Direct, SmbError> {
        match &mut self.transport {
            Transport::Direct(direct) => Ok(direct),
            Transport::Tcp(_) | Transport::Own(_) => {
                Err(SmbError::Usage("not an SMB Direct connection".into()))
            }
        }
    }

    /// The ClientGuid of its NEGOTIATE.
    pub fn client_guid(&self) -> [u8; 16] {
        self.options.client_guid
    }

    /// SMB2 credits held.
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// Requests without a final response.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The longest READ whose data comes inside the response, bytes.
    pub fn max_inline_read(&self) -> u32 {
        let room = self.transport.max_receive().saturating_sub(READ_HEADER);
        self.negotiated
            .max_read_size
            .min(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// The longest WRITE whose data goes inside the request, bytes.
    pub fn max_inline_write(&self) -> u32 {
        let room = self.transport.max_send().saturating_sub(WRITE_HEADER);
        self.negotiated
            .max_write_size
            .min(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// Sends a request. Waits first if credits are missing.
    ///
    /// # Errors
    /// The connection is gone, or the message too long for it.
    pub fn submit(&mut self, request: Request) -> Result<MessageId, SmbError> {
        let built = self.build(request)?;
        self.send(&built)?;
        Ok(built.id)
    }

    /// Sends requests as one compound: `[MS-SMB2] 3.2.4.1.4`. In a related one, those after the
    /// first use its session and tree, and the file it opens for [`FileId::FULL`](super::FileId).
    ///
    /// # Errors
    /// As [`Connection::submit`].
    pub fn submit_compound(
        &mut self,
        requests: Vec<Request>,
        is_related: bool,
    ) -> Result<Vec<MessageId>, SmbError> {
        let charge = requests.iter().map(|it| u32::from(it.charge())).sum();
        self.wait_for_credits(charge)?;
        let last = requests.len().saturating_sub(1);
        let mut message = Vec::new();
        let mut all = Vec::new();
        for (index, mut request) in requests.into_iter().enumerate() {
            if let Some(tail) = request.tail.take() {
                request.head.extend_from_slice(&tail);
            }
            let mut next_command = 0;
            if index != last {
                let length = request.head.len().next_multiple_of(8);
                request.head.resize(length, 0);
                next_command = length as u32;
            }
            let flags = HeaderFlags::new().with_related_operations(is_related && index != 0);
            let built = self.build_with(request, flags, next_command)?;
            message.extend_from_slice(&built.head);
            all.push(built);
        }
        // One message is encrypted as a whole: `[MS-SMB2] 3.2.4.1.8`.
        let is_encrypted = all.iter().any(|it| it.is_encrypted);
        self.transmit(&message, &[], is_encrypted)?;
        let mut ids = Vec::new();
        for built in &mut all {
            built.is_encrypted = is_encrypted;
            self.remember(built);
            ids.push(built.id);
        }
        Ok(ids)
    }

    /// The final response to a request, whatever its status.
    ///
    /// # Errors
    /// The connection ended, the time is up, or a message is not as it must be.
    pub fn wait(&mut self, id: MessageId) -> Result<Response, SmbError> {
        let deadline = Instant::now() + self.options.patience;
        loop {
            if let Some(at) = self.done.iter().position(|(done, _)| *done == id) {
                let (_, response) = self.done.remove(at).expect("position is inside");
                return Ok(response);
            }
            if !self.in_flight.contains_key(&id) {
                return Err(SmbError::Usage(format!("{id:?} is not in flight")));
            }
            self.receive(deadline)?;
        }
    }

    /// The next final response to any request.
    ///
    /// # Errors
    /// As [`Connection::wait`]; or nothing is in flight.
    pub fn wait_any(&mut self) -> Result<(MessageId, Response), SmbError> {
        let deadline = Instant::now() + self.options.patience;
        loop {
            if let Some(done) = self.done.pop_front() {
                return Ok(done);
            }
            if self.in_flight.is_empty() {
                return Err(SmbError::Usage("nothing is in flight".into()));
            }
            self.receive(deadline)?;
        }
    }

    /// Waits until the server has told that it works on a request (STATUS_PENDING).
    ///
    /// # Errors
    /// As [`Connection::wait`]; or the final response came first.
    pub fn wait_for_interim(&mut self, id: MessageId) -> Result<(), SmbError> {
        let deadline = Instant::now() + self.options.patience;
        loop {
            match self.in_flight.get(&id) {
                Some(pending) if pending.was_pending => return Ok(()),
                Some(_) => self.receive(deadline)?,
                None => {
                    return Err(SmbError::Usage(format!(
                        "{id:?}: no interim response before the final one"
                    )))
                }
            }
        }
    }

    /// Sends a request and waits for its success.
    ///
    /// # Errors
    /// As [`Connection::wait`], and [`SmbError::Status`].
    pub fn call(&mut self, request: Request) -> Result<Response, SmbError> {
        let id = self.submit(request)?;
        self.wait(id)?.success()
    }

    /// Asks to cancel a request; its response still comes: `[MS-SMB2] 3.2.4.24`.
    ///
    /// # Errors
    /// It is not in flight, or the connection is gone.
    pub fn cancel(&mut self, id: MessageId) -> Result<(), SmbError> {
        let Some(pending) = self.in_flight.get(&id) else {
            return Err(SmbError::Usage(format!("{id:?} is not in flight")));
        };
        let async_id = pending.async_id;
        let mut request = Request::new(Command::Cancel, &CancelRequest::default())?;
        let is_encrypted = pending.is_encrypted;
        let signs = self.channel.signs && !is_encrypted;
        let signer = self.channel.signer.clone().filter(|_| signs);
        let flags = HeaderFlags::new()
            .with_async_command(async_id.is_some())
            .with_signed(signer.is_some());
        let header = Header {
            credit_charge: 0,
            status: 0,
            command: Command::Cancel,
            credit_request: 0,
            flags,
            next_command: 0,
            message_id: id.0,
            tree_id: async_id.is_none().then_some(0),
            async_id,
            session_id: self.channel.session_id,
            signature: 0,
        };
        write_header(&header, &mut request.head)?;
        if let Some(signer) = signer {
            signer.sign(&mut request.head, &[]);
        }
        self.transmit(&request.head, &[], is_encrypted)
    }

    /// Gives the memory of a response back for the next ones.
    pub fn recycle(&mut self, response: Response) {
        self.transport.recycle(response.bytes);
    }

    /// Fills the header in, and signs if that is due.
    pub(super) fn build(&mut self, request: Request) -> Result<Built, SmbError> {
        self.wait_for_credits(request.charge().into())?;
        self.build_with(request, HeaderFlags::new(), 0)
    }

    /// Sends a built message.
    pub(super) fn send(&mut self, built: &Built) -> Result<(), SmbError> {
        let tail = built.tail.as_deref().map_or(&[][..], Vec::as_slice);
        self.transmit(&built.head, tail, built.is_encrypted)?;
        self.remember(built);
        Ok(())
    }

    fn transmit(&mut self, head: &[u8], tail: &[u8], is_encrypted: bool) -> Result<(), SmbError> {
        let deadline = Instant::now() + self.options.patience;
        if !is_encrypted {
            return self.transport.send(&[head, tail], deadline);
        }
        let crypt = self.channel.crypt.as_ref().ok_or_else(no_keys)?;
        let id = self.channel.session_id;
        let sealed = crypt.encryption.seal_message(id, &[head, tail])?;
        self.transport.send(&[&sealed], deadline)
    }

    fn remember(&mut self, built: &Built) {
        let pending = Pending {
            is_signed: built.is_signed,
            is_encrypted: built.is_encrypted,
            ..Pending::default()
        };
        self.in_flight.insert(built.id, pending);
    }

    fn build_with(
        &mut self,
        request: Request,
        flags: HeaderFlags,
        next_command: u32,
    ) -> Result<Built, SmbError> {
        let charge = request.charge();
        self.credits = self.credits.saturating_sub(charge.into());
        let id = MessageId(self.next_id);
        self.next_id += u64::from(charge);
        let missing = u32::from(self.options.credits).saturating_sub(self.credits);
        let wanted = missing.max(charge.into()).min(u16::MAX.into());
        // `[MS-SMB2] 3.2.4.2.4`: TREE_CONNECT of 3.1.1 is signed, so that nobody can have tampered
        // with the negotiation.
        let is_encrypted = request
            .is_encrypted
            .unwrap_or_else(|| self.channel.encrypts || self.is_encrypted_tree(request.tree_id));
        if is_encrypted && self.channel.crypt.is_none() {
            return Err(no_keys());
        }
        // What is encrypted is not signed: `[MS-SMB2] 3.2.4.1.1`.
        let is_due = !is_encrypted
            && (self.channel.signs
                || request.is_signed
                || (request.command == Command::TreeConnect
                    && self.negotiated.dialect == Dialect::Smb311));
        let signer = self.channel.signer.as_ref().filter(|_| is_due);
        let header = Header {
            credit_charge: charge,
            status: 0,
            command: request.command,
            credit_request: wanted as u16,
            flags: flags.with_signed(signer.is_some()),
            next_command,
            message_id: id.0,
            tree_id: Some(request.tree_id),
            async_id: None,
            session_id: self.channel.session_id,
            signature: 0,
        };
        let mut head = request.head;
        write_header(&header, &mut head)?;
        if let Some(signer) = signer {
            let tail = request.tail.as_deref().map_or(&[][..], Vec::as_slice);
            signer.sign(&mut head, tail);
        }
        Ok(Built {
            id,
            head,
            tail: request.tail,
            is_signed: signer.is_some(),
            is_encrypted,
        })
    }

    fn wait_for_credits(&mut self, charge: u32) -> Result<(), SmbError> {
        let deadline = Instant::now() + self.options.patience;
        while self.credits < charge {
            if self.in_flight.is_empty() {
                return Err(SmbError::Usage(format!(
                    "{charge} credits needed, {} held and none to come",
                    self.credits
                )));
            }
            self.receive(deadline)?;
        }
        Ok(())
    }

    /// Takes one message, which may have several responses in it.
    fn receive(&mut self, deadline: Instant) -> Result<(), SmbError> {
        let message = self.transport.receive(deadline)?;
        let mut bytes = message.bytes;
        let is_encrypted = is_encrypted(&bytes);
        if is_encrypted {
            let crypt = self.channel.crypt.as_ref().ok_or_else(no_keys)?;
            let id = self.channel.session_id;
            bytes = crypt.encryption.open_message(id, bytes)?;
        }
        let parse = |bytes| {
            let mut response = Response::parse(bytes, message.invalidated)?;
            response.is_encrypted = is_encrypted;
            Ok::<_, SmbError>(response)
        };
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let next = rest
                .get(20..24)
                .and_then(|field| field.try_into().ok())
                .map_or(0, u32::from_le_bytes) as usize;
            if next == 0 {
                let last = if at == 0 { bytes } else { rest.to_vec() };
                return self.handle(parse(last)?);
            }
            let part = rest
                .get(..next)
                .filter(|part| part.len() >= HEADER)
                .ok_or_else(|| SmbError::Message(format!("NextCommand {next} in a response")))?;
            self.handle(parse(part.to_vec())?)?;
            at += next;
        }
    }

    fn handle(&mut self, mut response: Response) -> Result<(), SmbError> {
        let header = &response.header;
        let id = MessageId(header.message_id);
        self.credits = self.credits.saturating_add(header.credit_request.into());
        if id.0 == u64::MAX {
            // An oplock break; none is ever asked for.
            return Ok(());
        }
        let is_interim = header.status == status::PENDING && header.flags.async_command();
        if is_interim {
            let pending = self.in_flight.get_mut(&id).ok_or_else(|| stray(id))?;
            pending.was_pending = true;
            pending.async_id = header.async_id;
            pending.invalidated_by_interim = response.invalidated;
            return Ok(());
        }
        let pending = self.in_flight.remove(&id).ok_or_else(|| stray(id))?;
        self.verify(&response, &pending)?;
        response.was_pending = pending.was_pending;
        response.invalidated_by_interim = pending.invalidated_by_interim;
        self.done.push_back((id, response));
        Ok(())
    }

    pub(super) fn is_encrypted_tree(&self, tree_id: u32) -> bool {
        let crypt = self.channel.crypt.as_ref();
        crypt.is_some_and(|it| it.has_tree(tree_id))
    }

    /// `[MS-SMB2] 3.2.5.1.3`; what was encrypted needs no signature, and nothing else will do as
    /// the answer to what was encrypted.
    fn verify(&self, response: &Response, pending: &Pending) -> Result<(), SmbError> {
        if response.is_encrypted {
            return Ok(());
        }
        if pending.is_encrypted && !is_excused(&response.header) {
            return Err(SmbError::Signature(format!(
                "{} response with status {:#010x}: not encrypted",
                response.header.command, response.header.status
            )));
        }
        let Some(signer) = &self.channel.signer else {
            return Ok(());
        };
        if !self.channel.verifies {
            return Ok(());
        }
        let header = &response.header;
        if header.flags.signed() {
            if !signer.is_valid(&response.bytes) {
                let command = header.command;
                return Err(SmbError::Signature(format!(
                    "{command} response: the signature is wrong"
                )));
            }
            return Ok(());
        }
        if pending.is_signed && !is_excused(header) {
            return Err(SmbError::Signature(format!(
                "{} response with status {:#010x}: not signed",
                header.command, header.status
            )));
        }
        Ok(())
    }
}

/// The server may have no key of the session any more.
fn is_excused(header: &Header) -> bool {
    matches!(
        header.status,
        status::USER_SESSION_DELETED | status::NETWORK_SESSION_EXPIRED
    )
}

fn no_keys() -> SmbError {
    SmbError::Usage("an encrypted message on a channel that has no keys for it".into())
}

fn write_header(header: &Header, message: &mut [u8]) -> Result<(), SmbError> {
    let mut cursor = Cursor::new(message);
    Ok(header.write_le(&mut cursor)?)
}

fn stray(id: MessageId) -> SmbError {
    SmbError::Message(format!("a response to {id:?}, which is not in flight"))
}

/// Headers and fixed part of a READ response, a little more.
const READ_HEADER: usize = 80 + TRANSFORM_HEADER;
/// Headers and fixed part of a WRITE request, a little more.
const WRITE_HEADER: usize = 112 + TRANSFORM_HEADER;
