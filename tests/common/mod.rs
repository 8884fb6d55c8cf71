//! What the tests of the built library share.
#![allow(dead_code)] // Each test uses a part of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[allow(clippy::duplicate_mod)]
#[path = "target.rs"]
pub(crate) mod target;

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The `smbdirect` program.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_smbdirect"))
}

/// The shared library that was built together with this test.
pub(crate) fn library() -> PathBuf {
    let directory = program().parent().unwrap();
    let path = directory.join("deps/libsmbdirect.so");
    assert!(path.exists(), "{} is not there", path.display());
    path
}

/// Tells that a test was not made.
pub(crate) fn skip(name: &str, reason: &str) {
    println!("SKIP: {name}: {reason}");
}

/// Tells that a test wants an RDMA device, which is not here: `tests/devices.rs` makes it in a guest,
/// and counts it or tells why it could not.
pub(crate) fn leave_to_guest(name: &str) {
    let is_wanted = std::env::var_os("SMBDIRECT_TEST_RDMA").is_some();
    assert!(!is_wanted, "{name}: no RDMA device with an address");
    println!("ELSEWHERE: {name}: no RDMA device here, see tests/devices.rs");
}

/// Whether a tool cannot be started.
pub(crate) fn tool_is_missing(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
}
