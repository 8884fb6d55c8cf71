//! Both ends of an area in one process.

use std::sync::atomic::Ordering;

use super::layout::at;
use super::*;
use crate::mem::Region;
use crate::sys::{Bell, Cleared};

fn options() -> AreaOptions {
    AreaOptions {
        rdma_buffers: 2,
        rdma_buffer_size: 8192,
        max_connections: 4,
        receive_slots: 16,
        receive_slot_size: 200,
        send_area_size: 64 << 10,
    }
}

fn ends() -> (EngineSide, ClientSide) {
    let mut engine = EngineSide::new(&options()).unwrap();
    let fds: Vec<_> = engine
        .fds()
        .iter()
        .map(|fd| fd.try_clone_to_owned().unwrap())
        .collect();
    engine.handed_over();
    let [memfd, bell] = fds.try_into().unwrap();
    let client = ClientSide::new(&options(), memfd, bell).unwrap();
    (engine, client)
}

fn fragment(slot: u32) -> CqEntry {
    CqEntry {
        slot,
        ..CqEntry::new(CqKind::Fragment, 1)
    }
}

#[test]
fn the_parts_of_the_area_follow_each_other() {
    for options in [
        options(),
        AreaOptions::default(),
        AreaOptions {
            rdma_buffers: 4096,
            rdma_buffer_size: 64 << 20,
            max_connections: 4096,
            receive_slots: 65536,
            receive_slot_size: 65536,
            send_area_size: 1 << 30,
        },
    ] {
        let layout = Layout::new(&options).unwrap();
        let parts = [
            layout.connections,
            layout.sq,
            layout.cq,
            layout.returns,
            layout.receive,
            layout.send,
            layout.rdma,
        ];
        let mut end = Layout::PAGE;
        for part in parts {
            assert_eq!(part.offset, end);
            assert_eq!(part.offset % Layout::PAGE, 0);
            end += part.len;
        }
        assert_eq!(layout.area_size(), end);
        let last = layout.slot_offset(options.receive_slots - 1).unwrap();
        let stride = u64::from(layout.slot_stride);
        assert!(layout.receive.position(last, stride).is_some());
        assert!(layout.slot_offset(options.receive_slots).is_none());
        let needed = options.receive_slots
            + layout.max_operations()
            + 4 * options.max_connections
            + Layout::MAX_OFFERS;
        assert!(layout.cq_capacity >= needed);
        assert!(layout.sq_capacity >= layout.max_operations() + options.max_connections);
    }
}

#[test]
fn options_out_of_range_are_named() {
    type Change = fn(&mut AreaOptions);
    let changes: [(Change, &str); 8] = [
        (|o| o.rdma_buffers = 0, "rdma_buffers"),
        (|o| o.rdma_buffer_size = 4097, "rdma_buffer_size"),
        (
            |o| o.rdma_buffer_size = (64 << 20) + 4096,
            "rdma_buffer_size",
        ),
        (|o| o.max_connections = 4097, "max_connections"),
        (|o| o.receive_slots = 15, "receive_slots"),
        (|o| o.receive_slot_size = 127, "receive_slot_size"),
        (|o| o.send_area_size = 65535, "send_area_size"),
        (|o| o.send_area_size = u32::MAX, "send_area_size"),
    ];
    for (change, option) in changes {
        let mut bad = options();
        change(&mut bad);
        assert_eq!(Layout::new(&bad).unwrap_err().option, option);
    }
}

#[test]
fn entries_go_both_ways_in_order_and_wrap() {
    let (mut engine, mut client) = ends();
    let capacity = engine.layout().sq_capacity;
    for round in 0..3_u64 {
        for i in 0..u64::from(capacity) {
            let entry = SqEntry::new(SqOp::Disconnect, round, i);
            client.push_sq(&entry).unwrap().unwrap();
        }
        let one_more = SqEntry::new(SqOp::Disconnect, 0, 0);
        assert_eq!(client.push_sq(&one_more).unwrap(), Err(Full));
        assert!(engine.pop_sq().unwrap().is_none(), "not submitted yet");
        client.submit().unwrap();
        for i in 0..u64::from(capacity) {
            let entry = engine.pop_sq().unwrap().unwrap();
            assert_eq!((entry.connection, entry.cookie), (round, i));
        }
        assert!(engine.pop_sq().unwrap().is_none());
        assert_eq!(
            client.push_sq(&one_more).unwrap(),
            Err(Full),
            "not released yet"
        );
        engine.release().unwrap();
    }
    for slot in 0..16 {
        engine.push_cq(&fragment(slot)).unwrap();
    }
    assert!(client.pop_cq().unwrap().is_none(), "not published yet");
    engine.publish(true).unwrap();
    for slot in 0..16 {
        assert_eq!(client.pop_cq().unwrap().unwrap().slot, slot);
        client.push_return(slot).unwrap().unwrap();
    }
    client.submit_returns().unwrap();
    assert_eq!(engine.returns_pending().unwrap(), 16);
    for slot in 0..16 {
        assert_eq!(engine.pop_return().unwrap(), Some(slot));
    }
    assert_eq!(engine.pop_return().unwrap(), None);
}

#[test]
fn the_handle_is_rung_only_while_it_waits() {
    let (mut engine, mut client) = ends();
    engine.push_cq(&fragment(0)).unwrap();
    assert!(!engine.publish(true).unwrap(), "nobody waits");
    assert!(
        client.arm(RingFor::Urgent).unwrap().1,
        "there was one already"
    );
    client.pop_cq().unwrap().unwrap();
    assert_eq!(
        client.arm(RingFor::Urgent).unwrap(),
        (Cleared::Silent, false)
    );
    engine.push_cq(&fragment(1)).unwrap();
    assert!(engine.publish(true).unwrap());
    engine.push_cq(&fragment(2)).unwrap();
    assert!(!engine.publish(true).unwrap(), "rung already");
    assert!(!engine.publish(true).unwrap(), "nothing new");
    assert_eq!(client.armed_for().unwrap(), None);
    assert_eq!(client.arm(RingFor::Urgent).unwrap(), (Cleared::Rung, true));
    assert!(client.disarm().unwrap());
    assert!(!client.disarm().unwrap());
}

#[test]
fn what_is_lazy_rings_only_for_who_waits_for_all() {
    let (mut engine, mut client) = ends();
    let sent = CqEntry::new(CqKind::Sent, 1);
    assert!(!client.arm(RingFor::Urgent).unwrap().1);
    engine.push_cq(&sent).unwrap();
    assert!(!engine.publish(false).unwrap());
    assert_eq!(client.armed_for().unwrap(), Some(RingFor::Urgent));
    engine.push_cq(&fragment(0)).unwrap();
    assert!(engine.publish(true).unwrap(), "it rings for what matters");
    assert_eq!(client.pop_cq().unwrap().unwrap().kind, CqKind::Sent);
    assert_eq!(client.pop_cq().unwrap().unwrap().kind, CqKind::Fragment);

    // Armed for all.
    assert_eq!(client.arm(RingFor::All).unwrap(), (Cleared::Rung, false));
    engine.push_cq(&sent).unwrap();
    assert!(engine.publish(false).unwrap());
    client.pop_cq().unwrap().unwrap();

    // Armed for all later: before a lazy completion, and after it.
    assert!(!client.arm(RingFor::Urgent).unwrap().1);
    assert!(!client.arm_for_all().unwrap());
    assert_eq!(client.armed_for().unwrap(), Some(RingFor::All));
    engine.push_cq(&sent).unwrap();
    assert!(engine.publish(false).unwrap());
    client.pop_cq().unwrap().unwrap();
    assert!(!client.arm(RingFor::Urgent).unwrap().1);
    engine.push_cq(&sent).unwrap();
    assert!(!engine.publish(false).unwrap());
    assert!(client.arm_for_all().unwrap(), "there is one already");
    assert!(!client.arm_for_all().unwrap(), "armed so already");
}

#[test]
fn the_engine_is_rung_only_while_it_sleeps() {
    let (mut engine, mut client) = ends();
    let entry = SqEntry::new(SqOp::Disconnect, 1, 1);
    client.push_sq(&entry).unwrap().unwrap();
    assert!(!client.submit().unwrap(), "awake");
    assert!(engine.set_sleeping(true).unwrap(), "work came before");
    engine.pop_sq().unwrap().unwrap();
    assert!(!engine.set_sleeping(true).unwrap());
    client.push_sq(&entry).unwrap().unwrap();
    assert!(client.submit().unwrap());
    assert_eq!(engine.clear_bell(), Cleared::Rung);
    engine.pop_sq().unwrap().unwrap();

    engine.push_cq(&fragment(3)).unwrap();
    assert!(!engine.set_sleeping(true).unwrap());
    client.push_return(3).unwrap().unwrap();
    assert!(!client.submit_returns().unwrap(), "not wanted");
    assert!(engine.set_returns_wanted(true).unwrap(), "came before");
    assert!(engine.set_sleeping(true).unwrap(), "counts as work now");
    assert_eq!(engine.pop_return().unwrap(), Some(3));
    engine.push_cq(&fragment(3)).unwrap();
    client.push_return(3).unwrap().unwrap();
    assert!(client.submit_returns().unwrap());
    assert_eq!(engine.clear_bell(), Cleared::Rung);
    drop(client);
    assert_eq!(engine.clear_bell(), Cleared::Closed);
}

#[test]
fn hostile_indices_are_errors() {
    let store = |engine: &EngineSide, at: usize, value: u32| {
        let word = engine.region().atomic_u32(at).unwrap();
        word.store(value, Ordering::Relaxed);
    };
    for value in [u32::MAX, 1 << 31, 8192] {
        let (mut engine, _client) = ends();
        store(&engine, at::SQ_TAIL, value);
        assert!(matches!(engine.pop_sq(), Err(RingError::Index { .. })));
        assert!(engine.sq_pending().is_err());
        assert!(engine.set_sleeping(true).is_err());
        store(&engine, at::RETURNS_TAIL, value);
        assert!(matches!(engine.pop_return(), Err(RingError::Index { .. })));
        // A head in front of the tail claims that entries were taken before they were pushed.
        store(&engine, at::CQ_HEAD, 1 + value / 2);
        assert!(engine
            .push_offer(&CqEntry::new(CqKind::Offered, 0))
            .is_err());
    }
    // A tail that claims a full ring of garbage: each entry is judged for itself.
    let (mut engine, _client) = ends();
    store(&engine, at::SQ_TAIL, engine.layout().sq_capacity);
    assert!(matches!(engine.pop_sq(), Err(RingError::Entry(_))));
}

#[test]
fn a_slot_comes_back_once_and_only_when_lent() {
    let (mut engine, mut client) = ends();
    engine.push_cq(&fragment(5)).unwrap();
    assert!(engine.push_cq(&fragment(5)).is_err(), "lent already");
    assert!(engine.push_cq(&fragment(16)).is_err(), "no such slot");
    for slot in [5, 5, 16, u32::MAX] {
        client.push_return(slot).unwrap().unwrap();
    }
    client.submit_returns().unwrap();
    assert_eq!(engine.lent_slots(), 1);
    assert_eq!(engine.pop_return().unwrap(), Some(5));
    assert_eq!(engine.lent_slots(), 0);
    for slot in [5, 16, u32::MAX] {
        assert!(matches!(engine.pop_return(), Err(RingError::Slot(s)) if s == slot));
    }
}

#[test]
fn a_full_completion_ring_is_told_and_offers_leave_room() {
    let (mut engine, mut client) = ends();
    let offer = CqEntry::new(CqKind::Offered, 0);
    let mut offers = 0;
    while engine.push_offer(&offer).is_ok() {
        offers += 1;
    }
    assert!(offers >= Layout::MAX_OFFERS);
    let done = CqEntry::new(CqKind::Sent, 1);
    let reserved = 16 + engine.layout().max_operations() + 4 * 4;
    let position = (0..reserved)
        .map(|_| engine.push_cq(&done).unwrap())
        .last()
        .unwrap();
    assert!(matches!(engine.push_cq(&done), Err(PushError::Full)));
    engine.publish(true).unwrap();
    assert!(!engine.is_consumed(position).unwrap());
    while client.pop_cq().unwrap().is_some() {}
    assert!(!engine.is_consumed(position).unwrap(), "not released yet");
    client.release().unwrap();
    assert!(engine.is_consumed(position).unwrap());
    engine.push_offer(&offer).unwrap();
}

#[test]
fn ranges_must_lie_in_their_part() {
    let (engine, _client) = ends();
    let layout = *engine.layout();
    assert!(engine.send_slice(layout.send.offset, 1).is_ok());
    assert!(engine.send_slice(layout.send.offset - 1, 1).is_err());
    assert!(engine.send_slice(layout.rdma.offset - 1, 2).is_err());
    assert!(engine.send_slice(u64::MAX, 2).is_err());
    assert!(engine.rdma_slice(layout.rdma.offset, 16384).is_ok());
    assert!(engine.rdma_slice(layout.rdma.offset, 16385).is_err());
    assert!(engine.rdma_slice(layout.send.offset, 1).is_err());
    assert_eq!(engine.recv_slot(15).unwrap().len(), 200);
    assert!(engine.recv_slot(16).is_err());
}

#[test]
fn rdma_arrays_are_checked() {
    let (engine, client) = ends();
    let layout = *engine.layout();
    let at = layout.send.offset;
    let good = Segment {
        offset: layout.rdma.offset + 8192,
        length: 8192,
    };
    let descriptor = Descriptor {
        offset: 7,
        token: 8,
        length: 9,
    };
    let entry = SqEntry {
        offset: at,
        length: 32,
        segments: 1,
        descriptors: 1,
        ..SqEntry::new(SqOp::RdmaWrite, 1, 1)
    };
    let write = |segment: Segment| {
        let region = client.region();
        region.write(at as usize, &segment.encode()).unwrap();
        let next = at as usize + 16;
        region.write(next, &descriptor.encode()).unwrap();
    };
    write(good);
    let (segments, descriptors) = engine.rdma_arrays(&entry).unwrap();
    assert_eq!((segments, descriptors), (vec![good], vec![descriptor]));
    for (offset, length) in [
        (good.offset, 0),
        (good.offset + 1, 8192),
        (good.offset, u64::MAX),
        (0, 1),
        (u64::MAX, 1),
    ] {
        write(Segment { offset, length });
        assert!(matches!(
            engine.rdma_arrays(&entry),
            Err(RingError::Range { .. })
        ));
    }
    let outside = SqEntry {
        offset: layout.rdma.offset,
        ..entry
    };
    assert!(engine.rdma_arrays(&outside).is_err());
}

#[test]
fn connection_records_are_found_by_their_id() {
    let (engine, client) = ends();
    let id = 77 << 16 | 3;
    let record = ConnectionRecord {
        connection: id,
        fabric: 1,
        local: "127.0.0.1:5445".parse().unwrap(),
        peer: "[fe80::1%7]:1024".parse().unwrap(),
        max_send_size: 1,
        max_receive_size: 2,
        max_fragmented_send_size: 3,
        max_fragmented_receive_size: 4,
        max_read_write_size: 5,
        max_rdma_reads: 6,
        receive_credit_max: 7,
    };
    assert!(client.connection(id).unwrap().is_none());
    engine.write_connection(&record).unwrap();
    let counters = ConnectionCounters {
        send_credits: 1,
        rdma_write_bytes: u64::MAX,
        ..ConnectionCounters::default()
    };
    engine.write_counters(id, &counters).unwrap();
    assert_eq!(client.connection(id).unwrap(), Some((record, counters)));
    assert!(client.connection(78 << 16 | 3).unwrap().is_none());
    assert!(client.connection(77 << 16 | 4).unwrap().is_none());
    let outside = ConnectionRecord {
        connection: 4,
        ..record
    };
    assert!(engine.write_connection(&outside).is_err());
}

#[test]
fn idle_memory_is_given_back() {
    let (mut engine, mut client) = ends();
    let empty = engine.committed_bytes().unwrap();
    let layout = *engine.layout();
    let write = |at: u64| client.region().write(at as usize, &[1; 4096]).unwrap();
    write(layout.send.offset);
    write(layout.rdma.offset);
    engine.recv_slot(0).unwrap().write(0, &[1; 200]).unwrap();
    engine.push_cq(&fragment(0)).unwrap();
    let used = engine.committed_bytes().unwrap();
    engine.punch_idle().unwrap();
    assert_eq!(engine.committed_bytes().unwrap(), used, "a slot is lent");
    client.push_return(0).unwrap().unwrap();
    client.submit_returns().unwrap();
    engine.pop_return().unwrap();
    engine.punch_idle().unwrap();
    let idle = engine.committed_bytes().unwrap();
    assert!(idle < used);
    assert!(idle > empty, "the RDMA buffers stay");
    assert_eq!(
        engine.rdma_slice(layout.rdma.offset, 1).unwrap().to_vec(),
        [1]
    );
}

#[test]
fn a_foreign_area_is_refused() {
    let (engine, _client) = ends();
    let (bell, _other) = Bell::pair().unwrap();
    let fd = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let clone = |engine: &EngineSide| fd(engine.fds()[0]);
    let bell = fd(std::os::fd::AsFd::as_fd(&bell));
    let word = engine.region().atomic_u32(at::ABI).unwrap();
    word.store(ABI + 1, Ordering::Relaxed);
    let error = ClientSide::new(&options(), clone(&engine), bell.try_clone().unwrap());
    assert!(matches!(error, Err(RingError::Header { .. })));
    let larger = AreaOptions {
        rdma_buffers: 3,
        ..options()
    };
    let error = ClientSide::new(&larger, clone(&engine), bell);
    assert!(matches!(error, Err(RingError::Os(..))));
}

/// Two threads that sleep and wake each other: a lost wake-up hangs the test.
#[test]
fn no_wake_up_is_lost() {
    const TURNS: u64 = 20_000;
    let (mut engine, mut client) = ends();
    let wait = |bell: std::os::fd::BorrowedFd<'_>| {
        let mut poll = [rustix::event::PollFd::new(
            &bell,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, None).unwrap();
    };
    let worker = std::thread::spawn(move || {
        let mut served = 0;
        while served < TURNS {
            while let Some(entry) = engine.pop_sq().unwrap() {
                assert_eq!(entry.cookie, served);
                served += 1;
                let mut done = CqEntry::new(CqKind::Sent, entry.connection);
                done.cookie = entry.cookie;
                engine.push_cq(&done).unwrap();
            }
            engine.release().unwrap();
            engine.publish(true).unwrap();
            if served < TURNS && !engine.set_sleeping(true).unwrap() {
                wait(engine.bell());
                engine.clear_bell();
            }
        }
    });
    let (mut sent, mut done) = (0, 0);
    while done < TURNS {
        while sent < TURNS && sent - done < 1 + sent % 7 {
            let entry = SqEntry::new(SqOp::Disconnect, 1, sent);
            client.push_sq(&entry).unwrap().unwrap();
            sent += 1;
        }
        client.submit().unwrap();
        while let Some(entry) = client.pop_cq().unwrap() {
            assert_eq!(entry.cookie, done);
            done += 1;
        }
        client.release().unwrap();
        if done < sent && !client.arm(RingFor::Urgent).unwrap().1 {
            wait(client.bell());
        }
    }
    worker.join().unwrap();
}

/// Two threads and memory of this process: what Miri can look at. (Every order of a few entries
/// is looked at by `loom/`.)
#[test]
fn two_threads_pass_entries() {
    const PLACE: RingPlace = RingPlace {
        name: "the ring",
        entries: 1024,
        capacity: 4,
        tail: 0,
        head: 128,
    };
    const COUNT: u64 = if cfg!(miri) { 60 } else { 10_000 };
    let region = Region::anonymous(4096).unwrap();
    let mut producer = Producer::<64>::new(&region, PLACE).unwrap();
    let mut consumer = Consumer::<64>::new(&region, PLACE).unwrap();
    let writer = std::thread::spawn(move || {
        for number in 0..COUNT {
            let mut entry = [0; 64];
            entry[..8].copy_from_slice(&number.to_ne_bytes());
            entry[56..].copy_from_slice(&number.to_ne_bytes());
            while producer.push(&entry).unwrap().is_err() {
                std::thread::yield_now();
            }
            producer.publish().unwrap();
        }
    });
    for number in 0..COUNT {
        let entry = loop {
            match consumer.pop().unwrap() {
                Some(entry) => break entry,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(entry[..8], number.to_ne_bytes());
        assert_eq!(entry[56..], number.to_ne_bytes());
        consumer.release().unwrap();
    }
    writer.join().unwrap();
}
