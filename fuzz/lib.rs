//! The bodies for the targets.

mod bodies;

// The pair of machines comes from the tests of the crate, which name it like this.
use smbdirect::{proto, wire};

/// Runs the body of that name.
pub fn run(name: &str, bytes: &[u8]) {
    let mut bodies = bodies::BODIES.iter();
    let (_, body) = bodies.find(|(body, _)| *body == name).expect("a body");
    body(bytes);
}
