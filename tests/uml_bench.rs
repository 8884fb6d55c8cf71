//! Numbers of an unmodified Linux kernel as the client: SMB Direct against TCP on the same smbd.
//!
//! `make bench-uml` runs it; it tests nothing. Engine and smbd are on the host, the client is a
//! User-mode Linux guest at the other end of a tap. The shared folder is in memory.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/uml.rs"]
mod uml;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use common::{skip, tool_is_missing};
use samba::{wait_until, Options, Process, Server};
use uml::{isolated, make_tap, parts, run, smb_conf, Bed, Guest, PASSWORD};

/// Size of the file that is read and written.
const FILE_BYTES: usize = 256 << 20;
const MIB: f64 = (1 << 20) as f64;

#[test]
fn kernel_client() {
    let test = "kernel_client";
    for tool in ["fio", "strace"] {
        if tool_is_missing(tool) {
            return skip(test, &format!("{tool} is not installed"));
        }
    }
    let Some(parts) = parts(test) else { return };
    if !isolated(test) {
        return;
    }
    if let Err(reason) = make_tap() {
        return skip(test, &reason);
    }
    let from_env =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let seconds = from_env("SMBDIRECT_BENCH_SECONDS", "3");
    let mtu = from_env("SMBDIRECT_BENCH_MTU", "1500");
    // Its own share, for a session of its own.
    let global = format!(
        "{}[tcp]\npath = @DIR@/share/tcp\nread only = no\n",
        smb_conf()
    );
    let options = Options {
        global: &global,
        ..Options::default()
    };
    // The client hangs now and then, see tests/uml/README.md.
    for _ in 0..4 {
        let mut bench = Bench::new(Server::start_with(parts.samba, &options));
        let settings = [
            ("TCP_PORT", bench.server.tcp_port.to_string()),
            ("BENCH_BYTES", FILE_BYTES.to_string()),
            ("BENCH_SECONDS", seconds.clone()),
            ("MTU", mtu.clone()),
        ];
        let guest = Guest::start(&parts, Bed::Tap, "bench", &settings);
        if !guest.finish(|question| bench.answer(question)).hangs {
            return bench.print(&mtu);
        }
    }
    panic!("the client hangs again and again");
}

/// What was seen with one way, size, depth and direction.
#[derive(Default)]
struct Point {
    bytes_per_second: f64,
    operations_per_second: f64,
    /// Of all processes of the server.
    cpu_seconds_per_gib: f64,
    engine_cpu_share: f64,
    engine_calls_per_mib: f64,
    smbd_calls_per_mib: f64,
}

struct Bench {
    server: Server,
    /// Processor time of engine and smbds, at the begin of a measurement.
    before: (f64, f64),
    /// strace of the engine, and of the smbds.
    traces: Vec<Process>,
    /// By size, depth and direction, and then by way.
    points: BTreeMap<String, BTreeMap<String, Point>>,
}

impl Bench {
    fn new(server: Server) -> Self {
        server.add_user(PASSWORD);
        // No disk: neither way is to wait for one.
        let share = server.share("");
        run(&format!(
            "mount -t tmpfs -o mode=0777 tmpfs {}",
            share.display()
        ));
        fs::create_dir(server.share("tcp")).unwrap();
        let data: Vec<u8> = (0..FILE_BYTES).map(|at| ((at * 7) >> 5) as u8).collect();
        for file in ["bench", "tcp/bench"] {
            fs::write(server.share(file), &data).unwrap();
        }
        Self {
            server,
            before: (0.0, 0.0),
            traces: Vec::new(),
            points: BTreeMap::new(),
        }
    }

    /// What `measure` of `tests/uml/bench.sh` asks for.
    fn answer(&mut self, question: &str) -> Result<String, String> {
        let words: Vec<_> = question.split_whitespace().collect();
        match words[..] {
            ["begin"] => self.before = self.cpu_seconds(),
            ["took", way, size, depth, direction] => {
                self.took(way, &point_name(size, depth, direction), direction)?;
            }
            ["trace"] => self.trace(),
            ["traced", way, size, depth, direction] => {
                self.traced(way, &point_name(size, depth, direction), direction)?;
            }
            ["counters"] => {
                // Only the last, the number of connections, is looked at.
                let count = self.server.owned_connections().len();
                return Ok(format!("0 0 0 0 {count}"));
            }
            _ => return Err(format!("unknown question '{question}'")),
        }
        Ok(String::new())
    }

    fn took(&mut self, way: &str, name: &str, direction: &str) -> Result<(), String> {
        let (engine, smbd) = self.cpu_seconds();
        let (engine, smbd) = (engine - self.before.0, smbd - self.before.1);
        let result = fio_result(direction)?;
        let point = self.point(way, name);
        point.bytes_per_second = result.bytes_per_second;
        point.operations_per_second = result.operations_per_second;
        point.cpu_seconds_per_gib = (engine + smbd) / (result.bytes / MIB / 1024.0);
        point.engine_cpu_share = engine / (engine + smbd).max(0.01);
        Ok(())
    }

    fn traced(&mut self, way: &str, name: &str, direction: &str) -> Result<(), String> {
        for trace in &mut self.traces {
            trace.kill(Signal::INT);
            trace.wait();
        }
        self.traces.clear();
        let mib = fio_result(direction)?.bytes / MIB;
        let mut calls = [0.0; 2];
        for (calls, who) in calls.iter_mut().zip(["engine", "smbd"]) {
            let text = fs::read_to_string(trace_file(who)).map_err(|error| error.to_string())?;
            *calls = total_calls(&text).ok_or("strace has no total")?;
            let kept = trace_file(&format!("{who}-{way}-{}", name.replace([' ', ','], "-")));
            fs::rename(trace_file(who), kept).map_err(|error| error.to_string())?;
        }
        let point = self.point(way, name);
        point.engine_calls_per_mib = calls[0] / mib;
        point.smbd_calls_per_mib = calls[1] / mib;
        Ok(())
    }

    fn point(&mut self, way: &str, name: &str) -> &mut Point {
        let ways = self.points.entry(name.to_owned()).or_default();
        ways.entry(way.to_owned()).or_default()
    }

    /// Starts counting calls and returns when it is under way.
    fn trace(&mut self) {
        let engine = vec![self.engine_pid()];
        let smbds = self.smbd_pids();
        for (who, pids) in [("engine", engine), ("smbd", smbds)] {
            let mut command = Command::new("strace");
            command.args(["-f", "-c", "-o"]).arg(trace_file(who));
            for pid in &pids {
                command.arg("-p").arg(pid.to_string());
            }
            let said = File::create(trace_file("said")).unwrap();
            self.traces
                .push(Process::start(command.stdin(Stdio::null()).stderr(said)));
            wait_until("strace attaches", || pids.iter().all(|&pid| is_traced(pid)));
        }
    }

    fn engine_pid(&self) -> u32 {
        self.server.engine.as_ref().expect("was started").pid()
    }

    fn smbd_pids(&self) -> Vec<u32> {
        let mut pids: Vec<_> = self.server.smbd_children().into_iter().collect();
        pids.extend(self.server.smbd.as_ref().map(Process::pid));
        pids
    }

    /// Of the engine, and of all smbds.
    fn cpu_seconds(&self) -> (f64, f64) {
        let smbds = self.smbd_pids().into_iter().map(cpu_seconds_of).sum();
        (cpu_seconds_of(self.engine_pid()), smbds)
    }

    /// A table as README has it.
    fn print(&self, mtu: &str) {
        println!("MTU {mtu}\n");
        println!(
            "| I/O, queue depth | TCP | SMB Direct | ratio | CPU s/GiB, TCP | CPU s/GiB, SMB Direct \
             (engine) | calls/MiB, TCP | calls/MiB, SMB Direct |"
        );
        println!("|{}", "---|".repeat(8));
        for (name, ways) in &self.points {
            let (Some(tcp), Some(rdma)) = (ways.get("tcp"), ways.get("rdma")) else {
                continue;
            };
            let speed = |point: &Point| match name.starts_with("4 KiB") {
                true => format!("{:.0}/s", point.operations_per_second),
                false => format!("{:.0} MB/s", point.bytes_per_second / 1e6),
            };
            println!(
                "| {name} | {} | {} | {:.2} | {:.2} | {:.2} ({:.0} %) | {:.0} | {:.0} + {:.0} |",
                speed(tcp),
                speed(rdma),
                rdma.bytes_per_second / tcp.bytes_per_second,
                tcp.cpu_seconds_per_gib,
                rdma.cpu_seconds_per_gib,
                rdma.engine_cpu_share * 100.0,
                tcp.smbd_calls_per_mib,
                rdma.smbd_calls_per_mib,
                rdma.engine_calls_per_mib,
            );
        }
    }
}

fn point_name(size: &str, depth: &str, direction: &str) -> String {
    let size = match size {
        "1m" => "1 MiB",
        "64k" => "64 KiB",
        _ => "4 KiB",
    };
    format!("{size} {direction}, {depth}")
}

fn trace_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("strace-{name}"))
}

struct FioResult {
    bytes: f64,
    bytes_per_second: f64,
    operations_per_second: f64,
}

/// What fio in the guest has written.
fn fio_result(direction: &str) -> Result<FioResult, String> {
    let file = std::env::temp_dir().join("guest/fio.json");
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let json: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let job = &json["jobs"][0];
    let field = |name: &str| match job[direction][name].as_f64() {
        Some(value) if value > 0.0 && job["error"] == 0 => Ok(value),
        _ => Err(format!("fio has no {name} of the {direction}s: {text}")),
    };
    Ok(FioResult {
        bytes: field("io_bytes")?,
        bytes_per_second: field("bw_bytes")?,
        operations_per_second: field("iops")?,
    })
}

/// Calls that `strace -c` has counted.
fn total_calls(text: &str) -> Option<f64> {
    match text.lines().find(|line| line.ends_with(" total")) {
        Some(line) => line.split_whitespace().nth(3)?.parse().ok(),
        // It writes nothing if there was no call.
        None => text.trim().is_empty().then_some(0.0),
    }
}

/// User and system time of a process, in seconds; 0 if it is gone.
fn cpu_seconds_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // The first is field 3; utime and stime are 14 and 15.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}
