//! Random lists of operations, from seeds, against the invariants that `Pair` asserts.

use std::time::Duration;

use super::pair::Pair;
use super::{pattern, Params, MSEC, SECOND};

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn params(rng: &mut Rng) -> Params {
    let counts = [1, 2, 3, 4, 5, 7, 10, 32, 255];
    Params {
        receive_credit_max: rng.pick(&counts),
        send_credit_target: rng.pick(&counts),
        max_send_size: rng.pick(&[128, 136, 512, 1024, 1364, 8136]),
        max_receive_size: rng.pick(&[128, 136, 512, 1024, 1364, 8192]),
        send_window: rng.pick(&[1, 2, 8, 256]),
        ..Params::default()
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let (a, p) = (params(&mut rng), params(&mut rng));
    let pools = [0; 2].map(|_: usize| rng.pick(&[1, 2, 3, 8, 20, 300, 300]));
    let mut pair = Pair::established(&a, &p, pools);
    pair.delay = [0; 2].map(|_: u64| Duration::from_micros(rng.pick(&[0, 1, 50, 1000, 20_000])));
    for _ in 0..rng.below(60) {
        let end = rng.below(2);
        let now = pair.now;
        match rng.below(10) {
            0..=4 => {
                let limit = rng.pick(&[1, 100, 2000, 20_000]);
                let length = 1 + rng.below(limit);
                let token = (rng.below(4) == 0).then_some(seed as u32);
                pair.ends[end].queue(now, pattern(length, length as u8), token);
            }
            5 => pair.ends[end].holds ^= true,
            6 => pair.ends[end].release(now),
            7 => pair.ends[end]
                .conn
                .set_receive_limit(1 + rng.below(300) as u16),
            _ => {
                let micros = rng.below(30_000) as u64;
                pair.drive_for(Duration::from_micros(micros));
            }
        }
        pair.pump();
    }
    let limit = pair.now + 4000 * SECOND;
    while !pair.is_delivered() {
        for end in 0..2 {
            pair.ends[end].holds = false;
            let now = pair.now;
            pair.ends[end].release(now);
        }
        pair.drive_for(10 * MSEC);
        assert!(
            pair.now < limit,
            "seed {seed}: stuck\n{a:?}\n{p:?}\n{}",
            pair.state()
        );
        assert!(
            pair.ends.iter().all(|e| e.ended.is_none()),
            "seed {seed}\n{}",
            pair.state()
        );
    }
    pair.assert_delivered();

    // Books: what one side has granted is what the other has got, once nothing is on the wire.
    pair.drive_for(5 * SECOND);
    let [x, y] = [0, 1].map(|i| *pair.ends[i].conn.stats());
    if x.pdus_sent == y.pdus_received && y.pdus_sent == x.pdus_received {
        assert_eq!(x.credits_granted, y.credits_received, "seed {seed}");
        assert_eq!(y.credits_granted, x.credits_received, "seed {seed}");
        for (end, other) in [(0, 1), (1, 0)] {
            let held = pair.ends[end].conn.send_credits();
            let given = pair.ends[other].conn.receive_credits();
            assert_eq!(held, u32::from(given), "seed {seed}");
        }
    }
    let before = pair.carried;
    pair.drive_for(20 * SECOND);
    let carried = pair.carried[0] + pair.carried[1] - before[0] - before[1];
    assert!(
        carried <= 50,
        "seed {seed}: {carried} messages in 20 idle s\n{}",
        pair.state()
    );
}

/// 400, or what SMBDIRECT_TEST_SEEDS says for a longer search.
fn seeds() -> u64 {
    std::env::var("SMBDIRECT_TEST_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(400)
}

#[test]
fn random_operations_deliver_everything() {
    for seed in 0..seeds() {
        run(seed);
    }
}

#[test]
fn random_disconnects_end_once() {
    for seed in 1000..1200 {
        let mut rng = Rng::new(seed);
        let (a, p) = (params(&mut rng), params(&mut rng));
        let mut pair = Pair::new(&a, &p, [20, 20]);
        pair.connect();
        let at = rng.below(40);
        for step in 0..60 {
            let now = pair.now;
            if step == at {
                let end = rng.below(2);
                match rng.below(3) {
                    0 => pair.ends[end].conn.close(now),
                    1 => pair.is_cut = true,
                    _ => pair.ends[end].conn.handle_disconnected(now),
                }
            }
            for end in &mut pair.ends {
                if end.negotiated.is_some() && end.conn.end_reason().is_none() && step < at {
                    end.queue(now, pattern(1 + rng.below(5000), 0), None);
                }
            }
            pair.step();
        }
        // The ends of a connection always notice when the other one is gone.
        pair.is_cut = true;
        pair.drive_until("both ended", |p| p.ends.iter().all(|e| e.ended.is_some()));
    }
}

#[test]
fn random_bytes_never_panic() {
    use super::{negotiated, passive, Message};
    let now = std::time::Instant::now();
    for seed in 0..3000 {
        let mut rng = Rng::new(seed);
        let mut end = if seed % 4 == 0 {
            passive(&Params::default(), 50, now)
        } else {
            negotiated(&Params::default(), 10, now)
        };
        for _ in 0..20 {
            let length = rng.below(64);
            let extremes = [0, 0, 1, 8, 24, 32, 100, 0x7f, 0xff];
            let mut bytes: Vec<u8> = (0..length)
                .map(|_| rng.pick(&[0, 0, 0, 0, 1, 24, 0xff, 0x80]))
                .collect();
            if let Some(first) = bytes.first_mut() {
                *first = rng.pick(&extremes);
            }
            if end.posted > 0 {
                end.receive(now, Message::plain(bytes));
            }
        }
        if let Some((reason, _)) = end.ended {
            assert!(!reason.to_string().is_empty());
        }
    }
}
