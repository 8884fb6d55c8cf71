//! What the fuzzers do with their bytes. Each body decodes a list of operations, does them, and
//! asserts what has to hold whatever they were.
//!
//! The targets of cargo-fuzz (`fuzz/fuzz_targets`) and the test `tests/fuzz.rs` are thin covers over
//! these. Bodies use the crate as any other crate could.

pub(crate) mod capi;
pub(crate) mod control;
pub(crate) mod handle;
pub(crate) mod input;
pub(crate) mod iwarp;
pub(crate) mod lab;
pub(crate) mod router;
pub(crate) mod smbd;

/// What takes the bytes of a fuzzer.
pub(crate) type Body = fn(&[u8]);

/// A body by its name, which is also that of its target and of its directory of seeds.
pub(crate) const BODIES: [(&str, Body); 7] = [
    ("iwarp", iwarp::run),
    ("smbd_pair", smbd::run_pair),
    ("smbd_hostile", smbd::run_hostile),
    ("router", router::run),
    ("control", control::run),
    ("handle", handle::run),
    ("capi", capi::run),
];
