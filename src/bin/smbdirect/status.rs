//! `smbdirect status`: what an engine is doing, as tables or JSON.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smbdirect::ipc::{self, Caller, Status};

use crate::failure::Failure;
use crate::session::say;
use crate::table::table;
use crate::units::{bytes, parse_seconds};

/// Show the listeners, handles and connections of an engine.
///
/// PDUs are whole SMB2 messages, messages the SMB Direct messages (fragments) that carry them.
/// RDMA bytes are those that moved by RDMA READ and WRITE, beside the PDUs: when they grow, file
/// data goes by RDMA. "in" is towards this machine.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect status\n  \
    smbdirect status --watch 2\n  \
    smbdirect status --json | jq '.connections[] | {peer, rdma_write_bytes}'\n\n\
    Exit status: 0 shown, 1 no engine answers at the socket, 2 wrong usage.")]
pub(crate) struct Args {
    /// Control socket of the engine
    #[arg(long, value_name = "PATH", default_value = ipc::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// One JSON object: engine, listeners, handles, connections
    #[arg(long)]
    json: bool,
    /// Show it again every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    watch: Option<Duration>,
}

/// Asks and shows.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let path = args.socket.display();
    let mut caller = connect(&args.socket)?;
    loop {
        let status = ipc::fetch_status(&mut caller, TIMEOUT)
            .map_err(Failure::of(format!("asking the engine at {path}")))?;
        if args.json {
            let text = serde_json::to_string(&status).map_err(Failure::of("JSON"))?;
            say(text);
        } else {
            say(tables(&status));
        }
        match args.watch {
            Some(pause) => std::thread::sleep(pause.max(Duration::from_millis(100))),
            None => return Ok(()),
        }
    }
}

/// Connects to the engine whose control socket is at `path`.
pub(crate) fn connect(path: &Path) -> Result<Caller, Failure> {
    Caller::connect(path, TIMEOUT).map_err(|error| {
        Failure::Failed(format!(
            "no engine answers at {}: {error}; start `smbdirect engine`, or name its --socket",
            path.display()
        ))
    })
}

fn tables(status: &Status) -> String {
    let engine = &status.engine;
    let counters = &engine.counters;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "engine {}, pid {}, up {} s, parameters {}; {} connections attached, {} ended",
        engine.version,
        engine.pid,
        engine.uptime_seconds,
        if engine.has_params {
            "set"
        } else {
            "not set (connections are refused)"
        },
        counters.connections_attached,
        counters.connections_ended,
    );
    for (reason, count) in &engine.rejected {
        let _ = writeln!(text, "  {count} refused: {reason}");
    }
    let memory = &engine.memory;
    for (fabric, &registered) in memory.registered_bytes.iter().filter(|(_, &it)| it > 0) {
        let limit = memory.pin_limit_bytes.map_or("no limit".into(), bytes);
        let _ = writeln!(
            text,
            "  {}: {} registered with devices, {} pinned of {limit} (RLIMIT_MEMLOCK)",
            fabric.name(),
            bytes(registered),
            bytes(memory.pinned_bytes),
        );
    }
    let listeners = status.listeners.iter().map(|it| {
        vec![
            it.address.to_string(),
            it.fabric.name().into(),
            if it.crc { "on" } else { "if asked" }.into(),
            if it.owner_pid == 0 {
                "engine".into()
            } else {
                it.owner_pid.to_string()
            },
            it.accepted.to_string(),
        ]
    });
    let headings = ["LISTENER", "FABRIC", "CRC", "OWNER", "ACCEPTED"];
    text.push_str(&table(&headings, listeners));
    let handles = status.handles.iter().map(|it| {
        vec![
            it.id.to_string(),
            it.pid.to_string(),
            it.uid.to_string(),
            if it.parent { "parent" } else { "" }.into(),
            it.connections.to_string(),
            it.sessions.to_string(),
            bytes(it.area_bytes),
            bytes(it.committed_bytes),
            it.age_seconds.to_string(),
        ]
    });
    let headings = [
        "HANDLE",
        "PID",
        "UID",
        "ROLE",
        "CONNECTIONS",
        "SESSIONS",
        "AREA",
        "COMMITTED",
        "AGE[s]",
    ];
    text.push_str(&table(&headings, handles));
    let connections = status.connections.iter().map(|it| {
        vec![
            it.id.to_string(),
            it.peer.to_string(),
            it.state.clone(),
            it.owner_pid
                .map_or_else(|| "-".into(), |pid| pid.to_string()),
            format!("{}/{}", it.send_credits, it.receive_credits),
            format!("{}/{}", it.pdus_received, it.pdus_sent),
            format!("{}/{}", it.messages_received, it.messages_sent),
            bytes(it.bytes_received),
            bytes(it.bytes_sent),
            bytes(it.rdma_read_bytes),
            bytes(it.rdma_write_bytes),
            it.age_seconds.to_string(),
        ]
    });
    let headings = [
        "CONNECTION",
        "PEER",
        "STATE",
        "OWNER",
        "CREDITS own/peer",
        "PDUS in/out",
        "MESSAGES in/out",
        "IN",
        "OUT",
        "RDMA IN",
        "RDMA OUT",
        "AGE[s]",
    ];
    text.push_str(&table(&headings, connections));
    text.truncate(text.trim_end().len());
    text
}

/// An engine that lives answers at once.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
