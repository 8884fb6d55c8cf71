//! Messages, and a call over a socket pair.

use std::time::Duration;

use super::*;
use crate::sys::SeqPacket;

const WAIT: Duration = Duration::from_secs(30);

/// Answers one request.
fn serve(socket: &SeqPacket, answer: impl Fn(&Request) -> Reply) -> bool {
    let mut buffer = vec![0; MAX_MESSAGE];
    assert!(socket.wait(false, WAIT).unwrap());
    let Some(received) = socket.recv(&mut buffer).unwrap() else {
        return false;
    };
    let request = decode_request(&buffer[..received.len]).unwrap();
    let reply = encode_reply(request.number, &answer(&request.body)).unwrap();
    socket.send(&reply, &[]).unwrap();
    true
}

#[test]
fn messages_survive_the_socket() {
    let requests = [
        Request::Open(OpenRequest {
            abi: 1,
            version: "0.1.0".into(),
            parent: true,
            area: crate::ring::AreaOptions::default(),
        }),
        Request::SetParams(Params {
            security_blob: vec![7; 16384],
            ..Params::default()
        }),
        Request::Connect(ConnectSpec {
            fabric: Fabric::SoftIwarp,
            address: "[::1]:5445".parse().unwrap(),
            crc: true,
            mpa_revision: 2,
            timeout_msec: 1000,
            params: Params::default(),
        }),
        Request::Accept { token: [9; 16] },
    ];
    for (number, body) in (0..).zip(requests) {
        let message = Envelope { number, body };
        let bytes = encode(&message).unwrap();
        assert_eq!(decode_request(&bytes).unwrap(), message);
        // A message cut short, or with something behind it, is none.
        for len in 0..bytes.len() {
            assert!(decode_request(&bytes[..len]).is_err(), "{len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode_request(&longer).is_err());
    }
}

#[test]
fn what_is_too_long_is_refused_both_ways() {
    let reply = Reply::Error {
        errno: 1,
        text: "x".repeat(MAX_MESSAGE),
    };
    assert!(matches!(
        encode_reply(1, &reply),
        Err(CodecError::TooLong(_))
    ));
    assert!(matches!(
        decode_request(&vec![0; MAX_MESSAGE + 1]),
        Err(CodecError::TooLong(_))
    ));
    // A length prefix far beyond the message must not allocate what it claims.
    assert!(decode_request(&[1, 2, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]).is_err());
}

#[test]
fn a_call_returns_its_own_answer() {
    let (ours, theirs) = SeqPacket::pair().unwrap();
    // A late answer to a request that was given up.
    theirs
        .send(
            &encode_reply(0, &Reply::Address("1.2.3.4:5".parse().unwrap())).unwrap(),
            &[],
        )
        .unwrap();
    let server = std::thread::spawn(move || {
        while serve(&theirs, |request| match request {
            Request::GetParams => Reply::Error {
                errno: libc::ENODATA,
                text: "no parameters are set: call smbd_set_params".into(),
            },
            Request::Close => Reply::Ok,
            other => panic!("{other:?}"),
        }) {}
    });
    let mut caller = Caller::new(ours);
    let error = caller.call(&Request::GetParams, WAIT).unwrap_err();
    assert_eq!(error.errno(), libc::ENODATA);
    assert!(error.to_string().contains("smbd_set_params"));
    assert_eq!(caller.call(&Request::Close, WAIT).unwrap().0, Reply::Ok);
    assert!(caller.drain());
    drop(caller);
    server.join().unwrap();
}

#[test]
fn silence_and_the_end_are_told_apart() {
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let mut caller = Caller::new(ours);
    let error = caller.call(&Request::Close, Duration::from_millis(1));
    assert_eq!(error.unwrap_err().errno(), libc::ETIMEDOUT);
    drop(theirs);
    assert!(!caller.drain());
    let error = caller.call(&Request::Close, WAIT).unwrap_err();
    assert_eq!(error.errno(), libc::ENOTCONN);
}

#[test]
fn a_long_status_comes_in_pages() {
    let handles: Vec<_> = (0..5000)
        .map(|id| HandleStatus {
            id,
            pid: 1,
            uid: 2,
            parent: id == 0,
            connections: 3,
            sessions: 4,
            area_bytes: u64::MAX,
            committed_bytes: u64::MAX,
            age_seconds: u64::MAX,
        })
        .collect();
    let items: Vec<_> = handles.iter().cloned().map(StatusItem::Handle).collect();
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut pages = 0;
        while serve(&theirs, |request| {
            let Request::Status { from } = request else {
                panic!("{request:?}");
            };
            let items = items.iter().cloned();
            Reply::Status(StatusPage::cut(EngineStatus::default(), items, *from))
        }) {
            pages += 1;
        }
        pages
    });
    let mut caller = Caller::new(ours);
    let status = fetch_status(&mut caller, WAIT).unwrap();
    assert_eq!(status.handles, handles);
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    drop(caller);
    assert!(server.join().unwrap() > 1);
}

#[test]
fn parameters_are_checked_one_by_one() {
    assert_eq!(Params::default().check(), Ok(()));
    type Change = fn(&mut Params);
    let changes: [(Change, &str); 17] = [
        (|p| p.receive_credit_max = 0, "receive_credit_max"),
        (|p| p.receive_credit_max = 65536, "receive_credit_max"),
        (|p| p.send_credit_max = 65536, "send_credit_max"),
        (|p| p.max_send_size = 127, "max_send_size"),
        (|p| p.max_send_size = 65537, "max_send_size"),
        (|p| p.max_receive_size = 127, "max_receive_size"),
        (|p| p.max_fragment_size = 131_071, "max_fragment_size"),
        (
            |p| p.max_fragment_size = (64 << 20) + 1,
            "max_fragment_size",
        ),
        (|p| p.max_read_write_size = 65535, "max_read_write_size"),
        (
            |p| p.keepalive_interval_msec = 999,
            "keepalive_interval_msec",
        ),
        (|p| p.security_blob = vec![0; 16385], "security_blob_length"),
        (|p| p.max_transact_size = 65535, "max_transact_size"),
        (|p| p.max_read_size = u32::MAX, "max_read_size"),
        (|p| p.max_write_size = 0, "max_write_size"),
        (|p| p.min_dialect = 0x0210, "min_dialect"),
        (|p| p.max_dialect = 0x0303, "max_dialect"),
        (
            |p| (p.min_dialect, p.max_dialect) = (0x0311, 0x0302),
            "max_dialect",
        ),
    ];
    for (change, field) in changes {
        let mut params = Params::default();
        change(&mut params);
        let error = params.check().unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.to_string().contains(&*error.allowed));
    }
}

/// Found by the fuzzer: the last number there is was counted on from.
#[test]
fn a_page_from_the_last_number_is_empty() {
    for from in [1, u32::MAX - 1, u32::MAX] {
        let page = StatusPage::cut(EngineStatus::default(), Vec::new(), from);
        assert_eq!((page.items.len(), page.next), (0, None));
    }
}
