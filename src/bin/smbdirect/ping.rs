//! `smbdirect ping`: negotiation and round trips, at the level of SMB Direct.

use std::time::{Duration, Instant};

use serde_json::json;
use smbdirect::peer::{Config, Endpoint, PeerEvent};
use smbdirect::proto::Params;
use smbdirect::sys::{Interest, Ready};
use smbdirect::wire::{DataTransfer, NegotiateRequest, NegotiateResponse, VERSION};

use crate::args::{resolve_target, SmbdArgs};
use crate::failure::Failure;
use crate::session::{describe, say, Link, Session};
use crate::signals::StopSignal;
use crate::units::{parse_seconds, parse_size_u32, usec};

/// Measure SMB Direct round trips between two machines.
///
/// As with the ib_*_bw tools the same program is both ends: without HOST it listens and answers,
/// with HOST it connects, negotiates and measures. With --probe it measures any SMB Direct server,
/// smbd, Windows or ksmbd, with keepalive messages that carry no payload.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:\n  \
    smbdirect ping                       answer on port 5445 of all addresses\n  \
    smbdirect ping server                1000 round trips of 64 bytes to the above\n  \
    smbdirect ping server -s 64K -n 100  larger ones, in fragments\n  \
    smbdirect ping --probe server:5445   any SMB Direct server, no payload\n  \
    smbdirect ping --probe verbs:server  the same through an RDMA device\n\n\
    Exit status: 0 all round trips done (passive: stopped by a signal), 1 failure, \
    2 wrong usage.")]
pub(crate) struct Args {
    /// The passive side to connect to; without it this side is the passive one. By software iWARP,
    /// or with verbs: in front through an RDMA device [port: 5445, with
    /// verbs: 445 if the device is not iWARP]
    #[arg(value_name = "[verbs:]HOST[:PORT]")]
    host: Option<String>,
    /// Passive side: where to listen; port 0 takes a free one, printed as `listening on ...` [port:
    /// 5445; with verbs: 445, and 5445 on the address of an iWARP device]
    #[arg(
        long,
        value_name = "[verbs:]ADDRESS[:PORT]",
        default_value = "0.0.0.0",
        conflicts_with = "host"
    )]
    listen: String,
    /// Passive side: end when the first connection has ended
    #[arg(long, conflicts_with = "host")]
    once: bool,
    /// Payload of a message, bytes (K, M allowed); above the negotiated size it goes in fragments
    #[arg(short, long, value_name = "BYTES", value_parser = parse_size_u32,
          default_value = "64")]
    size: u32,
    /// Round trips to measure
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    iters: u32,
    /// Seconds between two round trips, 0: none
    #[arg(short, long, value_name = "SECONDS", value_parser = parse_seconds,
          default_value = "0")]
    interval: Duration,
    /// Seconds after which a round trip counts as lost and the measurement ends
    #[arg(short = 'W', long, value_name = "SECONDS", value_parser = parse_seconds,
          default_value = "10")]
    timeout: Duration,
    /// Use keepalive messages, which every SMB Direct server answers
    #[arg(long, requires = "host", conflicts_with = "size")]
    probe: bool,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    smbd: SmbdArgs,
}

/// Either side.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.host {
        Some(host) => measure(args, host),
        None => answer(args),
    }
}

fn answer(args: &Args) -> Result<(), Failure> {
    let stop = StopSignal::new().map_err(Failure::of("catching SIGTERM"))?;
    let target = resolve_target(&args.listen)?;
    let config = Config {
        kind: target.fabric,
        passive: args.smbd.params(Params::default())?,
        accept: args.smbd.accept_options(),
        ..Config::default()
    };
    let mut endpoint = Endpoint::new(config).map_err(Failure::of("starting"))?;
    let address = target.own(&endpoint);
    let (_, address) = endpoint
        .listen(address, &args.smbd.listen_options())
        .map_err(Failure::of(format!(
            "--listen {address}: choose another address or port"
        )))?;
    endpoint
        .registry()
        .add(&stop, 0, Interest::READ)
        .map_err(Failure::of("waiting for signals"))?;
    say(format_args!("listening on {address}"));
    let mut session = Session::new(endpoint);
    while let Some(event) = session.next(None)? {
        let endpoint = &mut session.endpoint;
        match event {
            PeerEvent::Ready(Ready { .. }) => return Ok(()),
            PeerEvent::Connected {
                connection,
                negotiated,
            } => {
                if let Some((_, peer)) = endpoint.addresses(connection) {
                    say(format_args!("{peer}: connected, {}", describe(&negotiated)));
                }
            }
            PeerEvent::Pdu {
                connection, pdu, ..
            } => {
                if let Err(error) = endpoint.send(connection, &[&pdu], 0, None) {
                    log::warn!("not answered: {error}");
                }
                endpoint.recycle(pdu);
            }
            PeerEvent::Disconnected { reason, stats, .. } => {
                let smbd = &stats.smbd;
                say(format_args!(
                    "connection ended: {reason}; answered {} PDUs in {} fragments, {} probes",
                    smbd.messages_received, smbd.pdus_received, smbd.keepalives_received
                ));
                if args.once {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn measure(args: &Args, host: &str) -> Result<(), Failure> {
    let target = resolve_target(host)?;
    let config = Config {
        kind: target.fabric,
        active: args.smbd.params(Params::active())?,
        raw: args.probe,
        ..Config::default()
    };
    let params = config.active.clone();
    let endpoint = Endpoint::new(config).map_err(Failure::of("starting"))?;
    let peer = target.peer(&endpoint);
    let mut session = Session::new(endpoint);
    let began = Instant::now();
    let link = session.connect(&args.smbd.connect_options(peer))?;
    let mut prober = None;
    let text = if args.probe {
        let (new, response) = Prober::negotiate(&mut session, &link, &params, args.timeout)?;
        prober = Some(new);
        format!(
            "send size {}, receive size {}, fragmented {}, read/write {} bytes, {} credits",
            response.max_receive_size,
            response.preferred_send_size,
            response.max_fragmented_size,
            response.max_read_write_size,
            response.credits_granted,
        )
    } else {
        link.negotiated.as_ref().map(describe).unwrap_or_default()
    };
    let setup = began.elapsed();
    if !args.json {
        say(format_args!(
            "{}: connected from {} in {} usec, {} RDMA READs at once",
            link.peer,
            link.local,
            usec(setup),
            link.ord
        ));
        say(format_args!("negotiated: {text}"));
    }

    let payload: Vec<u8> = (0..args.size).map(|at| at as u8).collect();
    let mut times = Vec::with_capacity(args.iters.min(1 << 20) as usize);
    for _ in 0..args.iters {
        let start = Instant::now();
        let deadline = start + args.timeout;
        match &mut prober {
            Some(prober) => prober.probe(&mut session, &link, deadline)?,
            None => echo(&mut session, &link, &payload, deadline)?,
        }
        times.push(start.elapsed());
        if !args.interval.is_zero() {
            std::thread::sleep(args.interval);
        }
    }
    session.endpoint.disconnect(link.id);
    let _ = session.next(Some(Instant::now() + Duration::from_secs(1)));
    report(args, &link, &mut times, setup, &text);
    Ok(())
}

fn echo(
    session: &mut Session,
    link: &Link,
    payload: &[u8],
    deadline: Instant,
) -> Result<(), Failure> {
    session
        .endpoint
        .send(link.id, &[payload], 0, None)
        .map_err(Failure::of(format!("sending {} bytes", payload.len())))?;
    loop {
        match session.next(Some(deadline))? {
            Some(PeerEvent::Pdu { pdu, .. }) => {
                let is_same = *pdu == *payload;
                session.endpoint.recycle(pdu);
                return if is_same {
                    Ok(())
                } else {
                    Err(Failure::Failed(
                        "the answer is not what was sent; is the other side `smbdirect ping`? \
                         (--probe measures any SMB Direct server)"
                            .into(),
                    ))
                };
            }
            event => check(event)?,
        }
    }
}

/// Passes over what does not matter; ends on what does.
fn check(event: Option<PeerEvent>) -> Result<(), Failure> {
    match event {
        Some(PeerEvent::Disconnected { reason, .. }) => Err(Failure::Failed(format!(
            "connection lost: {reason} (--probe measures any SMB Direct server)"
        ))),
        Some(_) => Ok(()),
        None => Err(Failure::Failed(
            "no answer in time; -W sets how long to wait".into(),
        )),
    }
}

/// Keepalive round trips without the state machine, which would send them only when it is idle.
struct Prober {
    credits: u32,
    /// Messages received and not yet granted again.
    owed: u16,
    target: u16,
}

impl Prober {
    fn negotiate(
        session: &mut Session,
        link: &Link,
        params: &Params,
        timeout: Duration,
    ) -> Result<(Self, NegotiateResponse), Failure> {
        let request = NegotiateRequest {
            min_version: VERSION,
            max_version: VERSION,
            credits_requested: params.send_credit_target,
            preferred_send_size: params.max_send_size,
            max_receive_size: params.max_receive_size,
            max_fragmented_size: params.max_fragmented_size,
        };
        let bad = |text: String| Failure::Failed(format!("{}: {text}", link.peer));
        session
            .endpoint
            .send_raw(link.id, &request.emit(), 0, None)
            .map_err(|error| bad(error.to_string()))?;
        let answer = receive(session, Instant::now() + timeout)?;
        let response = NegotiateResponse::parse(&answer).map_err(|e| bad(e.to_string()))?;
        response
            .validate(params.max_receive_size)
            .map_err(|e| bad(e.to_string()))?;
        // Some of the receives that stand are granted with the first message, the rest is room.
        let owed = params
            .receive_credit_max
            .min(response.credits_requested)
            .div_ceil(2);
        let prober = Self {
            credits: response.credits_granted.into(),
            owed,
            target: params.send_credit_target,
        };
        Ok((prober, response))
    }

    fn probe(
        &mut self,
        session: &mut Session,
        link: &Link,
        deadline: Instant,
    ) -> Result<(), Failure> {
        if self.credits == 0 {
            return Err(Failure::Failed("the server gave no more credits".into()));
        }
        let message = DataTransfer {
            credits_requested: self.target,
            credits_granted: std::mem::take(&mut self.owed),
            flags: DataTransfer::RESPONSE_REQUESTED,
            ..DataTransfer::default()
        };
        self.credits -= 1;
        session
            .endpoint
            .send_raw(link.id, &message.emit(), 0, None)
            .map_err(Failure::of("sending a probe"))?;
        loop {
            let bytes = receive(session, deadline)?;
            let answer = DataTransfer::parse(&bytes).map_err(Failure::of("the answer"))?;
            self.credits += u32::from(answer.credits_granted);
            self.owed = self.owed.saturating_add(1);
            // A probe of the server's own is no answer, and needs none: we send again at once.
            if !answer.is_response_requested() {
                return Ok(());
            }
        }
    }
}

fn receive(session: &mut Session, deadline: Instant) -> Result<Vec<u8>, Failure> {
    loop {
        match session.next(Some(deadline))? {
            Some(PeerEvent::Raw { message, .. }) => {
                let bytes = message.to_vec();
                session.endpoint.recycle(message);
                return Ok(bytes);
            }
            event => check(event)?,
        }
    }
}

fn report(args: &Args, link: &Link, times: &mut [Duration], setup: Duration, text: &str) {
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len().saturating_sub(1) as f64 * share).round() as usize;
        times.get(index).copied().unwrap_or_default()
    };
    let sum: Duration = times.iter().sum();
    let average = sum / u32::try_from(times.len().max(1)).unwrap_or(u32::MAX);
    let size = if args.probe { 0 } else { args.size };
    if args.json {
        let micro = |time: Duration| time.as_secs_f64() * 1e6;
        say(json!({
            "peer": link.peer.to_string(),
            "negotiated": text,
            "setup_usec": micro(setup),
            "probe": args.probe,
            "bytes": size,
            "iterations": times.len(),
            "min_usec": micro(at(0.0)),
            "avg_usec": micro(average),
            "p50_usec": micro(at(0.5)),
            "p99_usec": micro(at(0.99)),
            "max_usec": micro(at(1.0)),
        }));
        return;
    }
    let headings = [
        "#bytes",
        "#iterations",
        "t_min[usec]",
        "t_avg[usec]",
        "t_p50[usec]",
    ];
    let [a, b, c, d, e] = headings;
    say(format_args!(
        "{a:>8} {b:>12} {c:>12} {d:>12} {e:>12} {:>12} {:>12}",
        "t_p99[usec]", "t_max[usec]"
    ));
    say(format_args!(
        "{size:>8} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
        times.len(),
        usec(at(0.0)),
        usec(average),
        usec(at(0.5)),
        usec(at(0.99)),
        usec(at(1.0)),
    ));
}
