//! Numbers of signing and encryption on SMB Direct: `smbdirect bench --smb --protection` on an engine
//! and a patched smbd of its own.
//!
//! `make bench-smb` runs it; it tests nothing. Options for the bench are in SMBDIRECT_BENCH_OPTIONS.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::fs;
use std::process::Command;

use smb::{rdma, start, tcp};

#[test]
fn protection() {
    let Some(server) = start("protection") else {
        return;
    };
    let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let before = load();
    let extra = std::env::var("SMBDIRECT_BENCH_OPTIONS").unwrap_or_default();
    let processes = [&server.engine, &server.smbd];
    let processes = processes.map(|it| it.as_ref().expect("was started").pid().to_string());
    let status = Command::new(common::program())
        .args(["bench", "--protection", "--smb", "//127.0.0.1/share"])
        .args(["--user", &samba::user()])
        .args(["--tcp", &tcp(&server).to_string()])
        .args(["--rdma", &rdma(&server).to_string()])
        .args(["--cpu-of", &processes[0], "--cpu-of", &processes[1]])
        .args(extra.split_whitespace())
        .env("SMBDIRECT_PASSWORD", smb::PASSWORD)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    println!("load before: {before}load after:  {}", load());
}
