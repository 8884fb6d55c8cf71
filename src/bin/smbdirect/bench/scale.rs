//! Many connections: how fast they come, what they cost when idle.

use std::time::Instant;

use smbdirect::peer::PeerEvent;

use super::process::{cpu_seconds, pss_bytes};
use super::small::{listen, passive, Bed};
use super::{Args, Row};
use crate::failure::Failure;
use crate::session::Session;

pub(super) fn measure(args: &Args) -> Result<Vec<Row>, Failure> {
    let counts = if args.connections.is_empty() {
        &[1, 100, 1000][..]
    } else {
        &args.connections
    };
    let mut rows = Vec::new();
    for &count in counts {
        rows.extend(measure_one(args, count)?);
    }
    Ok(rows)
}

fn measure_one(args: &Args, count: u32) -> Result<Vec<Row>, Failure> {
    let bed = Bed::new()?;
    let mut session = passive()?;
    let address = listen(&mut session)?;
    let engine = bed.engine.pid();
    let engine_before = pss_bytes(engine)?;
    let mut handles = bed.handles(address, count)?;
    let line = connect_all(&mut session, &mut handles, count)?;
    // `attached SECONDS PSS`: how long it took, and the process's size before its first handle.
    let mut fields = line
        .split_whitespace()
        .skip(1)
        .filter_map(|it| it.parse::<f64>().ok());
    let (seconds, before) = (fields.next().unwrap_or(0.0), fields.next().unwrap_or(0.0));
    let engine_bytes = pss_bytes(engine)?.saturating_sub(engine_before) as f64;
    let handle_bytes = (pss_bytes(handles.pid())? as f64 - before).max(0.0);
    let committed = bed.committed_bytes()? as f64;

    // Idle: only the time that the engine uses counts. The session here has nothing to do either.
    let cpu = cpu_seconds(engine)?;
    let start = Instant::now();
    while session.next(Some(start + args.idle))?.is_some() {}
    let cpu = cpu_seconds(engine)? - cpu;
    let share = cpu / start.elapsed().as_secs_f64() * 100.0;

    let n = f64::from(count);
    let row = |what: String, ours, unit, goal| Row {
        what,
        ours,
        tcp: None,
        unit,
        goal,
    };
    let each = |bytes: f64| bytes / n / 1024.0;
    Ok(vec![
        row(
            format!("{count} connections, a handle each: rate"),
            n / seconds,
            "1/s",
            "",
        ),
        row(
            format!("{count} idle: memory of engine and handles, each"),
            each(engine_bytes + handle_bytes),
            "KiB",
            "<= 128 + credits x size",
        ),
        row(
            format!("{count} idle: of it in the engine alone, each"),
            each(engine_bytes),
            "KiB",
            "",
        ),
        row(
            format!("{count} idle: committed in shared areas, each"),
            each(committed),
            "KiB",
            "",
        ),
        row(
            format!("{count} idle: CPU of the engine"),
            share,
            "%",
            if count >= 1000 { "< 1" } else { "" },
        ),
    ])
}

/// Serves connections until the handles' process says that all are attached.
fn connect_all(
    session: &mut Session,
    handles: &mut super::process::Process,
    count: u32,
) -> Result<String, Failure> {
    let mut connected = 0;
    while connected < count {
        match session.next(Some(super::helper::patience()))? {
            Some(PeerEvent::Connected { .. }) => connected += 1,
            Some(PeerEvent::Disconnected { reason, .. }) => {
                return Err(Failure::Failed(format!("connection lost: {reason}")));
            }
            Some(_) => {}
            None => {
                return Err(Failure::Failed(format!(
                    "only {connected} of {count} connections came"
                )));
            }
        }
    }
    handles.line()
}
