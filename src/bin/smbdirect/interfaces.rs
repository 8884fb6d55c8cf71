//! `smbdirect interfaces`: where clients find SMB Direct, and where not and why.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;
use smbdirect::ipc::{self, InterfaceRecord};

use crate::failure::Failure;
use crate::session::say;
use crate::status::{connect, TIMEOUT};
use crate::table::table;

/// Show each address of this machine: does the engine take SMB Direct connections on it, and why.
///
/// smbd tells its clients the same by FSCTL_QUERY_NETWORK_INTERFACE_INFO, apart from loopback
/// addresses and what `interfaces` in smb.conf leaves out or sets with capability= and speed=.
/// Clients that find an address there connect to port 5445 (iWARP) or 445.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect interfaces\n  \
    smbdirect interfaces --json | jq -r '.interfaces[] | select(.rdma) | .address'\n\n\
    Exit status: 0 shown, 1 no engine answers at the socket, 2 wrong usage.")]
pub(crate) struct Args {
    /// Control socket of the engine
    #[arg(long, value_name = "PATH", default_value = ipc::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// One JSON object with an array, interfaces
    #[arg(long)]
    json: bool,
}

/// Asks and shows.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut caller = connect(&args.socket)?;
    let what = format!("asking the engine at {}", args.socket.display());
    let records = ipc::fetch_interfaces(&mut caller, TIMEOUT).map_err(Failure::of(what))?;
    if args.json {
        let interfaces = records.iter().map(Shown::from).collect();
        let text = serde_json::to_string(&Answer { interfaces }).map_err(Failure::of("JSON"))?;
        say(text);
    } else {
        say(rows(&records).trim());
    }
    Ok(())
}

/// What --json shows.
#[derive(Serialize)]
struct Answer<'a> {
    interfaces: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    index: u32,
    address: IpAddr,
    rdma: bool,
    rss: bool,
    /// Bits per second.
    link_speed: Option<u64>,
    fabric: Option<&'static str>,
    port: Option<u16>,
    reason: &'a str,
}

impl<'a> From<&'a InterfaceRecord> for Shown<'a> {
    fn from(record: &'a InterfaceRecord) -> Self {
        let rdma = record.capability & ipc::INTERFACE_RDMA != 0;
        Self {
            name: &record.name,
            index: record.if_index,
            address: record.address.ip(),
            rdma,
            rss: record.capability & ipc::INTERFACE_RSS != 0,
            link_speed: (record.link_speed != 0).then_some(record.link_speed),
            fabric: record.fabric.map(ipc::Fabric::name),
            port: rdma.then(|| record.address.port()),
            reason: &record.reason,
        }
    }
}

fn rows(records: &[InterfaceRecord]) -> String {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let rows = records.iter().map(Shown::from).map(|it| {
        vec![
            it.name.to_owned(),
            it.index.to_string(),
            it.address.to_string(),
            yes_no(it.rdma).into(),
            yes_no(it.rss).into(),
            it.link_speed.map_or_else(|| "-".into(), speed),
            it.reason.to_owned(),
        ]
    });
    let headings = [
        "INTERFACE",
        "INDEX",
        "ADDRESS",
        "RDMA",
        "RSS",
        "SPEED",
        "REASON",
    ];
    table(&headings, rows)
}

/// A link's speed as it is written on the box: `100 Gbit/s`.
fn speed(bits: u64) -> String {
    let (unit, name) = if bits >= 1_000_000_000 {
        (1e9, "Gbit/s")
    } else {
        (1e6, "Mbit/s")
    };
    format!("{} {name}", bits as f64 / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_shown() {
        assert_eq!(speed(10_000_000), "10 Mbit/s");
        assert_eq!(speed(2_500_000_000), "2.5 Gbit/s");
        assert_eq!(speed(100_000_000_000), "100 Gbit/s");
    }
}
