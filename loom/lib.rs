//! The rings between engine and handle (`src/ring/spsc.rs`, `src/ring/wake.rs`), compiled with the
//! atomics of [loom](https://docs.rs/loom) and with memory that notices two who touch an entry at
//! once. `make loom` runs it.
#![cfg(test)]

/// What stands for the crate's shared memory: two indices and a flag, and cells for the entries.
mod mem {
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicU32;

    /// Where the words are.
    pub(crate) const TAIL: usize = 0;
    pub(crate) const HEAD: usize = 4;
    pub(crate) const FLAG: usize = 8;
    /// Where entries begin, and how many there are.
    pub(crate) const ENTRIES: usize = 64;
    pub(crate) const CAPACITY: usize = 2;

    #[derive(Debug)]
    pub(crate) struct Region {
        words: [AtomicU32; 3],
        entries: Vec<UnsafeCell<[u8; 4]>>,
    }

    impl Region {
        pub(crate) fn new() -> Self {
            Self {
                words: [AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)],
                entries: (0..CAPACITY).map(|_| UnsafeCell::new([0; 4])).collect(),
            }
        }

        pub(crate) fn len(&self) -> usize {
            ENTRIES + 4 * CAPACITY
        }

        pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), &'static str> {
            let cell = &self.entries[(at - ENTRIES) / 4];
            // SAFETY: loom reports whoever writes at the same time.
            cell.with(|entry| bytes.copy_from_slice(unsafe { &*entry }));
            Ok(())
        }

        pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> Result<(), &'static str> {
            let cell = &self.entries[(at - ENTRIES) / 4];
            // SAFETY: as above.
            cell.with_mut(|entry| unsafe { (*entry).copy_from_slice(bytes) });
            Ok(())
        }

        pub(crate) fn atomic_u32(&self, at: usize) -> Result<&AtomicU32, &'static str> {
            Ok(&self.words[at / 4])
        }
    }
}

#[allow(dead_code, unreachable_pub)]
mod ring;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use mem::Region;
use ring::spsc::{Consumer, Producer, RingPlace};
use ring::RingError;

const PLACE: RingPlace = RingPlace {
    name: "the ring",
    entries: mem::ENTRIES as u64,
    capacity: mem::CAPACITY as u32,
    tail: mem::TAIL,
    head: mem::HEAD,
};

fn ends() -> (Arc<Region>, Producer<4>, Consumer<4>) {
    let region = Arc::new(Region::new());
    let producer = Producer::new(&region, PLACE).unwrap();
    let consumer = Consumer::new(&region, PLACE).unwrap();
    (region, producer, consumer)
}

/// Explores all orders with at most this many preemptions: 3 find nearly everything (loom's
/// documentation), and more take minutes.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Entries come whole, once and in order, and no place is used again before its entry was copied
/// out: more of them than the ring has room for.
#[test]
fn entries_come_whole_and_in_order() {
    check(|| {
        const COUNT: u32 = 4;
        let (_, mut producer, mut consumer) = ends();
        let writer = thread::spawn(move || {
            let mut next = 0_u32;
            while next < COUNT {
                match producer.push(&next.to_ne_bytes()).unwrap() {
                    Ok(()) => {
                        next += 1;
                        producer.publish().unwrap();
                    }
                    Err(_) => thread::yield_now(),
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            match consumer.pop().unwrap() {
                Some(entry) => {
                    assert_eq!(u32::from_ne_bytes(entry), next);
                    next += 1;
                    consumer.release().unwrap();
                }
                None => thread::yield_now(),
            }
        }
        writer.join().unwrap();
    });
}

/// A batch is published at once and released at once.
#[test]
fn batches_too() {
    check(|| {
        let (_, mut producer, mut consumer) = ends();
        let writer = thread::spawn(move || {
            for batch in 0..2_u32 {
                while producer.free().unwrap() < 2 {
                    thread::yield_now();
                }
                for entry in [2 * batch, 2 * batch + 1] {
                    producer.push(&entry.to_ne_bytes()).unwrap().unwrap();
                }
                producer.publish().unwrap();
            }
            producer
        });
        let mut next = 0_u32;
        while next < 4 {
            while let Some(entry) = consumer.pop().unwrap() {
                assert_eq!(u32::from_ne_bytes(entry), next);
                next += 1;
            }
            consumer.release().unwrap();
            thread::yield_now();
        }
        let mut producer = writer.join().unwrap();
        assert!(producer.is_consumed(4).unwrap());
    });
}

type Announce = fn(&mut Producer<4>, &AtomicU32) -> Result<bool, RingError>;
type SetSleeping = fn(&mut Consumer<4>, &AtomicU32) -> Result<bool, RingError>;

/// One side submits two entries and rings if told to; the other takes them, and sleeps until it is
/// rung when there are none. A wake-up that is lost is a deadlock, which loom finds.
fn sleeper(announce: Announce, set_sleeping: SetSleeping) {
    sleeper_of([announce, announce], set_sleeping);
}

/// The same with a way to announce for each of the two.
fn sleeper_of(announce: [Announce; 2], set_sleeping: SetSleeping) {
    check(move || {
        let (region, mut producer, mut consumer) = ends();
        let bell = Arc::new(Notify::new());
        let writer = {
            let (region, bell) = (region.clone(), bell.clone());
            thread::spawn(move || {
                let flag = region.atomic_u32(mem::FLAG).unwrap();
                for (entry, announce) in (0_u32..).zip(announce) {
                    producer.push(&entry.to_ne_bytes()).unwrap().unwrap();
                    if announce(&mut producer, flag).unwrap() {
                        bell.notify();
                    }
                }
            })
        };
        let flag = region.atomic_u32(mem::FLAG).unwrap();
        let mut next = 0;
        loop {
            while let Some(entry) = consumer.pop().unwrap() {
                assert_eq!(u32::from_ne_bytes(entry), next);
                next += 1;
            }
            consumer.release().unwrap();
            if next == 2 {
                break;
            }
            if !set_sleeping(&mut consumer, flag).unwrap() {
                bell.wait();
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost() {
    sleeper(ring::announce, ring::set_sleeping);
}

/// The same without the fence of either side: loom has to find the order that hangs, or the test
/// above shows nothing.
#[test]
#[should_panic(expected = "deadlock")]
fn without_the_producers_fence_one_is() {
    let announce =
        |ring: &mut Producer<4>, flag: &AtomicU32| Ok(ring.publish()? && ring::take_flag(flag));
    sleeper(announce, ring::set_sleeping);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_consumers_fence_one_is() {
    let set_sleeping = |ring: &mut Consumer<4>, flag: &AtomicU32| {
        flag.store(1, Ordering::Relaxed);
        Ok(ring.pending()? > 0)
    };
    sleeper(ring::announce, set_sleeping);
}

/// Who sleeps for everything is woken by what is announced lazily, too.
#[test]
fn lazy_entries_wake_who_sleeps_for_all() {
    sleeper(ring::announce_lazily, |ring, flag| {
        ring::sleep_for(ring, flag, ring::ALL)
    });
}

/// Who sleeps for what is urgent finds what was announced lazily before it.
#[test]
fn an_urgent_entry_brings_lazy_ones_along() {
    sleeper_of([ring::announce_lazily, ring::announce], |ring, flag| {
        ring::sleep_for(ring, flag, ring::URGENT)
    });
}

/// Who has gone to sleep for what is urgent and then waits for everything misses nothing that was
/// announced in between.
#[test]
fn a_change_of_mind_misses_nothing() {
    for announce in [
        [ring::announce_lazily as Announce, ring::announce_lazily],
        [ring::announce_lazily, ring::announce],
        [ring::announce, ring::announce_lazily],
    ] {
        sleeper_of(announce, |ring, flag| {
            Ok(ring::sleep_for(ring, flag, ring::URGENT)? || ring::sleep_for_all(ring, flag)?)
        });
    }
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_of_a_change_of_mind_one_is() {
    sleeper(ring::announce_lazily, |ring, flag| {
        if ring::sleep_for(ring, flag, ring::URGENT)? {
            return Ok(true);
        }
        let relaxed = Ordering::Relaxed;
        let changed = flag.compare_exchange(ring::URGENT, ring::ALL, relaxed, relaxed);
        Ok(changed.is_ok() && ring.pending()? > 0)
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_lazy_entry_alone_does_not_wake_who_sleeps_for_what_is_urgent() {
    sleeper(ring::announce_lazily, |ring, flag| {
        ring::sleep_for(ring, flag, ring::URGENT)
    });
}

/// Without Release and Acquire on the index an entry is read while it is written; loom's cells
/// notice. Shows that they do.
#[test]
#[should_panic]
fn a_relaxed_index_is_noticed() {
    check(|| {
        let (region, mut producer, _) = ends();
        let writer = {
            let region = region.clone();
            thread::spawn(move || {
                producer.push(&7_u32.to_ne_bytes()).unwrap().unwrap();
                let tail = region.atomic_u32(mem::TAIL).unwrap();
                tail.store(1, Ordering::Relaxed);
            })
        };
        let tail = region.atomic_u32(mem::TAIL).unwrap();
        if tail.load(Ordering::Relaxed) == 1 {
            region.read(mem::ENTRIES, &mut [0; 4]).unwrap();
        }
        writer.join().unwrap();
    });
}
