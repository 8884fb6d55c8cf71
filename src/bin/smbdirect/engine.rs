//! `smbdirect engine`: the command line in front of [`smbdirect::engine`].

use std::path::PathBuf;

use smbdirect::engine::{Config, Engine};
use smbdirect::fabric::ListenOptions;

use crate::args::resolve;
use crate::failure::Failure;
use crate::signals::StopSignal;

/// Run the engine: it owns the listeners and all SMB Direct connections of this machine.
///
/// Every smbd opens a handle to the engine through its control socket and shares memory with it.
/// The engine runs in the foreground, logs to standard error and needs no privilege for software
/// iWARP on a port above 1023. It stops in good order on SIGTERM or SIGINT: connections are
/// closed, the control socket is removed.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect engine --socket /run/smbdirect/engine.sock --listen 0.0.0.0 --listen [::]\n  \
    smbdirect engine --socket ./engine.sock --listen 127.0.0.1:5445 --crc\n\n\
    Exit status: 0 stopped by a signal, 1 failure (socket or address not usable, ...), \
    2 wrong usage.")]
pub(crate) struct Args {
    /// Control socket to create (Unix, SOCK_SEQPACKET); handles and `smbdirect status` use it
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// Address to listen on, may be given several times; port 0 takes any free one. Without it the
    /// engine listens where handles ask it to (smbd_listen) [port: 5445]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub(crate) listen: Vec<String>,
    /// User id that may open handles, may be given several times; root and the engine's own user
    /// always may
    #[arg(long, value_name = "UID")]
    pub(crate) allow_uid: Vec<u32>,
    /// Connections at once; further ones are refused
    #[arg(long, value_name = "COUNT", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections: u32,
    /// CRC32C in every frame on the addresses of --listen
    #[arg(long)]
    pub(crate) crc: bool,
}

/// Where engine and handles meet unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = smbdirect::ipc::DEFAULT_SOCKET;

/// The port of SMB Direct on iWARP ([MS-SMBD] 1.9).
const IWARP_PORT: u16 = 5445;

/// Runs the engine until a signal.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let stop = StopSignal::new().map_err(Failure::of("catching SIGTERM"))?;
    let mut listen = Vec::new();
    for text in &args.listen {
        let address = resolve(text, IWARP_PORT)?;
        listen.push((address, ListenOptions { crc: args.crc }));
    }
    let config = Config {
        socket_path: args.socket.clone(),
        listen,
        allow_uids: args.allow_uid.clone(),
        max_connections: args.max_connections as usize,
        ..Config::default()
    };
    let engine = Engine::new(config).map_err(|error| Failure::Failed(error.to_string()))?;
    log::info!(
        "engine {} at {}",
        env!("CARGO_PKG_VERSION"),
        args.socket.display()
    );
    engine
        .run(Some(stop.into()))
        .map_err(|error| Failure::Failed(error.to_string()))
}
