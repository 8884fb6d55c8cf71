//! Oplock and lease breaks over SMB Direct: Samba's own smbtorture, through `smbdirect proxy`.
//!
//! Each of these tests opens a file with an oplock or a lease and does something that breaks it, on
//! a second connection with a process of its own (`2` below) or on the same one. The break has to
//! come by SMB Direct, as the client has nothing else, and so has what answers it; what broke it
//! has to wait for that.

mod common;
#[path = "common/samba.rs"]
mod samba;

use std::process::{Command, Stdio};

use common::{skip, tool_is_missing};
use samba::{samba, Server};

/// How often a test is tried: smbtorture waits no longer than a second for a break.
const TRIES: usize = 3;

/// Runs tests of smbtorture, each of which has to pass and to come by so many SMB Direct connections.
fn torture(name: &str, tests: &[(&str, u64)]) {
    let Some(bin) = samba(name) else {
        return;
    };
    if tool_is_missing("smbtorture") {
        let reason = "smbtorture is not installed (Debian: samba-testsuite)";
        let strict = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!strict, "{name}: {reason}");
        return skip(name, reason);
    }
    let server = Server::start(bin, "");
    server.add_user("secret");
    let attached = || {
        let status = server.status();
        let count = &status["engine"]["counters"]["connections_attached"];
        count.as_u64().expect("a count")
    };
    let run = |test: &str, connections: u64| {
        let before = attached();
        let output = Command::new("smbtorture")
            .args(["//127.0.0.1/share", "--configfile=/dev/null", "-p"])
            .arg(server.proxy_port.to_string())
            .arg(format!("-U{}%secret", samba::user()))
            .args(["--target=samba3", "--maximum-runtime=120", test])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let came = attached() - before;
        server.wait_for_baseline();
        if !output.status.success() || !said.contains("success: ") {
            return Err(format!("{}\n{said}", output.status));
        }
        assert_eq!(came, connections, "{test}");
        Ok(())
    };
    for &(test, connections) in tests {
        let mut outcome = run(test, connections);
        for _ in 1..TRIES {
            outcome = outcome.or_else(|_| run(test, connections));
        }
        outcome.unwrap_or_else(|why| panic!("{test}: {why}"));
    }
    // What smbd says when nobody acknowledges a break in time.
    let log = server.read("smbd.log");
    assert!(!log.contains("break failed"), "{log}");
}

#[test]
fn oplock_breaks() {
    let tests = [
        ("smb2.oplock.exclusive5", 2), // down to level II by a second open
        ("smb2.oplock.batch3", 2),     // answered with a close
        ("smb2.oplock.batch5", 2),     // batch to level II, acknowledged
        ("smb2.oplock.batch10", 2),    // level II to none by a write, not to be acknowledged
        ("smb2.oplock.brl2", 1),       // by a byte range lock
    ];
    torture("oplock_breaks", &tests);
}

#[test]
fn lease_breaks() {
    let tests = [
        ("smb2.lease.breaking1", 1),  // another open while the break is under way
        ("smb2.lease.breaking4", 1),  // an overwrite that waits for the acknowledgement
        ("smb2.lease.v2_epoch2", 1),  // epochs over two breaks
        ("smb2.lease.multibreak", 1), // several breaks in a row
        ("smb2.lease.v2_complex2", 2), // two clients, two leases
    ];
    torture("lease_breaks", &tests);
}
