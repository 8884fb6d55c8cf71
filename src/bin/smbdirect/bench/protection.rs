//! `bench --smb --protection`: what signing and encryption cost, by RDMA, by TCP and in messages.
//!
//! For each kind of protection there are three sessions with the same file. Their repetitions
//! alternate. The client's own share of the work is in the speed, not in the CPU time.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{json, Value};
use smbdirect::smb::{Cipher, Encrypting, OpenMode, Options, Protection, Signing, SmbError};

use super::median;
use super::process::cpu_seconds_of_trees;
use super::smb::{file_name, file_size, options, Case, Side, Slot, Target, Way, BLOCK_1M};
use crate::failure::Failure;
use crate::session::say;

/// A way to protect messages and data.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Signed(&'static str, Signing),
    Encrypted(&'static str, Cipher),
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Plain,
        Self::Signed("AES-128-GMAC", Signing::AlwaysGmac),
        Self::Signed("AES-128-CMAC", Signing::AlwaysCmac),
        Self::Signed("HMAC-SHA256", Signing::AlwaysHmac),
        Self::Encrypted("AES-128-GCM", Cipher::Aes128Gcm),
        Self::Encrypted("AES-256-GCM", Cipher::Aes256Gcm),
        Self::Encrypted("AES-128-CCM", Cipher::Aes128Ccm),
        Self::Encrypted("AES-256-CCM", Cipher::Aes256Ccm),
    ];

    fn name(self) -> String {
        match self {
            Self::Plain => "plain".into(),
            Self::Signed(algorithm, _) => format!("signed, {algorithm}"),
            Self::Encrypted(cipher, _) => format!("encrypted, {cipher}"),
        }
    }

    fn options(self) -> Result<Options, Failure> {
        let mut options = options()?;
        match self {
            Self::Plain => {}
            Self::Signed(_, signing) => options.signing = signing,
            Self::Encrypted(_, cipher) => {
                options.encrypting = Encrypting::Always;
                options.ciphers = vec![cipher];
            }
        }
        Ok(options)
    }

    fn protection(self) -> Protection {
        match self {
            Self::Plain => Protection::Plain,
            Self::Signed(..) => Protection::Signed,
            Self::Encrypted(..) => Protection::Encrypted,
        }
    }
}

/// What one way came to.
#[derive(Clone, Copy)]
struct Figures {
    /// Bytes of one request.
    block: u32,
    /// GB/s.
    speed: f64,
    /// CPU seconds of the server for each GiB; none if it was not asked for.
    cpu: Option<f64>,
}

/// One line: a protection and a direction.
struct Line {
    what: String,
    /// By RDMA, by TCP, in messages. None: not possible with this server.
    ways: [Option<Figures>; 3],
}

const WAYS: [(&str, Way); 3] = [
    ("rdma", Way::Rdma),
    ("tcp", Way::Tcp),
    ("messages", Way::Messages),
];

/// Measures and shows.
pub(super) fn run(args: &super::Args) -> Result<(), Failure> {
    let size = file_size(args)?;
    let target = Target::one(&args.smb)?;
    let mut lines = Vec::new();
    for kind in Kind::ALL {
        match measure(args, &target, kind, size) {
            Ok(more) => lines.extend(more),
            // A server that has not this algorithm, or wants more than this.
            Err(failure) => eprintln!("{}: {failure}", kind.name()),
        }
    }
    if lines.is_empty() {
        return Err(Failure::Failed(format!(
            "{}: nothing could be measured",
            target.share
        )));
    }
    if args.json {
        let lines: Vec<Value> = lines.iter().map(Line::to_json).collect();
        say(json!({ "version": env!("CARGO_PKG_VERSION"), "results": lines }));
    } else {
        say(table(&lines));
    }
    Ok(())
}

fn measure(
    args: &super::Args,
    target: &Target,
    kind: Kind,
    size: u64,
) -> Result<Vec<Line>, Failure> {
    let failed = |error: SmbError| Failure::Failed(format!("{}: {error}", target.share));
    let name = file_name()?;
    let mut sides = Vec::new();
    for (_, way) in WAYS {
        let mut side = Side::connect(target, way, kind.options()?)?;
        // The first one deletes it in the end.
        let mode = match sides.is_empty() {
            true => OpenMode::DeleteOnClose,
            false => OpenMode::ReadWrite,
        };
        side.open(&name, mode).map_err(failed)?;
        sides.push(side);
    }
    let protection = sides[0].protection();
    let has_transform = protection == kind.protection();
    if !has_transform {
        let wanted = kind.name();
        eprintln!("{wanted}: the server gives {protection:?} to data by RDMA");
    }
    sides[1].fill(size).map_err(failed)?;
    let mut lines = Vec::new();
    for is_read in [false, true] {
        let mut speeds = [const { Vec::new() }; 3];
        let mut costs = [const { Vec::new() }; 3];
        let mut blocks = [0; 3];
        let mut slots = [const { Vec::new() }; 3];
        // In the first round the server touches its memory; it does not count.
        for round in 0..=args.repeat {
            for (i, side) in sides.iter_mut().enumerate() {
                if i == 0 && !has_transform {
                    continue;
                }
                blocks[i] = side.block(BLOCK_1M);
                let case = Case {
                    is_read,
                    block: blocks[i],
                    is_random: false,
                    depth: args.depth,
                };
                let operations = size / u64::from(blocks[i]);
                let bytes = (operations * u64::from(blocks[i])) as f64;
                if slots[i].is_empty() {
                    slots[i] = Slot::all(case, WAYS[i].1).map_err(failed)?;
                }
                let cpu = cpu_seconds_of_trees(&args.smb.cpu_of)?;
                let start = Instant::now();
                side.run(case, operations, size, &mut slots[i])
                    .map_err(failed)?;
                let speed = bytes / 1e9 / start.elapsed().as_secs_f64();
                let cpu = cpu_seconds_of_trees(&args.smb.cpu_of)? - cpu;
                if round > 0 {
                    speeds[i].push(speed);
                    costs[i].push(cpu / (bytes / f64::from(1 << 30)));
                }
            }
        }
        let mut ways = [None; 3];
        for (i, way) in ways.iter_mut().enumerate() {
            if speeds[i].is_empty() {
                continue;
            }
            let counts_cpu = !args.smb.cpu_of.is_empty();
            *way = Some(Figures {
                block: blocks[i],
                speed: median(&mut speeds[i]),
                cpu: counts_cpu.then(|| median(&mut costs[i])),
            });
        }
        let direction = if is_read { "read" } else { "write" };
        lines.push(Line {
            what: format!("{}: {direction}", kind.name()),
            ways,
        });
    }
    // The one that deletes the file is the last that closes it.
    for side in sides.iter_mut().rev() {
        side.end().map_err(failed)?;
    }
    Ok(lines)
}

/// What `of` gives for RDMA, divided by what it gives for another way.
fn ratio(ways: &[Option<Figures>; 3], to: usize, of: fn(&Figures) -> Option<f64>) -> Option<f64> {
    let rdma = ways[0].as_ref().and_then(of)?;
    let other = ways[to].as_ref().and_then(of)?;
    (other > 0.0).then(|| rdma / other)
}

fn speed(figures: &Figures) -> Option<f64> {
    Some(figures.speed)
}

fn cpu(figures: &Figures) -> Option<f64> {
    figures.cpu
}

impl Line {
    fn to_json(&self) -> Value {
        let mut object = json!({ "what": self.what });
        for (i, (name, _)) in WAYS.into_iter().enumerate() {
            object[name] = match &self.ways[i] {
                Some(it) => json!({
                    "block": it.block,
                    "gb_per_second": it.speed,
                    "cpu_seconds_per_gib": it.cpu,
                }),
                None => Value::Null,
            };
            if i > 0 {
                object[format!("speed_to_{name}")] = json!(ratio(&self.ways, i, speed));
                object[format!("cpu_to_{name}")] = json!(ratio(&self.ways, i, cpu));
            }
        }
        object
    }
}

fn table(lines: &[Line]) -> String {
    let cell = |value: Option<f64>| value.map_or_else(|| "-".into(), |it| format!("{it:.2}"));
    let mut text = format!(
        "{:<30} {:^32}  {:^32}\n{:<30}",
        "", "GB/s", "CPU seconds of the server per GiB", ""
    );
    for _ in 0..2 {
        for name in ["RDMA", "TCP", "PDUs", "to TCP", "to PDUs"] {
            let _ = write!(text, " {name:>7}");
        }
        text.push_str("  ");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    for line in lines {
        let _ = write!(text, "{:<30}", line.what);
        let groups: [fn(&Figures) -> Option<f64>; 2] = [speed, cpu];
        for (i, of) in groups.into_iter().enumerate() {
            if i > 0 {
                text.push_str("  ");
            }
            for way in &line.ways {
                let _ = write!(text, " {:>7}", cell(way.as_ref().and_then(of)));
            }
            for to in [1, 2] {
                let _ = write!(text, " {:>7}", cell(ratio(&line.ways, to, of)));
            }
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_transforms_has_no_ratio() {
        let figures = |speed, cpu| {
            Some(Figures {
                block: BLOCK_1M,
                speed,
                cpu,
            })
        };
        let all = Line {
            what: "signed".into(),
            ways: [
                figures(3.0, Some(0.5)),
                figures(2.0, Some(1.0)),
                figures(1.0, Some(2.0)),
            ],
        };
        let json = all.to_json();
        assert_eq!(json["speed_to_tcp"], 1.5);
        assert_eq!(json["speed_to_messages"], 3.0);
        assert_eq!(json["cpu_to_tcp"], 0.5);
        assert_eq!(json["cpu_to_messages"], 0.25);
        let none = Line {
            what: "encrypted".into(),
            ways: [None, figures(2.0, None), figures(0.0, None)],
        };
        let json = none.to_json();
        assert_eq!(json["rdma"], Value::Null);
        assert_eq!(json["speed_to_tcp"], Value::Null);
        let text = table(&[all, none]);
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("    1.50    3.00 "), "{text}");
    }
}
