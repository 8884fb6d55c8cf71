//! `smbdirect engine`: the command line in front of [`smbdirect::engine`].

use std::path::PathBuf;
use std::time::Duration;

use smbdirect::engine::{Config, Engine, EngineError, Listen};
use smbdirect::fabric::{FabricKind, ListenOptions};
use smbdirect::ipc;

use crate::args::resolve_target;
use crate::failure::Failure;
use crate::session::say;
use crate::signals::{survive_file_limit, StopSignal};
use crate::units::parse_seconds;

/// Run the engine: it owns the listeners and all SMB Direct connections of this machine.
///
/// Every smbd opens a handle to the engine through its control socket and shares memory with it.
/// The engine runs in the foreground, logs to standard error and needs no privilege for software
/// iWARP on a port above 1023. It stops in good order on SIGTERM or SIGINT: connections are
/// closed, the control socket is removed.
///
/// On standard output it prints `control socket PATH`, `listening on [verbs:]ADDRESS:PORT` for each
/// address, and `ready`. For verbs:0.0.0.0 and verbs:[::] that is said whether there is a device or
/// not; the log and `smbdirect interfaces` tell which addresses have one.
///
/// RDMA devices (verbs:) need access to /dev/infiniband, a large RLIMIT_MEMLOCK, and for port 445
/// CAP_NET_BIND_SERVICE.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect engine --socket /run/smbdirect/engine.sock --listen 0.0.0.0 --listen [::]\n  \
    smbdirect engine --socket ./engine.sock --listen 127.0.0.1:5445 --crc\n  \
    smbdirect engine --listen verbs:0.0.0.0 --listen verbs:[::]\n\n\
    Exit status: 0 stopped by a signal, 1 failure (socket or address not usable, ...), \
    2 wrong usage.")]
pub(crate) struct Args {
    /// Control socket to create (Unix, SOCK_SEQPACKET); handles and `smbdirect status` use it
    #[arg(long, value_name = "PATH", default_value = ipc::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// Address to listen on, may be given several times; port 0 takes any free one. Without it the
    /// engine listens where handles ask it to (smbd_listen). By software iWARP, or with verbs: in
    /// front by the RDMA device of the address, on 0.0.0.0 and [::] by all devices, those that come
    /// later too [port: 5445; with verbs: 445 for InfiniBand and RoCE, 5445 for iWARP devices]
    #[arg(long, value_name = "[verbs:]ADDRESS[:PORT]")]
    pub(crate) listen: Vec<String>,
    /// User id that may open handles and connect out, but has no part in connections that come in;
    /// may be given several times. Root and the engine's own user always may. It needs a
    /// --socket-mode that lets this user reach the socket
    #[arg(long, value_name = "UID")]
    pub(crate) allow_uid: Vec<u32>,
    /// User id that may be the server: open the parent handle, and get connections that come in
    /// while one of its processes is the parent; may be given several times
    #[arg(long, value_name = "UID")]
    pub(crate) allow_parent_uid: Vec<u32>,
    /// File mode of the control socket, octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
    pub(crate) socket_mode: u32,
    /// Connections at once; further ones are refused
    #[arg(long, value_name = "COUNT", default_value_t = 8192,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections: u32,
    /// Connections without an smbd at once (negotiating, offered)
    #[arg(long, value_name = "COUNT", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_unowned: u32,
    /// As many of them from one peer (an IPv4 address, an IPv6 /64) [default: a quarter of
    /// --max-unowned]
    #[arg(long, value_name = "COUNT", hide_default_value = true, default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) max_unowned_per_peer: u32,
    /// MiB of shared memory in use, all smbds together, beyond which further handles and connections
    /// are refused [default: half of the machine's memory]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub(crate) max_memory: Option<u64>,
    /// Seconds an offered connection waits for an smbd to take it
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = parse_seconds)]
    pub(crate) offer_timeout: Duration,
    /// Microseconds to keep looking at busy rings before sleeping; 0 looks once more and sleeps.
    /// Worth trying where processors are plenty
    #[arg(long, value_name = "USEC", default_value_t = 0)]
    pub(crate) busy_poll: u32,
    /// Register memory for each operation alone on RDMA devices, instead of keeping what was used
    /// registered for some seconds: slower, and an adapter reaches only what it has to
    #[cfg(feature = "verbs")]
    #[arg(long)]
    pub(crate) rdma_register_each: bool,
    /// Ask RDMA devices that can for fewer events: one in COUNT completions of a connection, or USEC
    /// after the first. Fewer wake-ups under load, and up to USEC more for each answer of a quiet
    /// connection [default: an event whenever the engine waits for one]
    #[cfg(feature = "verbs")]
    #[arg(long, value_name = "COUNT,USEC", value_parser = parse_moderation)]
    pub(crate) rdma_moderation: Option<(u16, u16)>,
    /// CRC32C in every frame on the addresses of --listen
    #[arg(long)]
    pub(crate) crc: bool,
}

/// Runs the engine until a signal.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let stop = StopSignal::new().map_err(Failure::of("catching SIGTERM"))?;
    survive_file_limit().map_err(Failure::of("catching SIGXFSZ"))?;
    // A connection takes one descriptor, a process with a handle four.
    if let Some(limit) = smbdirect::sys::raise_file_limit() {
        log::debug!("limit of open files: {limit}");
    }
    check_reach("--allow-uid", &args.allow_uid, args.socket_mode)?;
    check_reach(
        "--allow-parent-uid",
        &args.allow_parent_uid,
        args.socket_mode,
    )?;
    let default = Config::default();
    let listen = args
        .listen
        .iter()
        .map(|text| parse_listen(text, args.crc))
        .collect::<Result<Vec<_>, Failure>>()?;
    let config = Config {
        socket_path: args.socket.clone(),
        socket_mode: args.socket_mode,
        listen,
        allow_uids: args.allow_uid.clone(),
        allow_parent_uids: args.allow_parent_uid.clone(),
        max_connections: args.max_connections as usize,
        max_unowned: args.max_unowned as usize,
        max_unowned_per_peer: args.max_unowned_per_peer as usize,
        max_memory: args.max_memory.map_or(default.max_memory, |mib| mib << 20),
        offer_timeout: args.offer_timeout,
        #[cfg(feature = "verbs")]
        verbs: smbdirect::fabric::verbs::VerbsConfig {
            register_each: args.rdma_register_each,
            moderation: args.rdma_moderation,
            ..Default::default()
        },
        busy_poll: Duration::from_micros(args.busy_poll.into()),
        ..default
    };
    let failed = |error: EngineError| Failure::Failed(error.to_string());
    let engine = Engine::new(config).map_err(failed)?;
    say(format_args!("control socket {}", args.socket.display()));
    for (fabric, address) in engine.addresses() {
        let fabric = match fabric {
            ipc::Fabric::SoftIwarp => "",
            ipc::Fabric::Verbs => "verbs:",
        };
        say(format_args!("listening on {fabric}{address}"));
    }
    say("ready");
    engine.run(Some(stop.into())).map_err(failed)
}

#[cfg(feature = "verbs")]
fn parse_moderation(text: &str) -> Result<(u16, u16), String> {
    let numbers = text.split_once(',').and_then(|(count, usec)| {
        let count = count.parse().ok().filter(|&count| count > 0)?;
        Some((count, usec.parse().ok()?))
    });
    numbers.ok_or_else(|| "write COUNT,USEC, for instance 16,20: at most 65535 each".into())
}

fn parse_listen(text: &str, crc: bool) -> Result<Listen, Failure> {
    let target = resolve_target(text)?;
    Ok(Listen {
        fabric: match target.fabric {
            FabricKind::SoftIwarp => ipc::Fabric::SoftIwarp,
            FabricKind::Verbs => ipc::Fabric::Verbs,
        },
        address: target.address,
        is_default_port: target.is_default_port,
        options: ListenOptions {
            crc,
            ..ListenOptions::default()
        },
    })
}

/// To connect to a socket takes the right to write: a user who is let in has to be able to reach it.
fn check_reach(option: &str, allow_uid: &[u32], mode: u32) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    let stranger = allow_uid.iter().find(|&&uid| uid != 0 && uid != own);
    match stranger {
        Some(uid) if mode & 0o022 == 0 => Err(Failure::Usage(format!(
            "{option} {uid} has no effect with --socket-mode {mode:03o}, which lets only user \
             {own} connect: add --socket-mode 660 and put the socket into a directory whose group \
             it inherits (chmod g+s), or --socket-mode 666"
        ))),
        _ => Ok(()),
    }
}

/// Reads a file mode.
fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!(
            "`{text}` is no file mode; write three octal digits, for instance 660"
        )),
    }
}
