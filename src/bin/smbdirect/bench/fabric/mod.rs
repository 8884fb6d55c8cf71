//! Fabric: sends, RDMA READ and RDMA WRITE between two processes, over each fabric and over TCP, as
//! perftest has them. No MS-SMBD: connections are raw.
//!
//! What is measured runs in slices of time. In a round each way has one slice, so that a machine
//! that changes its speed meanwhile does not favour one of them.

mod calls;
mod server;
mod side;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use smbdirect::fabric::FabricKind;

use self::side::{Rdma, Tcp, Way};
use super::process::{cpu_seconds, Process};
use super::{median, Args};
use crate::failure::Failure;

pub(super) use server::run as run_server;

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A send of so many bytes, sent back; half of the time.
    Send(usize),
    /// An RDMA WRITE of so many bytes and a short send behind it, until the answer to that is there.
    Write(usize),
    /// An RDMA READ of so many bytes, until it is done.
    Read(usize),
    /// Sends of so many bytes one way.
    Sends(usize),
    /// RDMA WRITEs of so many bytes.
    Writes(usize),
    /// RDMA READs of so many bytes.
    Reads(usize),
    /// Sends of so many bytes, sent back.
    Messages(usize),
}

const ALL: [What; 11] = [
    What::Send(64),
    What::Send(256),
    What::Send(1024),
    What::Write(4096),
    What::Read(4096),
    What::Sends(8192),
    What::Writes(64 << 10),
    What::Writes(1 << 20),
    What::Reads(64 << 10),
    What::Reads(1 << 20),
    What::Messages(64),
];

/// RDMA operations outstanding.
const DEPTH: u64 = 8;
/// Sends outstanding.
const WINDOW: u64 = 64;
/// Bytes of memory that either side has for RDMA.
const MEMORY: usize = 16 << 20;

impl What {
    fn name(self) -> String {
        let size = |bytes: usize| match bytes {
            bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
            bytes => format!("{bytes} B"),
        };
        match self {
            Self::Send(bytes) => format!("Send {}, half round trip", size(bytes)),
            Self::Write(bytes) => format!("RDMA WRITE {}, Send and answer", size(bytes)),
            Self::Read(bytes) => format!("RDMA READ {}", size(bytes)),
            Self::Sends(bytes) => format!("Send {}, {WINDOW} at once", size(bytes)),
            Self::Writes(bytes) => format!("RDMA WRITE {}, {DEPTH} at once", size(bytes)),
            Self::Reads(bytes) => format!("RDMA READ {}, {DEPTH} at once", size(bytes)),
            Self::Messages(bytes) => format!("Send {} and back, {WINDOW} at once", size(bytes)),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Send(_) | Self::Write(_) | Self::Read(_) => "usec",
            Self::Sends(_) | Self::Writes(_) | Self::Reads(_) => "MB/s",
            Self::Messages(_) => "/s",
        }
    }

    /// Operations between two looks at the clock; a pipeline is full most of the time.
    fn batch(self) -> u64 {
        match self {
            Self::Send(_) | Self::Write(_) | Self::Read(_) => 16,
            Self::Sends(_) | Self::Messages(_) => 8 * WINDOW,
            Self::Writes(_) | Self::Reads(_) => 8 * DEPTH,
        }
    }
}

/// What was seen of one operation on one way.
#[derive(Default)]
struct Figures {
    /// Of each round: the median delay, or the rate.
    values: Vec<f64>,
    /// Of each round: the delay that 1 % exceed.
    slowest: Vec<f64>,
    cpu_seconds: f64,
    operations: u64,
    /// System calls of both processes for one operation.
    calls: Option<f64>,
}

impl Figures {
    /// Microseconds of processor time of both processes for one operation.
    fn cpu(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.operations.max(1) as f64
    }

    fn to_json(&self) -> Value {
        json!({
            "median": middle(&self.values),
            "p99": (!self.slowest.is_empty()).then(|| middle(&self.slowest)),
            "cpu_usec": self.cpu(),
            "calls": self.calls,
        })
    }
}

/// All that was seen.
pub(super) struct Report {
    ways: Vec<String>,
    rows: Vec<(What, Vec<Figures>)>,
}

/// Measures all fabrics that there are: TCP, software iWARP, and verbs by each address.
pub(super) fn measure(args: &Args) -> Result<Report, Failure> {
    let mut helper = vec!["bench-helper".to_owned(), "fabric".to_owned()];
    helper.extend(args.address.iter().map(ToString::to_string));
    let helper: Vec<_> = helper.iter().map(String::as_str).collect();
    let mut helper = Process::start(&helper)?;
    let pids = [std::process::id(), helper.pid()];
    let mut ways: Vec<Box<dyn Way>> = vec![
        Box::new(Tcp::connect(helper.address()?)?),
        Box::new(Rdma::connect(FabricKind::SoftIwarp, helper.address()?)?),
    ];
    for _ in &args.address {
        ways.push(Box::new(Rdma::connect(
            FabricKind::Verbs,
            helper.address()?,
        )?));
    }
    let mut rows = Vec::new();
    for what in args.chosen(ALL, |what| what.name())? {
        let mut figures: Vec<Figures> = ways.iter().map(|_| Figures::default()).collect();
        // The first round warms up, and does not count.
        for round in 0..=args.repeat {
            for (way, figures) in ways.iter_mut().zip(&mut figures) {
                let mut warm_up = Figures::default();
                let figures = if round == 0 { &mut warm_up } else { figures };
                slice(&mut **way, what, args.slice, pids, figures)?;
            }
        }
        if args.calls {
            for (way, figures) in ways.iter_mut().zip(&mut figures) {
                let calls = calls::count(&pids, || way.run(what, what.batch(), &mut Vec::new()))?;
                figures.calls = Some(calls as f64 / what.batch() as f64);
            }
        }
        rows.push((what, figures));
    }
    let ways = ways.iter().map(|way| way.name()).collect();
    Ok(Report { ways, rows })
}

/// One way's part of a round.
fn slice(
    way: &mut dyn Way,
    what: What,
    time: Duration,
    pids: [u32; 2],
    figures: &mut Figures,
) -> Result<(), Failure> {
    let cpu = || Ok::<_, Failure>(cpu_seconds(pids[0])? + cpu_seconds(pids[1])?);
    let before = cpu()?;
    let (mut operations, mut delays) = (0, Vec::new());
    let start = Instant::now();
    while start.elapsed() < time {
        way.run(what, what.batch(), &mut delays)?;
        operations += what.batch();
    }
    let rate = operations as f64 / start.elapsed().as_secs_f64();
    figures.cpu_seconds += cpu()? - before;
    figures.operations += operations;
    match what {
        What::Send(_) | What::Write(_) | What::Read(_) => {
            figures.values.push(median(&mut delays));
            // Sorted by now.
            let at = delays.len() * 99 / 100;
            figures.slowest.extend(delays.get(at));
        }
        What::Messages(_) => figures.values.push(rate),
        What::Sends(bytes) | What::Writes(bytes) | What::Reads(bytes) => {
            figures.values.push(rate * bytes as f64 / 1e6);
        }
    }
    Ok(())
}

impl Report {
    pub(super) fn to_json(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (what, figures) in &self.rows {
            for (way, figures) in self.ways.iter().zip(figures) {
                all.push(json!({
                    "what": what.name(),
                    "way": way,
                    "unit": what.unit(),
                    "figures": figures.to_json(),
                }));
            }
        }
        all
    }

    /// Tables for people, and for README.
    pub(super) fn table(&self) -> String {
        let mut speeds = self.head("");
        let mut costs = self.head("processor time, calls");
        for (what, figures) in &self.rows {
            let _ = write!(speeds, "| {} |", what.name());
            let _ = write!(costs, "| {} |", what.name());
            let mut tcp = None;
            for figures in figures {
                let value = middle(&figures.values);
                let _ = write!(speeds, " {}", number(value));
                match what.unit() {
                    "usec" => {
                        let slowest = middle(&figures.slowest);
                        let _ = write!(speeds, " ({}) us", number(slowest));
                    }
                    unit => {
                        let gap = if unit.starts_with('/') { "" } else { " " };
                        let _ = write!(speeds, "{gap}{unit}");
                    }
                }
                // How many times as long, or as fast, as TCP.
                match tcp {
                    None => tcp = Some(value),
                    Some(tcp) if tcp > 0.0 => {
                        let _ = write!(speeds, ", {:.2}", value / tcp);
                    }
                    Some(_) => {}
                }
                let _ = write!(costs, " {} us", number(figures.cpu()));
                if let Some(calls) = figures.calls {
                    let _ = write!(costs, ", {}", number(calls));
                }
                for table in [&mut speeds, &mut costs] {
                    table.push_str(" |");
                }
            }
            for table in [&mut speeds, &mut costs] {
                table.push('\n');
            }
        }
        format!("{speeds}\n{}", costs.trim_end())
    }

    fn head(&self, what: &str) -> String {
        let ways: String = self.ways.iter().map(|way| format!(" {way} |")).collect();
        let line = "---|".repeat(self.ways.len() + 1);
        format!("| {what} |{ways}\n|{line}\n")
    }
}

fn middle(values: &[f64]) -> f64 {
    median(&mut values.to_vec())
}

/// Three digits, or all before the point.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_ways_and_ratios() {
        let figures = |value| Figures {
            values: vec![value],
            slowest: vec![2.0 * value],
            cpu_seconds: 0.5,
            operations: 1000,
            calls: Some(4.0),
        };
        let report = Report {
            ways: vec!["TCP".into(), "siw0".into()],
            rows: vec![
                (What::Send(64), vec![figures(10.0), figures(25.0)]),
                (What::Reads(65536), vec![figures(1000.0), figures(500.0)]),
            ],
        };
        let table = report.table();
        assert!(
            table.contains("|  | TCP | siw0 |\n|---|---|---|\n"),
            "{table}"
        );
        let row = "| Send 64 B, half round trip | 10.0 (20.0) us | 25.0 (50.0) us, 2.50 |";
        assert!(table.contains(row), "{table}");
        let row = "| RDMA READ 64 KiB, 8 at once | 1000 MB/s | 500 MB/s, 0.50 |";
        assert!(table.contains(row), "{table}");
        let row = "| RDMA READ 64 KiB, 8 at once | 500 us, 4.00 | 500 us, 4.00 |";
        assert!(table.contains(row), "{table}");
        assert_eq!(report.to_json().len(), 4);
    }
}
