//! Control messages: what decodes, decodes to the same after encoding; and an engine that gets any
//! requests on several sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use smbdirect::ipc::{
    self, Caller, Envelope, Fabric, ListenSpec, OpenRequest, Params, Reply, Request, SessionSpec,
};
use smbdirect::ring::{AreaOptions, ABI};
use smbdirect::sys::SeqPacket;

use super::input::Input;
use super::lab::{connect_spec, params, small_area, Lab, PATIENCE};

pub(crate) fn run(bytes: &[u8]) {
    static LAB: OnceLock<Lab> = OnceLock::new();
    let lab = LAB.get_or_init(Lab::start);
    decode(bytes);
    let mut input = Input::new(bytes);
    let mut sockets: Vec<Option<Client>> = (0..3).map(|_| None).collect();
    let mut known = Known::default();
    let mut left = 40;
    while !input.is_empty() && left > 0 {
        left -= 1;
        let at = input.below(sockets.len());
        match input.below(16) {
            0 => sockets[at] = None,
            1 | 2 => {
                let raw = input.bytes(200);
                let client = sockets[at].get_or_insert_with(|| Client::new(lab));
                if is_harmless(raw) && client.send_raw(raw) {
                    sockets[at] = None;
                }
            }
            _ => {
                let request = request(&mut input, &known);
                let client = sockets[at].get_or_insert_with(|| Client::new(lab));
                if !client.ask(&request, &mut known) {
                    sockets[at] = None;
                }
            }
        }
    }
    drop(sockets);
    lab.until_handles(0);
}

fn decode(bytes: &[u8]) {
    if let Ok(envelope) = ipc::decode_request(bytes) {
        let again = postcard::to_stdvec(&envelope).expect("it encodes");
        assert_eq!(ipc::decode_request(&again), Ok(envelope));
    }
    let reply: Result<Envelope<Reply>, _> = postcard::from_bytes(bytes);
    if let Ok(Envelope { number, body }) = reply {
        if let Ok(again) = ipc::encode_reply(number, &body) {
            let twice: Envelope<Reply> = postcard::from_bytes(&again).expect("it decodes");
            assert_eq!(twice, Envelope { number, body });
        }
    }
}

/// It asks for nothing beyond this host.
fn is_harmless(raw: &[u8]) -> bool {
    match ipc::decode_request(raw).map(|envelope| envelope.body) {
        Ok(Request::Listen(spec)) => spec.address.ip().is_loopback(),
        Ok(Request::Connect(spec)) => spec.address.ip().is_loopback(),
        _ => true,
    }
}

/// What answers have told.
#[derive(Default)]
struct Known {
    connections: Vec<u64>,
    tokens: Vec<[u8; 16]>,
    addresses: Vec<SocketAddr>,
    registered: Vec<u32>,
}

struct Client {
    caller: Caller,
    /// Keep the handle's memory and bell.
    fds: Vec<std::os::fd::OwnedFd>,
}

impl Client {
    fn new(lab: &Lab) -> Self {
        Self {
            caller: Caller::connect(&lab.socket, PATIENCE).expect("the engine accepts"),
            fds: Vec::new(),
        }
    }

    /// Sends bytes. True: the engine hangs up on them, as it must if they are no request.
    fn send_raw(&mut self, raw: &[u8]) -> bool {
        if self.caller.socket().send(raw, &[]).is_err() {
            return true;
        }
        let socket: &SeqPacket = self.caller.socket();
        let mut buffer = vec![0; ipc::MAX_MESSAGE];
        let is_request = ipc::decode_request(raw).is_ok();
        loop {
            assert!(
                socket.wait(false, PATIENCE).expect("a socket"),
                "neither answer nor end"
            );
            match socket.recv(&mut buffer) {
                Ok(Some(_)) if is_request => return false,
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
        }
    }

    /// Asks. False: the engine has hung up.
    fn ask(&mut self, request: &Request, known: &mut Known) -> bool {
        match self.caller.call(request, PATIENCE) {
            Ok((reply, fds)) => {
                self.fds.extend(fds);
                match reply {
                    Reply::Connection(id) => known.connections.push(id),
                    Reply::Token(token) => known.tokens.push(token),
                    Reply::Address(address) => known.addresses.push(address),
                    Reply::Registered(key) => known.registered.push(key.token),
                    _ => {}
                }
                *request != Request::Close
            }
            Err(ipc::CallError::Refused(errno, text)) => {
                assert!(errno > 0 && !text.is_empty(), "{errno} {text}");
                true
            }
            Err(ipc::CallError::Gone | ipc::CallError::Os(_)) => false,
            Err(error) => panic!("{request:?}: {error}"),
        }
    }
}

fn one_of<T: Copy>(input: &mut Input<'_>, known: &[T], other: T) -> T {
    if known.is_empty() || input.below(8) == 7 {
        other
    } else {
        known[input.below(known.len())]
    }
}

fn odd_params(input: &mut Input<'_>) -> Params {
    let mut odd = params();
    for _ in 0..input.below(4) {
        match input.below(12) {
            0 => odd.receive_credit_max = input.odd_u32(),
            1 => odd.send_credit_max = input.odd_u32(),
            2 => odd.max_send_size = input.odd_u32(),
            3 => odd.max_receive_size = input.odd_u32(),
            4 => odd.max_fragment_size = input.odd_u32(),
            5 => odd.max_read_write_size = input.odd_u32(),
            6 => odd.keepalive_interval_msec = input.odd_u32(),
            7 => odd.security_blob = vec![1; input.pick(&[0, 1, 16384, 16385, 60_000])],
            8 => odd.answer_negotiate = true,
            9 => odd.capabilities = input.u32(),
            10 => odd.max_dialect = input.pick(&[0x0300, 0x0302, 0x0311, 0x0210, 0]),
            _ => odd.max_transact_size = input.odd_u32(),
        }
    }
    odd
}

fn odd_area(input: &mut Input<'_>) -> AreaOptions {
    let mut odd = small_area();
    for _ in 0..input.below(3) {
        match input.below(6) {
            0 => odd.rdma_buffers = input.odd_u32(),
            1 => odd.rdma_buffer_size = input.odd_u32(),
            2 => odd.max_connections = input.odd_u32(),
            3 => odd.receive_slots = input.odd_u32(),
            4 => odd.receive_slot_size = input.odd_u32(),
            _ => odd.send_area_size = input.odd_u32(),
        }
    }
    odd
}

fn listen_spec(input: &mut Input<'_>, known: &Known) -> ListenSpec {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    ListenSpec {
        fabric: Fabric::SoftIwarp,
        address: if input.flag() {
            any
        } else {
            one_of(input, &known.addresses, any)
        },
        crc: input.flag(),
    }
}

fn request(input: &mut Input<'_>, known: &Known) -> Request {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    let connection = one_of(input, &known.connections, input_id(known));
    match input.below(17) {
        0 | 1 => Request::Open(OpenRequest {
            abi: if input.below(16) == 15 {
                input.u32()
            } else {
                ABI
            },
            version: "fuzz".into(),
            parent: input.flag(),
            area: odd_area(input),
        }),
        2 => Request::Close,
        3 => Request::SetParams(odd_params(input)),
        4 => Request::GetParams,
        5 => Request::SetSession(SessionSpec {
            session_id: input.flag().then(|| u64::from(input.u8() & 3)),
            client_guid: input.flag().then(|| [input.u8() & 3; 16]),
            remove: input.flag(),
        }),
        6 => Request::Listen(listen_spec(input, known)),
        7 => Request::Unlisten(listen_spec(input, known)),
        8 | 9 => {
            let mut spec = connect_spec(one_of(input, &known.addresses, nowhere));
            spec.crc = input.flag();
            spec.mpa_revision = input.pick(&[2, 1, 0, 3]);
            spec.timeout_msec = input.pick(&[1000, 1, 0, u32::MAX]);
            spec.params = odd_params(input);
            Request::Connect(spec)
        }
        10 => Request::Accept {
            token: one_of(input, &known.tokens, [1; 16]),
        },
        11 => Request::Reject {
            token: one_of(input, &known.tokens, [1; 16]),
        },
        12 => Request::Export { connection },
        13 => Request::CancelExport { connection },
        14 => Request::Register {
            connection,
            offset: if input.flag() {
                input.u64()
            } else {
                (160 << 10) + u64::from(input.u16())
            },
            length: input.odd_u32(),
            remote_read: input.flag(),
            remote_write: input.flag(),
        },
        15 => Request::Deregister {
            connection,
            token: one_of(input, &known.registered, 0),
        },
        _ if input.flag() => Request::Interfaces {
            from: input.odd_u32(),
        },
        _ => Request::Status {
            from: input.odd_u32(),
        },
    }
}

fn input_id(known: &Known) -> u64 {
    // The next one that will be given, perhaps.
    known
        .connections
        .last()
        .map_or(1 << 16, |id| id + (1 << 16))
}
