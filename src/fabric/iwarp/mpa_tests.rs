use super::*;

/// What Linux siw sends for cifs.ko: revision 2, flag S, IRD 32, ORD 1, and the eight bytes of
/// SMB Direct.
const SIW_REQUEST: [u8; 32] =
    *b"MPA ID Req Frame\x10\x02\x00\x0C\x00\x20\x00\x01\0\0\0\x20\0\0\0\x01";

fn parse(kind: Kind, bytes: &[u8]) -> Frame {
    Frame::parse(kind, bytes).unwrap().unwrap()
}

#[test]
fn literal_request() {
    let frame = parse(Kind::Request, &SIW_REQUEST);
    assert_eq!(
        (frame.revision, frame.crc, frame.markers),
        (2, false, false)
    );
    assert_eq!(
        frame.enhanced,
        Some(Enhanced {
            peer_to_peer: false,
            rtr: Rtr::default(),
            ird: Some(32),
            ord: Some(1),
        })
    );
    assert_eq!(frame.private_data, [0, 0, 0, 32, 0, 0, 0, 1]);
    assert_eq!(frame.emit(Kind::Request), SIW_REQUEST);
    for len in 0..SIW_REQUEST.len() {
        assert_eq!(Frame::parse(Kind::Request, &SIW_REQUEST[..len]), Ok(None));
    }
}

#[test]
fn every_flag_has_its_bit() {
    let bytes = *b"MPA ID Rep Frame\xF0\x02\x00\x04\xFF\xFF\x40\x07";
    let frame = parse(Kind::Reply, &bytes);
    assert!(frame.markers && frame.crc && frame.reject);
    let enhanced = frame.enhanced.unwrap();
    assert!(enhanced.peer_to_peer && enhanced.rtr.zero_fpdu);
    assert!(!enhanced.rtr.write && enhanced.rtr.read);
    assert_eq!((enhanced.ird, enhanced.ord), (None, Some(7)));
    assert_eq!(frame.emit(Kind::Reply), bytes);
    // R means nothing in a Request, S nothing in revision 1.
    let frame = parse(Kind::Request, b"MPA ID Req Frame\x30\x01\x00\x04abcd");
    assert!(!frame.reject && frame.enhanced.is_none());
    assert_eq!(frame.private_data, b"abcd");
}

#[test]
fn bad_frames() {
    let error = |kind, bytes: &[u8]| Frame::parse(kind, bytes).unwrap_err();
    assert!(error(Kind::Request, b"GET").contains("not an MPA Request"));
    assert!(error(Kind::Reply, &SIW_REQUEST).contains("not an MPA Reply"));
    let mut long = SIW_REQUEST.to_vec();
    long.push(0);
    assert!(error(Kind::Request, &long).contains("1 bytes behind"));
    let large = b"MPA ID Req Frame\x10\x02\x02\x01";
    assert!(error(Kind::Request, large).contains("513"));
    let short = b"MPA ID Req Frame\x10\x02\x00\x03abc";
    assert!(error(Kind::Request, short).contains("flag S"));
    let most = [&b"MPA ID Req Frame\x00\x01\x02\x00"[..], &[7; 512]].concat();
    assert_eq!(parse(Kind::Request, &most).private_data, [7; 512]);
}

#[test]
fn private_data_limits() {
    assert!(check_private_data(&[0; 252], 2).is_ok());
    assert!(check_private_data(&[0; 253], 2).is_err());
    assert!(check_private_data(&[0; 256], 1).is_ok());
    assert!(check_private_data(&[0; 257], 1).is_err());
}

fn ask(rtr: Rtr, ird: Option<u16>, ord: Option<u16>) -> Frame {
    Frame {
        markers: false,
        crc: false,
        reject: false,
        revision: 2,
        enhanced: Some(Enhanced {
            peer_to_peer: rtr.any(),
            rtr,
            ird,
            ord,
        }),
        private_data: Vec::new(),
    }
}

const NO_RTR: Rtr = Rtr {
    zero_fpdu: false,
    write: false,
    read: false,
};

#[test]
fn responder_takes_the_smaller_depth() {
    let (reply, agreed) = accept(&ask(NO_RTR, Some(4), Some(16)), false, (8, 32), b"x");
    assert_eq!((agreed.ird, agreed.ord, agreed.rtr), (8, 4, None));
    let told = reply.enhanced.unwrap();
    assert_eq!(
        (told.ird, told.ord, told.peer_to_peer),
        (Some(8), Some(4), false)
    );
    assert_eq!(reply.private_data, b"x");
    // Not negotiated: our own values.
    let (_, agreed) = accept(&ask(NO_RTR, None, None), false, (8, 32), b"");
    assert_eq!((agreed.ird, agreed.ord), (8, 32));
    // Revision 1 carries none.
    let rev1 = parse(Kind::Request, b"MPA ID Req Frame\x40\x01\x00\x00");
    let (reply, agreed) = accept(&rev1, false, (8, 32), b"");
    assert_eq!((agreed.ird, agreed.ord, agreed.crc), (8, 32, true));
    assert_eq!(reply.emit(Kind::Reply), b"MPA ID Rep Frame\x40\x01\x00\x00");
}

#[test]
fn responder_picks_one_rtr() {
    let pick = |rtr, ird| {
        let (reply, agreed) = accept(&ask(rtr, Some(1), Some(1)), false, (ird, 1), b"");
        let told = reply.enhanced.unwrap();
        assert_eq!(told.rtr, agreed.rtr.map_or(NO_RTR, Rtr::only));
        agreed.rtr
    };
    let rtr = |zero_fpdu, write, read| Rtr {
        zero_fpdu,
        write,
        read,
    };
    assert_eq!(pick(rtr(true, true, true), 1), Some(RtrKind::Write));
    assert_eq!(pick(rtr(true, false, true), 1), Some(RtrKind::Read));
    assert_eq!(pick(rtr(true, false, true), 0), Some(RtrKind::ZeroFpdu));
    assert_eq!(pick(rtr(false, false, true), 0), Some(RtrKind::Write));
    assert_eq!(pick(NO_RTR, 1), None);
}

#[test]
fn initiator_concludes() {
    let all = Rtr {
        zero_fpdu: true,
        write: true,
        read: true,
    };
    let mine = request(2, false, all, (4, 16), b"");
    let reply = |frame: Frame| conclude(&mine, &frame, (4, 16), 8);
    let write = Rtr::only(RtrKind::Write);
    let agreed = reply(ask(write, Some(2), Some(3))).unwrap();
    assert_eq!(
        (agreed.ird, agreed.ord, agreed.rtr),
        (4, 2, Some(RtrKind::Write))
    );
    // The responder wants more than we asked for, within the limit of the fabric, and beyond.
    assert_eq!(reply(ask(write, Some(2), Some(8))).unwrap().ird, 8);
    assert_eq!(
        reply(ask(write, Some(2), Some(9))),
        Err(ReplyError::InsufficientIrd(9))
    );
    let mut frame = ask(write, Some(2), Some(3));
    frame.crc = true;
    assert!(reply(frame.clone()).unwrap().crc);
    frame.markers = true;
    assert!(matches!(reply(frame.clone()), Err(ReplyError::Bad(_))));
    frame.reject = true;
    frame.private_data = vec![1];
    assert_eq!(reply(frame), Err(ReplyError::Rejected(vec![1])));
    let mut frame = ask(write, Some(2), Some(3));
    frame.revision = 1;
    assert_eq!(reply(frame), Err(ReplyError::Revision(1)));
    let mut frame = ask(write, Some(2), Some(3));
    frame.enhanced = None;
    assert!(matches!(reply(frame), Err(ReplyError::Bad(_))));
    // Offered Write only, told Read.
    let mine = request(2, false, write, (4, 16), b"");
    let read = ask(Rtr::only(RtrKind::Read), Some(2), Some(3));
    assert_eq!(
        conclude(&mine, &read, (4, 16), 8),
        Err(ReplyError::NoMatchingRtr)
    );
    // Without an outbound read, a Read is not offered as RTR.
    let mine = request(2, false, all, (4, 0), b"");
    assert!(!mine.enhanced.unwrap().rtr.read);
    assert_eq!(request(1, false, all, (4, 0), b"").enhanced, None);
}
