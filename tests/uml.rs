//! An unmodified Linux kernel as the client: `mount -t cifs -o rdma` in a User-mode Linux guest.
//!
//! There are two beds: engine and smbd on the host at the other end of a tap, and everything in the
//! guest. The checks are shell functions in `tests/uml/checks.sh`.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/uml.rs"]
mod uml;

use std::collections::BTreeSet;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use common::skip;
use samba::{send_signal, Options, Server};
use uml::{
    isolated, kernel_and_tools, make_tap, parts, smb_conf, smb_conf_listening, Bed, Ended, Guest,
    MORE_ADDRESSES, PASSWORD, SERVER, VERBS,
};

/// Runs a set of checks with the server on the host.
fn over_a_tap(test: &str, set: &str) {
    let Some(parts) = parts(test) else { return };
    if !isolated(test) {
        return;
    }
    if let Err(reason) = make_tap() {
        return skip(test, &reason);
    }
    let global = smb_conf();
    let options = Options {
        global: &global,
        ..Options::default()
    };
    try_often(|passed| {
        let mut server = Server::start_with(parts.samba, &options);
        server.add_user(PASSWORD);
        let settings = [
            ("TCP_PORT", server.tcp_port.to_string()),
            ("PASSED", passed.join(" ")),
        ];
        let guest = Guest::start(&parts, Bed::Tap, set, &settings);
        guest.finish(|question| answer(&mut server, question))
    });
}

/// Runs a set of checks with the server in the guest.
fn within_a_guest(test: &str, set: &str) {
    within_a_guest_with(test, set, &[]);
}

/// The same with more settings.
fn within_a_guest_with(test: &str, set: &str, settings: &[(&str, String)]) {
    in_bed(test, Bed::Guest, set, settings);
}

/// Runs a set of checks over RDMA devices of the guest, `rxe` or `siw`: the client has one, and the
/// server, whose engine listens with `listen`, has the other one.
fn over_verbs(test: &str, device: &str, listen: &str, set: &str, more: &[(&str, String)]) {
    if kernel_and_tools(test, &VERBS).is_none() {
        return;
    }
    let mut settings = vec![
        ("FABRIC", device.to_owned()),
        ("ENGINE_OPTIONS", listen.to_owned()),
        ("SMB_CONF", smb_conf_listening("")),
    ];
    settings.extend_from_slice(more);
    in_bed(test, Bed::Verbs, set, &settings);
}

fn in_bed(test: &str, bed: Bed, set: &str, settings: &[(&str, String)]) {
    let Some(parts) = parts(test) else { return };
    if !isolated(test) {
        return;
    }
    try_often(|passed| {
        let mut settings = settings.to_vec();
        settings.push(("PASSED", passed.join(" ")));
        let guest = Guest::start(&parts, bed, set, &settings);
        guest.finish(|question| Err(format!("nobody answers '{question}'")))
    });
}

/// How many guests may hang one after the other in the same check.
const MOST_HANGS: u32 = 12;

/// Linux 6.12 hangs now and then when its connection is cut under load (`tests/uml/README.md`); then
/// there is a new guest for the checks that are left. How often depends on the machine and on what
/// is cut, so it is counted anew once a check has passed.
fn try_often(mut attempt: impl FnMut(&[String]) -> Ended) {
    let (mut passed, mut hangs) = (Vec::new(), 0);
    loop {
        let ended = attempt(&passed);
        if !ended.passed.is_empty() {
            hangs = 0;
        }
        passed.extend(ended.passed);
        if !ended.hangs {
            break;
        }
        hangs += 1;
        assert!(
            hangs < MOST_HANGS,
            "the client hangs again and again; passed: {passed:?}"
        );
    }
    assert!(!passed.is_empty(), "nothing was checked");
    println!("{}: {}", passed.len(), passed.join(" "));
}

/// What `server` of `tests/uml/server.sh` asks for.
fn answer(server: &mut Server, question: &str) -> Result<String, String> {
    match question.split_once(' ').unwrap_or((question, "")) {
        ("counters", _) => Ok(counters(server)),
        ("sum", file) => sum(server, file),
        ("kill-child", _) => {
            for owner in owners(server)? {
                send_signal(owner, Signal::KILL);
            }
            Ok(String::new())
        }
        ("end-channel", which) => end_channel(server, which, &[]),
        ("cut-channel", which) => end_channel(server, which, &["--abort"]),
        ("restart-smbd", _) => {
            server.restart_smbd();
            Ok(String::new())
        }
        ("pause-engine", _) => {
            let engine = server.engine.as_ref().expect("was started");
            send_signal(engine.pid(), Signal::STOP);
            Ok(String::new())
        }
        ("restart-engine", _) => {
            let engine = server.engine.take().expect("was started");
            engine.kill(Signal::KILL);
            drop(engine);
            server.start_engine();
            server.wait_for_params();
            Ok(String::new())
        }
        _ => Err(format!("unknown question '{question}'")),
    }
}

fn counters(server: &Server) -> String {
    let connections = server.owned_connections();
    let sum = |name: &str| -> u64 {
        let value = |it: &Value| it[name].as_u64().unwrap_or(0);
        connections.iter().map(value).sum()
    };
    format!(
        "{} {} {} {} {}",
        sum("rdma_read_bytes"),
        sum("rdma_write_bytes"),
        sum("bytes_received"),
        sum("bytes_sent"),
        connections.len()
    )
}

fn owners(server: &Server) -> Result<BTreeSet<u32>, String> {
    let connections = server.owned_connections();
    let pids = connections.iter().filter_map(|it| it["owner_pid"].as_u64());
    let owners: BTreeSet<_> = pids.map(|pid| pid as u32).collect();
    match owners.is_empty() {
        true => Err("no connection has an owner".into()),
        false => Ok(owners),
    }
}

fn end_channel(server: &Server, which: &str, how: &[&str]) -> Result<String, String> {
    let which: usize = which.parse().map_err(|_| "which channel?")?;
    let connections = server.owned_connections();
    let connection = connections.get(which - 1).ok_or("not so many channels")?;
    let output = Command::new(common::program())
        .args(["disconnect", "--socket"])
        .arg(server.dir.join("engine.sock"))
        .arg(connection["id"].to_string())
        .args(how)
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::new()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
    }
}

fn sum(server: &Server, file: &str) -> Result<String, String> {
    let output = Command::new("sha256sum")
        .arg(server.share(file))
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let sum = text.split_whitespace().next();
    sum.map(str::to_owned)
        .ok_or_else(|| format!("no file '{file}'"))
}

#[test]
fn tap_files() {
    over_a_tap("tap_files", "files");
}

#[test]
fn tap_dialects() {
    over_a_tap("tap_dialects", "dialects");
}

#[test]
fn tap_protected() {
    over_a_tap("tap_protected", "protected");
}

#[test]
fn tap_channels() {
    over_a_tap("tap_channels", "channels");
}

#[test]
fn tap_lost_channels() {
    over_a_tap("tap_lost_channels", "lost_channels");
}

#[test]
fn tap_failures() {
    over_a_tap("tap_failures", "failures");
}

#[test]
fn guest_files() {
    within_a_guest("guest_files", "files");
}

#[test]
fn guest_dialects() {
    within_a_guest("guest_dialects", "dialects");
}

/// A CRC in every frame, both ways.
#[test]
fn guest_crc() {
    let settings = [
        ("ENGINE_OPTIONS", format!("--listen {SERVER}:5445 --crc")),
        ("SMB_CONF", smb_conf_listening("")),
    ];
    within_a_guest_with("guest_crc", "crc", &settings);
}

#[test]
fn guest_protected() {
    within_a_guest("guest_protected", "protected");
}

#[test]
fn guest_channels() {
    within_a_guest("guest_channels", "channels");
}

#[test]
fn guest_lost_channels() {
    within_a_guest("guest_lost_channels", "lost_channels");
}

#[test]
fn guest_failures() {
    within_a_guest("guest_failures", "failures");
}

/// All addresses of the server, the ports of SMB Direct for the kind of the device.
const EVERYWHERE: &str = "--listen verbs:0.0.0.0";

#[test]
fn rxe_dialects() {
    over_verbs("rxe_dialects", "rxe", EVERYWHERE, "dialects", &[]);
}

#[test]
fn siw_dialects() {
    over_verbs("siw_dialects", "siw", EVERYWHERE, "dialects", &[]);
}

#[test]
fn rxe_files() {
    over_verbs("rxe_files", "rxe", EVERYWHERE, "files", &[]);
}

#[test]
fn rxe_channels() {
    over_verbs("rxe_channels", "rxe", EVERYWHERE, "channels", &[]);
}

#[test]
fn rxe_lost_channels() {
    over_verbs("rxe_lost_channels", "rxe", EVERYWHERE, "lost_channels", &[]);
}

#[test]
fn rxe_failures() {
    over_verbs("rxe_failures", "rxe", EVERYWHERE, "failures", &[]);
}

#[test]
fn siw_protected() {
    over_verbs("siw_protected", "siw", EVERYWHERE, "protected", &[]);
}

/// Loss, reordering, corruption and a wire that is cut shortly.
fn trouble(test: &str, device: &str) {
    let settings = [("WIRE", "switch".to_owned())];
    over_verbs(test, device, EVERYWHERE, "trouble", &settings);
}

#[test]
fn rxe_trouble() {
    trouble("rxe_trouble", "rxe");
}

#[test]
fn siw_trouble() {
    trouble("siw_trouble", "siw");
}

/// A wire that stays cut: the connection ends because retries are exceeded, and smbd goes on.
#[test]
fn rxe_cut() {
    let settings = [("WIRE", "switch".to_owned())];
    over_verbs("rxe_cut", "rxe", EVERYWHERE, "cut", &settings);
}

/// The engine as a service, under systemd itself.
#[test]
fn rxe_unit() {
    let systemd = ("/lib/systemd/systemd", "systemd");
    if kernel_and_tools("rxe_unit", &[systemd]).is_some() {
        let template = common::root().join("systemd/smbdirect.service.in");
        let unit = ("UNIT", template.display().to_string());
        over_verbs("rxe_unit", "rxe", EVERYWHERE, "unit", &[unit]);
    }
}

/// One engine with both fabrics, and clients on both.
#[test]
fn siw_mixed() {
    let software = MORE_ADDRESSES[0];
    let listen = format!("--listen verbs:{SERVER} --listen {software}:5445");
    let more = ("SOFTWARE", software.to_owned());
    over_verbs("siw_mixed", "siw", &listen, "mixed", &[more]);
}
