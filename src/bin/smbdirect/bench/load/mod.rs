//! Many connections with mixed traffic at once: nothing is lost, memory stays, shares are fair.
//!
//! The engine, the handles (one process for all of them, a handle for each connection) and, in the
//! second half, a storm of short connections are children; the peers of all connections are here.
//! Each message has a sequence number and content that belongs to it alone; both sides compare. A
//! difference, a gap or an end of a connection is a failure.

mod client;
mod message;
mod report;
mod server;
mod storm;

use std::time::{Duration, Instant};

use serde_json::Value;

use self::client::Load;
use super::process::{cpu_seconds, open_files, own_bytes, Process};
use super::small::Bed;
use super::{Args, Row};
use crate::failure::Failure;

pub(super) use self::server::run as run_server;
pub(super) use self::storm::run as run_storm;

/// Handles that storms come to.
const STORM_HANDLES: u32 = 4;

/// What is known of memory at one moment, bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    /// Of the engine alone.
    engine: u64,
    /// Of the handles' process alone.
    handles: u64,
    /// Committed in all areas.
    areas: u64,
}

pub(super) fn measure(args: &Args) -> Result<Vec<Row>, Failure> {
    let count = args.connections.first().copied().unwrap_or(1000);
    smbdirect::sys::raise_file_limit();
    let bed = Bed::new()?;
    let engine = bed.engine.pid();
    let mut server = Process::start(&[
        "bench-helper",
        "load-server",
        &bed.socket().to_string_lossy(),
        &count.to_string(),
        &STORM_HANDLES.to_string(),
    ])?;
    let address = server.address()?;
    let look = || -> Result<Memory, Failure> {
        Ok(Memory {
            engine: own_bytes(engine)?,
            handles: own_bytes(server.pid())?,
            areas: bed.committed_bytes()?,
        })
    };
    let files = open_files(engine)?;
    let mut load = Load::connect(address, count)?;

    let start = Instant::now();
    let cpu = cpu_seconds(engine)?;
    let end = start + args.seconds;
    // Ten looks, the first when caches and areas have got what they need.
    let mut looks = Vec::new();
    let mut storm: Option<Process> = None;
    for tenth in 1..=10 {
        load.run(start + args.seconds * tenth / 10)?;
        looks.push(look()?);
        if tenth == 5 {
            load.next_half();
            storm = Some(Process::start(&[
                "bench-helper",
                "load-storm",
                &address.to_string(),
                &count.to_string(),
                &STORM_HANDLES.to_string(),
            ])?);
        }
        if !args.json {
            let left = end.saturating_duration_since(Instant::now()).as_secs();
            eprintln!("    {left} s to go");
        }
    }
    let cpu = (cpu_seconds(engine)? - cpu) / start.elapsed().as_secs_f64();
    let storm: Value = match storm {
        Some(storm) => serde_json::from_str(&storm.finish()?).map_err(Failure::of("storm"))?,
        None => Value::Null,
    };
    load.drain()?;
    let done = load.finish()?;
    wait_for_rest(&bed, engine, files)?;
    Ok(report::rows(&done, &looks, cpu, &storm))
}

/// Waits until the engine has no connection and no descriptor of one any more.
fn wait_for_rest(bed: &Bed, engine: u32, files: usize) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let left = bed.status()?.connections.len();
        let open = open_files(engine)?;
        if left == 0 && open <= files {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(20) {
            return Err(Failure::Failed(format!(
                "the engine has {left} connections left and {open} descriptors, {files} before"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
