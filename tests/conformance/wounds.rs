//! What went wrong in other implementations, each on purpose. docs/conformance.md lists those that
//! have their test elsewhere. Commits are those of the Linux kernel, numbers are of issues at GitHub.

use std::fs;

use rustix::process::Signal;
use smbdirect::client::EventKind;
use smbdirect::fabric::FabricKind;
use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, status, Dialect, OpenMode, Profile, ReadRequest, Signing, WriteRequest,
};
use smbdirect::wire::{DataTransfer, NegotiateRequest};

use crate::common::{target, wait_for};
use crate::samba::{is_alive, samba, Options, Server};
use crate::smb::{self, noise, open_share, rdma, Client, SOURCE, TARGET};
use crate::smbd_peer::{data, empty, request, Shared, SmbdPeer};
use crate::{server, Bed};

/// What Windows and Linux offer, and Windows' number of credits.
fn of_windows() -> NegotiateRequest {
    NegotiateRequest {
        credits_requested: 255,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        max_fragmented_size: 1 << 20,
        ..request()
    }
}

/// 8cf2bbac6281: the last credit spent on a message that grants none, and both sides wait for ever.
/// Here both send as fast as they may, with few credits; each message that comes is checked.
#[test]
fn the_last_credit_goes_with_a_grant() {
    let mut bed = Bed::new("last-credit");
    for (asked, grants) in [(1, 1), (1, 10), (2, 1), (2, 2), (3, 255), (10, 1), (255, 2)] {
        let request = NegotiateRequest {
            credits_requested: asked,
            ..request()
        };
        let mut peer = SmbdPeer::negotiated_with(bed.address, request);
        peer.script.credits_requested = asked;
        peer.script.grants = grants;
        let id = bed.attach(&mut peer);
        let pdus: Vec<_> = (1..=10).map(|i| noise(i * 2345, i as u64)).collect();
        for pdu in &pdus {
            bed.send(id, pdu);
            peer.send_pdu(pdu).unwrap();
        }
        for pdu in &pdus {
            assert!(peer.receive_pdu().unwrap().0 == *pdu, "{asked} {grants}");
            let got = wait_for(&mut bed.owner, EventKind::PduReceived).1;
            assert!(got == *pdu, "{asked} {grants}");
        }
    }
}

/// The other side of it: Linux before that commit. It spends all its credits on the segments of a
/// request, and grants only when it has nearly nothing of ours left.
#[test]
fn a_peer_that_spends_its_last_credit_on_nothing() {
    let mut bed = Bed::new("spent");
    let (mut peer, id) = bed.attached(request());
    let pdu = noise(100_000, 1);
    for round in 0..3 {
        let mut left = pdu.len();
        for segment in pdu.chunks(1000) {
            left -= segment.len();
            while peer.credits == 0 {
                peer.take().unwrap();
            }
            let grants = if peer.granted <= 2 { 10 } else { 0 };
            peer.send(data(grants, segment.len() as u32, left as u32), segment);
        }
        let got = wait_for(&mut bed.owner, EventKind::PduReceived).1;
        assert!(got == pdu, "{round}");
        bed.send(id, &pdu);
        assert!(peer.receive_pdu().unwrap().0 == pdu, "{round}");
    }
}

/// 8106978d400c, defb3c05fee9: receives refilled only when the peer asks for more than before. Here
/// it never does.
#[test]
fn credits_come_back_though_nobody_asks_for_more() {
    let mut bed = Bed::new("refill");
    for asked in [2, 10, 255] {
        let request = NegotiateRequest {
            credits_requested: asked,
            ..request()
        };
        let mut peer = SmbdPeer::negotiated_with(bed.address, request);
        peer.script.credits_requested = asked;
        bed.attach(&mut peer);
        let rounds = if asked > 10 { 2000 } else { 300 };
        for round in 0..rounds {
            let pdu = noise(100, round);
            peer.send_pdu(&pdu).unwrap();
            let got = wait_for(&mut bed.owner, EventKind::PduReceived).1;
            assert!(got == pdu, "{asked} {round}");
        }
    }
}

/// The same commits: Windows Server grants in batches of about 191 of 255. Signed, so that all data
/// goes inside of PDUs, as in the reports.
#[test]
fn grants_in_batches_like_windows() {
    let test = "grants_in_batches_like_windows";
    let Some(server) = server(test) else {
        return;
    };
    let mut peer = SmbdPeer::negotiated_with(rdma(&server), of_windows());
    assert_eq!(peer.response.max_receive_size, 1364);
    peer.script.credits_requested = 255;
    peer.script.grants = 255;
    peer.script.grant_batch = 191;
    let options = smb::options(Dialect::Smb311, Signing::AlwaysGmac);
    let (it, peer) = Shared::under(peer, &options).unwrap();
    let (mut it, _, tree) = open_share(it);
    let file = it.open(tree, test, OpenMode::Overwrite).unwrap().id;
    let content = noise(2 << 20, 2);
    let piece = 128_000;
    // Many at once, so that requests and responses are under way in both directions.
    let writes: Vec<_> = content
        .chunks(piece)
        .enumerate()
        .map(|(i, bytes)| {
            let offset = (i * piece) as u64;
            let write = WriteRequest::inline(file, offset, bytes.to_vec().into());
            it.submit(write.to_request(tree).unwrap()).unwrap()
        })
        .collect();
    let reads: Vec<_> = (0..content.len())
        .step_by(piece)
        .map(|offset| {
            let read = ReadRequest::inline(file, offset as u64, piece as u32);
            it.submit(read.to_request(tree).unwrap()).unwrap()
        })
        .collect();
    for id in writes {
        it.wait(id).unwrap().success().unwrap();
    }
    for id in reads {
        it.wait(id).unwrap();
    }
    assert!(fs::read(server.share(test)).unwrap() == content);
    let mut got = Vec::new();
    while got.len() < content.len() {
        let read = it.read(tree, file, got.len() as u64, piece as u32);
        got.extend(read.unwrap());
    }
    assert!(got == content);
    let granted: Vec<_> = peer.get().log.iter().map(|it| it.credits_granted).collect();
    assert!(granted.iter().any(|&it| it > 1), "{granted:?}");
}

/// "smbdirect: introduce smbdirect_socket.send_io.bcredits": an immediate empty message between the
/// segments of another. The peer asks for answers all the time; that none comes inside of a PDU is
/// checked with each message.
#[test]
fn no_immediate_send_inside_of_a_message() {
    let mut bed = Bed::new("immediate");
    let (mut peer, id) = bed.attached(request());
    peer.script.grants = 0;
    for credits in [1, 2, 3, 10] {
        let pdu = noise(50_000, credits.into());
        bed.send(id, &pdu);
        let mut got = 0;
        while got < pdu.len() {
            while peer.granted == 0 || peer.credits > 5 {
                let probe = DataTransfer {
                    flags: DataTransfer::RESPONSE_REQUESTED,
                    ..empty(if peer.granted == 0 { credits } else { 0 })
                };
                peer.send(probe, &[]);
            }
            got += peer.take().unwrap().header.data_length as usize;
        }
        assert!(peer.receive_pdu().unwrap().0 == pdu);
        // And the answer comes then.
        peer.send(empty(5), &[]);
        peer.probe(5).unwrap();
    }
}

/// Credits that a peer has no receives for: its side of the fabric ends the connection, nobody else
/// notices.
#[test]
fn credits_without_receives() {
    let mut bed = Bed::new("no-receives");
    let mut peer = SmbdPeer::connect_with(bed.address, 4);
    peer.negotiate(request()).unwrap();
    let id = bed.attach(&mut peer);
    peer.stop_receiving();
    bed.send(id, &noise(100_000, 3));
    let mut taken = 0;
    while peer.take().is_ok() {
        taken += 1;
    }
    assert!(taken <= 5, "{taken} messages");
    let end = wait_for(&mut bed.owner, EventKind::Disconnected).0;
    assert_eq!(end.connection, id);
    bed.check_others();
}

/// ksmbd 595: files longer than a request and no multiple of it could not be read over RDMA.
#[test]
fn files_that_are_no_multiple_of_the_request() {
    let test = "files_that_are_no_multiple_of_the_request";
    let Some(server) = server(test) else {
        return;
    };
    let most = 128 << 10;
    for profile in [Profile::linux(), Profile::windows()] {
        for size in [most - 1, most + 1, 2 * most - 4095, 3 * most + 77] {
            let content = noise(size, size as u64);
            fs::write(server.share(test), &content).unwrap();
            let mut client = Client::new(&server, &profile, Dialect::Smb311, test);
            let mut got: Vec<u8> = Vec::new();
            loop {
                let memory = MemSlice::from_bytes(&vec![0; most]).unwrap();
                let memory = client.register(&memory, TARGET);
                let (offset, id) = (got.len() as u64, smb::invalidate());
                let (tree, file) = (client.tree, client.file);
                let read = client
                    .it
                    .rdma_read(tree, file, offset, most as u32, id, &memory);
                match read {
                    Ok((count, _)) => {
                        assert_eq!(count as usize, most.min(size - got.len()));
                        got.extend(&memory.memory().to_vec()[..count as usize]);
                    }
                    Err(error) => {
                        assert_eq!(error.status(), Some(status::END_OF_FILE));
                        break;
                    }
                }
            }
            assert!(got == content, "{} {size}", profile.name);
        }
    }
}

/// chimera 973: the length of an RDMA WRITE that nobody bounded, and gigabytes allocated for one
/// request; ksmbd 543: 16 MiB asked of a server that takes 8.
#[test]
fn lengths_without_bound() {
    let test = "lengths_without_bound";
    let Some(server) = server(test) else {
        return;
    };
    let mut client = Client::new(&server, &Profile::windows(), Dialect::Smb311, test);
    let memory = MemSlice::from_bytes(&[1; 4096]).unwrap();
    let source = client.register(&memory, SOURCE).descriptors()[0];
    let target = client.register(&memory, TARGET).descriptors()[0];
    let (tree, file, id) = (client.tree, client.file, channel::RDMA_V1);
    for length in [(8 << 20) + 1, 16 << 20, i32::MAX as u32, 1 << 31, u32::MAX] {
        // Descriptors that are long enough, one or many.
        for count in [1, 4095] {
            let long = |it| vec![smbdirect::wire::BufferDescriptor { length, ..it }; count];
            let write = WriteRequest::rdma(file, 0, length, id, &long(source));
            let read = ReadRequest::rdma(file, 0, length, id, &long(target));
            for request in [write.to_request(tree), read.to_request(tree)] {
                // Credits are not what is wrong.
                let request = request.unwrap().with_payload(4096);
                let id = client.it.submit(request).unwrap();
                let status = client.it.wait(id).unwrap().status();
                assert_eq!(status, status::INVALID_PARAMETER, "{length:#x} {count}");
            }
        }
    }
    client.it.echo().unwrap();
    // The most that any of smbd's processes ever had in memory, KiB.
    for pid in server.smbd_children() {
        let stat = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let most = stat.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let most = most.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u64>().ok());
        assert!(most.is_none_or(|kib| kib < 512 << 10), "{most:?} KiB");
    }
}

/// ksmbd 543: a server that cannot stop while a client is connected; ksmbd 529, 582, 609: and one
/// that takes the machine along. First smbd stops, or first the engine.
#[test]
fn the_server_stops_with_clients_connected() {
    let test = "the_server_stops_with_clients_connected";
    let Some(bin) = samba(test) else {
        return;
    };
    for engine_first in [false, true] {
        let mut server = Server::start_with(bin, &Options::default());
        server.add_user(smb::PASSWORD);
        server.wait_for_smb_direct();
        // One with a file open and requests in flight, which it does not serve; one that is idle;
        // one that has not even negotiated SMB2.
        let mut busy = Client::new(&server, &Profile::windows(), Dialect::Smb311, "busy");
        let memory = MemSlice::from_bytes(&vec![1; 1 << 20]).unwrap();
        let memory = busy.register(&memory, SOURCE);
        for _ in 0..4 {
            let id = channel::RDMA_V1;
            let write = WriteRequest::rdma(busy.file, 0, 1 << 20, id, memory.descriptors());
            busy.it
                .submit(write.to_request(busy.tree).unwrap())
                .unwrap();
        }
        let mut idle = Client::new(&server, &Profile::linux(), Dialect::Smb302, "idle");
        let mut silent = SmbdPeer::negotiated(rdma(&server));

        let mut engine = server.engine.take().unwrap();
        let mut smbd = server.smbd.take().unwrap();
        let children = server.smbd_children();
        let mut stop_engine = || {
            engine.kill(Signal::TERM);
            assert!(engine.wait().success());
        };
        if engine_first {
            stop_engine();
        }
        smbd.kill(Signal::TERM);
        smbd.wait();
        server.wait_until("all of smbd has ended", || {
            !children.iter().any(|&pid| is_alive(pid))
        });
        if !engine_first {
            stop_engine();
        }
        silent.until_end();
        assert!(idle.it.echo().is_err());
        // A device serves RDMA while its client does nothing.
        let answered = (0..4).take_while(|_| busy.it.wait_any().is_ok()).count();
        assert!(answered == 0 || target::client_kind() == FabricKind::Verbs);
        assert!(busy.it.echo().is_err());
        let log = server.read("smbd.log");
        assert!(!log.contains("PANIC"), "{log}");
    }
}
