//! `smbdirect disconnect`: ends connections of an engine.

use std::net::IpAddr;
use std::path::PathBuf;

use smbdirect::ipc::{self, CallError, Reply, Request};

use crate::failure::Failure;
use crate::session::say;
use crate::status::{connect, TIMEOUT};

/// End connections of an engine, whoever owns them.
///
/// The client notices and connects again, as after a failure of the network; with several channels
/// it goes on over the others. Nothing that the server has acknowledged is lost. What was submitted
/// before leaves first, for at most five seconds, unless --abort cuts the connection at once.
///
/// Only root and the engine's own user may do this.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect disconnect 131072              (a number that `smbdirect status` shows)\n  \
    smbdirect disconnect --peer 192.0.2.7    (all connections of a client)\n  \
    smbdirect disconnect --local 192.0.2.1   (before an address or adapter is taken away)\n\n\
    Exit status: 0 all named connections are told to end, 1 one does not exist, or no engine \
    answers, 2 wrong usage.")]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true)))]
pub(crate) struct Args {
    /// Connections, by the number that `smbdirect status` shows
    #[arg(value_name = "CONNECTION", group = "which", conflicts_with_all = ["peer", "local"])]
    connections: Vec<u64>,
    /// All connections with this address of a client
    #[arg(long, value_name = "ADDRESS", group = "which")]
    peer: Option<IpAddr>,
    /// All connections with this address of this machine
    #[arg(long, value_name = "ADDRESS", group = "which")]
    local: Option<IpAddr>,
    /// At once, without what is still to be sent
    #[arg(long)]
    abort: bool,
    /// Control socket of the engine
    #[arg(long, value_name = "PATH", default_value = ipc::DEFAULT_SOCKET)]
    socket: PathBuf,
}

/// Ends them.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut caller = connect(&args.socket)?;
    let is_named = !args.connections.is_empty();
    let connections = if is_named {
        args.connections.clone()
    } else {
        let path = args.socket.display();
        let status = ipc::fetch_status(&mut caller, TIMEOUT)
            .map_err(Failure::of(format!("asking the engine at {path}")))?;
        let is_meant = |it: &&ipc::ConnectionStatus| {
            args.peer.is_none_or(|peer| it.peer.ip() == peer)
                && args.local.is_none_or(|local| it.local.ip() == local)
        };
        let meant = status.connections.iter().filter(is_meant);
        meant.map(|it| it.id).collect()
    };
    let mut ended = 0;
    for connection in connections {
        let request = Request::Disconnect {
            connection,
            abort: args.abort,
        };
        match caller.call(&request, TIMEOUT) {
            Ok((Reply::Ok, _)) => ended += 1,
            // It has ended since the engine was asked which there are.
            Err(CallError::Refused(libc::ENOENT, _)) if !is_named => {}
            Ok(_) => {
                let error = CallError::Unexpected("something else than success");
                return Err(Failure::Failed(error.to_string()));
            }
            Err(error) => return Err(Failure::Failed(error.to_string())),
        }
    }
    if ended == 0 {
        return Err(Failure::Failed("no such connection".into()));
    }
    say(format!("{ended} ended"));
    Ok(())
}
