//! What can be checked without a server.

use std::io::Cursor;
use std::sync::Arc;

use binrw::BinRead;
use smb_msg::{Command, FileId, Header};

use super::calls::OpenMode;
use super::message::{encode, ReadRequest, Request, Response, WriteRequest};
use super::options::{Credentials, Profile};
use super::{channel, ntlm};
use crate::wire::BufferDescriptor;

const FILE: FileId = FileId {
    persistent: 0x1112_1314_1516_1718,
    volatile: 0x2122_2324_2526_2728,
};

fn descriptors(count: u32) -> Vec<BufferDescriptor> {
    let one = |i| BufferDescriptor {
        offset: 0x0102_0304_0506_0708,
        token: 0xaabb_cc00 + i,
        length: 0x1000,
    };
    (0..count).map(one).collect()
}

/// `[MS-SMB2] 2.2.19`; offsets count from the header.
#[test]
fn a_read_names_its_memory() {
    let read = ReadRequest::rdma(FILE, 0x55, 0x2000, channel::RDMA_V1, &descriptors(2));
    let request = read.to_request(7).unwrap();
    let b = &request.head;
    assert_eq!(b.len(), 112 + 32);
    assert_eq!(b[64..68], [49, 0, 80, 0]);
    assert_eq!(b[68..72], 0x2000u32.to_le_bytes());
    assert_eq!(b[72..80], 0x55u64.to_le_bytes());
    assert_eq!(b[80..88], FILE.persistent.to_le_bytes());
    assert_eq!(b[88..96], FILE.volatile.to_le_bytes());
    assert_eq!(b[96..100], [0; 4]);
    assert_eq!(b[100..104], [1, 0, 0, 0]);
    assert_eq!(b[104..108], [0; 4]);
    assert_eq!(b[108..112], [112, 0, 32, 0]);
    assert_eq!(b[112..144], encode(&descriptors(2)));
    assert_eq!(b[112..120], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(b[136..140], [1, 0xcc, 0xbb, 0xaa]);
    // Without descriptors one byte of the buffer is there all the same.
    let inline = ReadRequest::inline(FILE, 0, 1).to_request(7).unwrap();
    assert_eq!(inline.head.len(), 113);
}

/// `[MS-SMB2] 2.2.13`: no contexts, no offset.
#[test]
fn a_create_without_contexts() {
    let request = Request::create(7, "name", OpenMode::ReadWrite).unwrap();
    let b = &request.head;
    assert_eq!(b[64..66], [57, 0]);
    assert_eq!(b[108..112], [120, 0, 8, 0]);
    assert_eq!(b[112..120], [0; 8]);
    assert_eq!(b[120..128], *b"n\0a\0m\0e\0");
}

/// `[MS-SMB2] 2.2.21`.
#[test]
fn a_write_has_its_data_here_or_there() {
    let id = channel::RDMA_V1_INVALIDATE;
    let write = WriteRequest::rdma(FILE, 0x55, 0x1800, id, &descriptors(2));
    let request = write.to_request(7).unwrap();
    let b = &request.head;
    assert_eq!(b.len(), 112 + 32);
    assert_eq!(b[64..72], [49, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(b[96..100], [2, 0, 0, 0]);
    assert_eq!(b[100..104], 0x1800u32.to_le_bytes());
    assert_eq!(b[104..112], [112, 0, 32, 0, 0, 0, 0, 0]);
    assert!(request.tail.is_none());

    let data = Arc::new(vec![9; 300]);
    let inline = WriteRequest::inline(FILE, 0x55, data.clone());
    let request = inline.to_request(7).unwrap();
    assert_eq!(request.head.len(), 112);
    assert_eq!(request.head[64..72], [49, 0, 112, 0, 300u16 as u8, 1, 0, 0]);
    assert_eq!(request.tail, Some(data));
    let empty = WriteRequest::inline(FILE, 0, Arc::default());
    assert_eq!(empty.to_request(7).unwrap().head.len(), 113);
}

/// `[MS-SMB2] 3.1.5.2`.
#[test]
fn credits_are_charged_by_64_kib() {
    let charge = |bytes| Request::echo().unwrap().with_payload(bytes).charge();
    let all = [0, 1, 65_536, 65_537, 8 << 20].map(charge);
    assert_eq!(all, [1, 1, 1, 2, 128]);
    let write = WriteRequest::rdma(FILE, 0, 131_073, channel::RDMA_V1, &descriptors(1));
    assert_eq!(write.to_request(7).unwrap().charge(), 3);
}

/// A READ response with these lengths.
fn read_response(data_offset: u8, data_length: u32, remaining: u32, data: &[u8]) -> Response {
    let mut bytes = Request::new(Command::Read, &0u8).unwrap().head;
    bytes.truncate(64);
    bytes[..4].copy_from_slice(b"\xfeSMB");
    bytes[4..6].copy_from_slice(&[64, 0]);
    bytes[12] = 8;
    bytes[16] = 1;
    bytes.extend([17, 0, data_offset, 0]);
    bytes.extend(data_length.to_le_bytes());
    bytes.extend(remaining.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(data);
    Response::parse(bytes, None).unwrap()
}

#[test]
fn data_of_a_read_has_to_be_inside_the_response() {
    let good = read_response(80, 3, 0, b"abc");
    assert_eq!(good.read_result().unwrap().data, b"abc");
    let by_rdma = read_response(80, 0, 4096, b"");
    let result = by_rdma.read_result().unwrap();
    assert_eq!((result.data_remaining, result.data.len()), (4096, 0));
    for (offset, length) in [(80, 4), (81, 3), (255, 1), (80, u32::MAX)] {
        let bad = read_response(offset, length, 0, b"abc");
        assert!(bad.read_result().is_err(), "{offset} {length}");
    }
}

#[test]
fn nonsense_is_no_response() {
    for bytes in [&b""[..], b"\xfeSMB", &[0; 64], &[0xff; 200]] {
        assert!(Response::parse(bytes.to_vec(), None).is_err());
    }
    // A request.
    let response = read_response(80, 0, 0, b"");
    let mut bytes = response.bytes;
    bytes[16] = 0;
    assert!(Header::read_le(&mut Cursor::new(&bytes)).is_ok());
    assert!(Response::parse(bytes, None).is_err());
}

#[test]
fn nonsense_is_no_challenge() {
    let credentials = Credentials {
        user: "user".into(),
        password: "password".into(),
        domain: String::new(),
    };
    let negotiate = ntlm::negotiate().unwrap();
    assert_eq!(negotiate[..12], *b"NTLMSSP\0\x01\0\0\0");
    let mut challenge = b"NTLMSSP\0\x02\0\0\0".to_vec();
    challenge.extend([0xff; 36]);
    for bytes in [
        &b""[..],
        &negotiate,
        &challenge[..12],
        &challenge[..40],
        &challenge,
    ] {
        assert!(ntlm::authenticate(bytes, &credentials).is_err());
    }
    assert!(!format!("{credentials:?}").contains("password"));
}

#[test]
fn profiles_are_legal() {
    for profile in [Profile::linux(), Profile::windows(), Profile::small()] {
        let active = &profile.config.active;
        assert_eq!(active.validate(), Ok(()), "{}", profile.name);
        assert!(profile.grant_batch <= active.receive_credit_max);
    }
}
