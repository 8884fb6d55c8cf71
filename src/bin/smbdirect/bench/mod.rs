//! `smbdirect bench`: software iWARP and the engine against plain TCP, in one run, as ratios.
//!
//! The other ends are children of this process: the same binary under its hidden `bench-helper`
//! command. Repetitions of the two sides of a ratio alternate, and their medians are compared, so
//! that a machine that changes its speed meanwhile does not favour one.

mod bulk;
mod fabric;
mod helper;
mod load;
mod process;
mod protection;
mod scale;
mod small;
mod smb;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{json, Value};

use crate::failure::Failure;
use crate::session::say;
use crate::units::{parse_seconds, parse_size};

pub(crate) use helper::run as run_helper;
pub(crate) use helper::Args as HelperArgs;

/// Measure software iWARP and the engine against plain TCP, on this machine.
///
/// bulk: RDMA READ and WRITE of large buffers between two processes, with and without CRC, against
/// the same bytes over one TCP connection between the same processes. small: PDUs from a peer
/// through the engine to a handle in a third process and back, against a TCP echo through one
/// relay process. scale: connections per second, and memory and CPU of idle connections, each
/// with a handle of its own.
///
/// fabric, only if asked for: sends, RDMA READ and RDMA WRITE between two processes without MS-SMBD, by
/// TCP, by software iWARP and, for each --address, by the RDMA device of that address. Delays (in
/// parentheses what 1 % exceed), rates, and how many times TCP's that is; then the processor time of both
/// processes for one operation and, with --calls, their system calls. What a kernel's software RDMA device
/// does in threads and interrupts of its own is in no process.
///
/// All else runs on 127.0.0.1 with children of this process; nothing else is touched. Figures are
/// medians of repetitions that alternate between the two sides of a ratio.
///
/// With --smb instead: READ and WRITE of a file that is made in a share of an SMB server, and
/// deleted again, through an RDMA channel against TCP. Sequential, 1 MiB and 64 KiB; random, 4 KiB;
/// one request and 16 in flight. --bytes is the size of the file, --iters the number of random
/// operations. With --protection it is READ and WRITE of 1 MiB with nothing, with each way to sign and
/// with each way to encrypt: by RDMA, with the RDMA transforms of SMB 3.1.1 (a server without them
/// has a `-` there), by plain TCP, and in messages on SMB Direct, as long as they may be.
///
/// With --load instead: that many connections at once, each to a handle of its own, with small and
/// large PDUs, RDMA READs and WRITEs, and quiet ones; in the second half with a storm of short
/// connections beside them. Everything has a sequence number and is compared. Shown are the shares of
/// the connections, the longest answers, and memory after a tenth, a half and all of the time.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect bench\n  \
    smbdirect bench --only bulk --bytes 2G --repeat 9\n  \
    smbdirect bench --only fabric --address 192.0.2.1\n  \
    smbdirect bench --json > result.json\n  \
    smbdirect bench --load --connections 1000 --seconds 600\n  \
    SMBDIRECT_PASSWORD=secret smbdirect bench --smb //192.0.2.1/data --user me\n  \
    smbdirect bench --smb //127.0.0.1/data --user me --password-file pw --protection \\\n    \
    --cpu-of $(pgrep -ox smbdirect) --cpu-of $(pgrep -ox smbd)\n\n\
    Exit status: 0 measured (whatever the figures), 1 failure, 2 wrong usage.")]
pub(crate) struct Args {
    /// Measure only this, may be given several times: bulk, small, scale; or fabric, which is not
    /// measured without being asked for
    #[arg(long, value_name = "WHAT", value_parser = ["bulk", "small", "scale", "fabric"])]
    only: Vec<String>,
    /// With --only fabric: an address of this host that has an RDMA device, to measure that, too; may
    /// be given several times
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// With --only fabric: how long each of its repetitions takes
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "0.3")]
    slice: Duration,
    /// With --only fabric: count system calls, too, with strace
    #[arg(long)]
    calls: bool,
    /// Repetitions of each measurement
    #[arg(long, value_name = "COUNT", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Bytes that one bulk repetition moves (K, M, G allowed)
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "512M")]
    bytes: u64,
    /// Bytes of one RDMA operation in bulk, 4K to 16M
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "1M")]
    chunk: u64,
    /// RDMA operations outstanding in bulk
    #[arg(long, value_name = "COUNT", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    depth: u32,
    /// Payload of a small PDU, bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "256")]
    size: u64,
    /// Round trips of one repetition
    #[arg(long, value_name = "COUNT", default_value_t = 3000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    iters: u32,
    /// PDUs outstanding when the message rate is measured
    #[arg(long, value_name = "COUNT", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    window: u32,
    /// Measure many connections with mixed traffic
    #[arg(long, conflicts_with_all = ["only", "smb"])]
    load: bool,
    /// How long --load takes
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "600")]
    seconds: Duration,
    /// Idle connections to measure, may be given several times [default: 1 100 1000]; with --load:
    /// connections [default: 1000]
    #[arg(long, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Vec<u32>,
    /// Seconds to watch the CPU time of idle connections
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "2")]
    idle: Duration,
    /// With --smb or --only fabric: only what has this in its name, up to a comma or the end: "random
    /// read, 4 KiB, depth 1"
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// The result as one JSON object, nothing else
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    smb: smb::ServerArgs,
}

impl Args {
    /// What `--case` names of all that could be measured.
    fn chosen<T>(
        &self,
        all: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
    ) -> Result<Vec<T>, Failure> {
        let Some(text) = &self.case else {
            return Ok(all.into_iter().collect());
        };
        let is_meant = |one: &T| {
            let name = name(one);
            name.ends_with(text) || name.contains(&format!("{text},"))
        };
        let chosen: Vec<_> = all.into_iter().filter(is_meant).collect();
        if chosen.is_empty() {
            return Err(Failure::Usage(format!(
                "--case '{text}': run without it once to see the names"
            )));
        }
        Ok(chosen)
    }
}

/// One line of the result.
struct Row {
    what: String,
    ours: f64,
    /// What it is compared with; none: a figure of its own.
    tcp: Option<f64>,
    unit: &'static str,
    goal: &'static str,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.tcp.filter(|tcp| *tcp > 0.0).map(|tcp| self.ours / tcp)
    }

    fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "ours": self.ours,
            "tcp": self.tcp,
            "ratio": self.ratio(),
            "unit": self.unit,
            "goal": self.goal,
        })
    }
}

/// Measures and shows.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if !(4096..=16 << 20).contains(&args.chunk) {
        return Err(Failure::Usage(format!(
            "--chunk {}: use 4K to 16M",
            args.chunk
        )));
    }
    if args.size == 0 || args.size > 65_536 {
        return Err(Failure::Usage(format!(
            "--size {}: use 1 to 64K",
            args.size
        )));
    }
    if args.load && args.seconds < Duration::from_secs(1) {
        return Err(Failure::Usage("--seconds: use 1 or more".into()));
    }
    let wants_all = args.only.is_empty() && args.smb.smb.is_none() && !args.load;
    let wants = |what: &str| wants_all || args.only.iter().any(|only| only == what);
    let mut rows = Vec::new();
    let progress = |text: &str| {
        if !args.json {
            eprintln!("measuring {text} ...");
        }
    };
    if args.smb.protection {
        progress("signing and encryption");
        return protection::run(args);
    }
    if args.smb.smb.is_some() {
        progress("READ and WRITE on the server");
        rows.extend(smb::measure(args)?);
    }
    if args.load {
        progress("many connections with mixed traffic");
        rows.extend(load::measure(args)?);
    }
    let mut fabrics = None;
    if args.only.iter().any(|only| only == "fabric") {
        progress("fabrics");
        fabrics = Some(fabric::measure(args)?);
    } else if args.calls || !args.address.is_empty() {
        return Err(Failure::Usage(
            "--address and --calls are for --only fabric".into(),
        ));
    }
    if wants("bulk") {
        progress("bulk");
        rows.extend(bulk::measure(args)?);
    }
    if wants("small") {
        progress("small PDUs");
        rows.extend(small::measure(args)?);
    }
    if wants("scale") {
        progress("idle connections");
        rows.extend(scale::measure(args)?);
    }
    if args.json {
        let mut rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
        rows.extend(fabrics.iter().flat_map(fabric::Report::to_json));
        say(json!({ "version": env!("CARGO_PKG_VERSION"), "results": rows }));
        return Ok(());
    }
    if let Some(fabrics) = &fabrics {
        say(fabrics.table());
    }
    if !rows.is_empty() {
        say(table(&rows));
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let number = |value: f64| match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    };
    let mut text = format!(
        "{:<52} {:>11} {:>11} {:>7}  {:<10} goal\n",
        "", "SMB Direct", "TCP", "ratio", "unit"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<52} {:>11} {:>11} {:>7}  {:<10} {}",
            row.what,
            number(row.ours),
            row.tcp.map_or_else(|| "-".into(), number),
            row.ratio()
                .map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            row.unit,
            row.goal,
        );
    }
    text.truncate(text.trim_end().len());
    text
}

/// The middle of some figures.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
        let row = |tcp| Row {
            what: "x".into(),
            ours: 3.0,
            tcp,
            unit: "MB/s",
            goal: "",
        };
        assert_eq!(row(Some(4.0)).ratio(), Some(0.75));
        assert_eq!(row(Some(0.0)).ratio(), None);
        assert_eq!(row(None).ratio(), None);
    }
}
