//! The bodies of the fuzzers, with their seeds and a short round of changed seeds that is the same
//! in every run. `make fuzz` runs them for long, guided by coverage.

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::path::{Path, PathBuf};

use bodies::{Body, BODIES};
// The pair of machines comes from the tests of the crate, which name it like this.
use smbdirect::{proto, wire};

/// Inputs made of each body's seeds. SMBDIRECT_FUZZ_ROUNDS asks for more.
const ROUNDS: u64 = 700;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// A seed, changed here and there; or bytes of its own.
fn vary(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = if random.below(4) == 0 {
        (0..random.below(400))
            .map(|_| random.below(256) as u8)
            .collect()
    } else {
        seeds[random.below(seeds.len())].clone()
    };
    for _ in 0..random.below(8) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.below(256) as u8),
            _ => {
                let tail = bytes[at..].to_vec();
                bytes.extend(tail);
                bytes.truncate(4096);
            }
        }
    }
    bytes
}

/// Runs a body on one input in such a way that a failure tells the input.
fn try_one(name: &str, body: Body, bytes: &[u8]) {
    let result = std::panic::catch_unwind(|| body(bytes));
    if let Err(panic) = result {
        let path = std::env::temp_dir().join(format!("smbdirect-fuzz-{name}-failed"));
        let _ = std::fs::write(&path, bytes);
        eprintln!("{name}: the input is in {}", path.display());
        std::panic::resume_unwind(panic);
    }
}

fn run(name: &str) {
    let (name, body) = BODIES.into_iter().find(|(body, _)| *body == name).unwrap();
    let seeds = seeds(name);
    for seed in &seeds {
        try_one(name, body, seed);
    }
    let rounds = std::env::var("SMBDIRECT_FUZZ_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().expect("a number"));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        try_one(name, body, &vary(&mut random, &seeds));
    }
}

#[test]
fn iwarp() {
    run("iwarp");
}

#[test]
fn smbd_pair() {
    run("smbd_pair");
}

#[test]
fn smbd_hostile() {
    run("smbd_hostile");
}

#[test]
fn router() {
    run("router");
}

#[test]
fn control() {
    run("control");
}

#[test]
fn handle() {
    run("handle");
}

#[test]
fn capi() {
    run("capi");
}

/// An input that once failed, or that somebody has: SMBDIRECT_FUZZ_INPUT=BODY:FILE.
#[test]
fn one_input() {
    let Ok(which) = std::env::var("SMBDIRECT_FUZZ_INPUT") else {
        return;
    };
    let (name, path) = which.split_once(':').expect("BODY:FILE");
    let (name, body) = BODIES.into_iter().find(|(body, _)| *body == name).unwrap();
    try_one(name, body, &std::fs::read(path).unwrap());
}

/// Every body has a target of cargo-fuzz, and the other way round.
#[test]
fn targets_are_the_bodies() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    targets.sort();
    let mut bodies = BODIES.map(|(name, _)| name.to_owned());
    bodies.sort();
    assert_eq!(targets, bodies);
}
