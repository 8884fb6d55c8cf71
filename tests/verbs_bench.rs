//! Numbers of RDMA devices in one guest: the verbs fabric over rxe and over siw against software iWARP
//! and TCP, between two of our processes, with our SMB client and with the kernel's.
//!
//! `make bench-verbs` runs it; it tests nothing, and prints tables for README. All runs in a User-mode
//! Linux guest with one processor, both ends of everything included.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/uml.rs"]
mod uml;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use common::{skip, tool_is_missing};
use uml::{isolated, kernel_and_tools, parts, Bed, Guest, VERBS};

/// The ways of the SMB clients: the name, what `smbdirect bench --rdma` gets (nothing: TCP), and what
/// tests/uml/bench.sh calls it.
const WAYS: [(&str, &str, &str); 4] = [
    ("TCP", "", "tcp"),
    ("software iWARP", "10.77.1.3:5445", "soft"),
    ("verbs, rxe", "verbs:10.77.0.1:445", "rxe"),
    ("verbs, siw", "verbs:10.77.1.1:5445", "siw"),
];

#[test]
fn in_a_guest() {
    let test = "in_a_guest";
    for tool in ["fio", "strace"] {
        if tool_is_missing(tool) {
            return skip(test, &format!("{tool} is not installed"));
        }
    }
    if kernel_and_tools(test, &VERBS).is_none() {
        return;
    }
    let Some(parts) = parts(test) else { return };
    if !isolated(test) {
        return;
    }
    let setting =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let mtu = setting("SMBDIRECT_BENCH_MTU", "1500");
    let rdma: Vec<_> = WAYS.iter().map(|(_, rdma, _)| *rdma).collect();
    let mut settings = vec![
        ("MTU", mtu.clone()),
        ("RDMA", rdma.join(" ").trim().to_owned()),
        ("BENCH_SECONDS", setting("SMBDIRECT_BENCH_SECONDS", "1")),
        ("BENCH_ROUNDS", setting("SMBDIRECT_BENCH_ROUNDS", "2")),
        ("BENCH_BYTES", (64 << 20).to_string()),
        (
            "ENGINE_OPTIONS",
            "--listen verbs:10.77.0.1 --listen verbs:10.77.1.1 --listen 10.77.1.3:5445".to_owned(),
        ),
        (
            "SMB_CONF",
            "interfaces = 127.0.0.1 10.77.0.1/24 10.77.1.1/24 10.77.1.3/24\n\
             bind interfaces only = yes\n\
             server multi channel support = yes\n\
             server smb direct = yes\n\
             smb direct listen =\n\
             log level = 1\n"
                .to_owned(),
        ),
    ];
    let before = load();
    // The client hangs now and then, see tests/uml/README.md.
    let mut passed: Vec<String> = Vec::new();
    for _ in 0..3 {
        settings.push(("PASSED", passed.join(" ")));
        let guest = Guest::start(&parts, Bed::Pairs, "verbs_bench", &settings);
        let ended = guest.finish(|question| Err(format!("nobody answers '{question}'")));
        passed.extend(ended.passed);
        if !ended.hangs {
            print(&std::env::temp_dir().join("guest"));
            println!(
                "\nMTU {mtu}; load of the host before: {before}, after: {}",
                load()
            );
            return;
        }
    }
    panic!("the client hangs again and again");
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn print(folder: &Path) {
    println!("## Fabric\n\n{}", read(folder, "fabric.md"));
    println!("## smbd, our client\n");
    let result: Value = serde_json::from_str(&read(folder, "smb.json")).unwrap();
    println!(
        "{}",
        our_client(&result["results"]).text("usec of the server")
    );
    println!("## smbd, the kernel's client\n");
    println!("{}", kernel_client(folder).text("s/GiB of the server"));
}

/// Speed and processor time, by what was done and by way.
#[derive(Default)]
struct Table {
    /// In the order of the tables.
    rows: Vec<String>,
    speeds: BTreeMap<(String, usize), f64>,
    costs: BTreeMap<(String, usize), f64>,
}

impl Table {
    fn set(&mut self, row: &str, way: usize, speed: Option<f64>, cost: Option<f64>) {
        if !self.rows.iter().any(|known| known == row) {
            self.rows.push(row.to_owned());
        }
        let key = (row.to_owned(), way);
        if let Some(speed) = speed {
            self.speeds.insert(key.clone(), speed);
        }
        if let Some(cost) = cost {
            self.costs.insert(key, cost);
        }
    }

    fn text(&self, unit: &str) -> String {
        let head: String = WAYS.iter().map(|(name, ..)| format!(" {name} |")).collect();
        let mut text = format!("| |{head}\n|{}\n", "---|".repeat(WAYS.len() + 1));
        for row in &self.rows {
            let of = |values: &BTreeMap<(String, usize), f64>, way| {
                values.get(&(row.clone(), way)).copied().unwrap_or(f64::NAN)
            };
            let tcp = of(&self.speeds, 0);
            text.push_str(&format!("| {row} |"));
            for way in 0..WAYS.len() {
                let (speed, cost) = (of(&self.speeds, way), of(&self.costs, way));
                let ratio = match way {
                    0 => String::new(),
                    _ => format!(" ({:.2})", speed / tcp),
                };
                let rate = if row.contains(" 4 KiB") {
                    "/s"
                } else {
                    " MB/s"
                };
                let digits = if cost < 10.0 { 2 } else { 0 };
                text.push_str(&format!(" {speed:.0}{rate}{ratio}, {cost:.digits$} |"));
            }
            text.push('\n');
        }
        format!("{text}\nAfter the comma: {unit}.\n")
    }
}

fn our_client(results: &Value) -> Table {
    let mut table = Table::default();
    for result in results.as_array().into_iter().flatten() {
        let what = result["what"].as_str().unwrap_or_default();
        let what = what.trim_start_matches("smb: ");
        let is_cost = what.ends_with(", server's CPU");
        let what = what.trim_end_matches(", server's CPU");
        for (at, (_, rdma, _)) in WAYS.iter().enumerate().skip(1) {
            let Some(row) = what.strip_suffix(&format!(", {rdma}")) else {
                continue;
            };
            for (way, side) in [(0, "tcp"), (at, "ours")] {
                let value = result[side].as_f64();
                match is_cost {
                    true => table.set(row, way, None, value),
                    false => table.set(row, way, value, None),
                }
            }
        }
    }
    assert_eq!(table.speeds.len(), 12 * WAYS.len(), "{results:#}");
    table
}

/// From the lines `WAY SIZE DEPTH DIRECTION ROUND SECONDS` of processor time, and what fio wrote.
fn kernel_client(folder: &Path) -> Table {
    #[derive(Default)]
    struct Sum {
        bytes: f64,
        speed: f64,
        cpu: f64,
        rounds: f64,
    }
    let mut sums: BTreeMap<(String, usize), Sum> = BTreeMap::new();
    let mut table = Table::default();
    for line in read(folder, "cpu").lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [way, size, depth, direction, round, cpu] = words[..] else {
            panic!("'{line}'");
        };
        let name = format!("fio-{way}-{size}-{depth}-{direction}-{round}.json");
        let result: Value = serde_json::from_str(&read(folder, &name)).unwrap();
        let job = &result["jobs"][0];
        assert_eq!(job["error"], 0, "{name}: {result:#}");
        let field = |field: &str| job[direction][field].as_f64().unwrap_or_default();
        let way = WAYS.iter().position(|(.., short)| *short == way).unwrap();
        let (row, speed) = match size {
            "4k" => ("4 KiB", field("iops")),
            "64k" => ("64 KiB", field("bw_bytes") / 1e6),
            _ => ("1 MiB", field("bw_bytes") / 1e6),
        };
        let row = format!("{direction}, {row}, depth {depth}");
        let sum = sums.entry((row.clone(), way)).or_default();
        sum.bytes += field("io_bytes");
        sum.speed += speed;
        sum.cpu += cpu.parse::<f64>().unwrap();
        sum.rounds += 1.0;
        let cost = sum.cpu / (sum.bytes / f64::from(1 << 30));
        table.set(&row, way, Some(sum.speed / sum.rounds), Some(cost));
    }
    assert_eq!(table.speeds.len(), 12 * WAYS.len());
    table
}
