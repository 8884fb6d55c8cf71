//! Signals at random moments: SIGKILL, and SIGSTOP with SIGCONT, for the client, for the smbd that
//! serves it, for the parent smbd and for the engine, while data moves and is compared.
//!
//! Each round has a client of its own that suffers or sees it. Two bystanders live through all of
//! them, one by SMB Direct, one by TCP; they lose their connection exactly when the process that
//! they need was killed. After each round nothing may be left over, and what was acknowledged has to
//! be in the file.
//!
//! SMBDIRECT_TORMENT_ROUNDS: how many (default 24; `make torment`: 200). SMBDIRECT_TORMENT_SEED: the
//! seed that a failed run printed. It gives the same faults after the same number of steps of the
//! client, not the same interleaving of processes.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;
#[path = "common/torment_client.rs"]
mod torment_client;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::target;
use rustix::process::Signal;
use samba::{Process, Server};
use smbdirect::smb::{Connection, Dialect, OpenMode, Profile, Signing};
use torment_client::{lock, Dice, Model, Orders, MARK, ORDERS};

/// How long the slowest single step may take before the watchdog says that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who is stopped for longer while it connects may be given up: [MS-SMBD] 3.1.5.1 has 5 s for the
/// negotiation, and MPA has as long here.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
/// What anonymous memory of a process may grow by, bytes: caches of the allocator.
const GROWTH: u64 = 8 << 20;

/// Run by the other test as a client; alone it does nothing.
#[test]
fn client_process() {
    if let Ok(orders) = std::env::var(ORDERS) {
        torment_client::run(&orders);
    }
}

/// What a client has told.
struct Told {
    /// Lines so far.
    steps: u64,
    acknowledged: u64,
    losses: u64,
    verified: u64,
    /// The last phase.
    phase: String,
    /// The client's port, if it uses SMB Direct.
    port: Option<u16>,
    /// The state of its file.
    model: Model,
    done: bool,
    /// Its output has ended.
    ended: bool,
    last: String,
}

/// A client process.
struct Client {
    orders: Orders,
    process: Process,
    input: Option<ChildStdin>,
    told: Arc<(Mutex<Told>, Condvar)>,
}

impl Client {
    fn start(orders: Orders) -> Self {
        let mut process = Process::start(
            Command::new(std::env::current_exe().unwrap())
                .args(["client_process", "--exact", "--nocapture"])
                .env(ORDERS, orders.to_text())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        );
        let (input, output) = process.take_pipes();
        let told = Told {
            steps: 0,
            acknowledged: 0,
            losses: 0,
            verified: 0,
            phase: String::new(),
            port: None,
            model: Model::new(orders.seed),
            done: false,
            ended: false,
            last: String::new(),
        };
        let told = Arc::new((Mutex::new(told), Condvar::new()));
        let teller = told.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let line = line.unwrap();
                if let Some((_, line)) = line.split_once(MARK) {
                    let mut told = teller.0.lock().unwrap();
                    told.take(line);
                    teller.1.notify_all();
                }
            }
            teller.0.lock().unwrap().ended = true;
            teller.1.notify_all();
        });
        Self {
            orders,
            process,
            input: Some(input),
            told,
        }
    }

    fn see<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.0.lock().unwrap())
    }

    /// Waits until the client has told what is wanted; the watchdog of this test.
    fn until(&self, what: &str, wanted: impl Fn(&Told) -> bool) {
        let start = Instant::now();
        let (lock, changed) = &*self.told;
        let mut told = lock.lock().unwrap();
        while !wanted(&told) {
            let name = &self.orders.name;
            let last = &told.last;
            assert!(!told.ended, "{name} ended before {what}: {last}");
            let left = PATIENCE.checked_sub(start.elapsed());
            let left = left.unwrap_or_else(|| panic!("{name} hangs before {what}: {last}"));
            told = changed.wait_timeout(told, left).unwrap().0;
        }
    }

    /// Waits for more acknowledged writes.
    fn progress(&self, what: &str, count: u64) {
        let wanted = self.see(|told| told.acknowledged) + count;
        self.until(what, |told| told.acknowledged >= wanted);
    }

    /// Waits for the end of its output, and of the process.
    fn end(&mut self) {
        let start = Instant::now();
        while !self.see(|told| told.ended) {
            assert!(
                start.elapsed() < PATIENCE,
                "{} does not end",
                self.orders.name
            );
            std::thread::yield_now();
        }
        self.process.wait();
    }

    /// Tells it to end in good order.
    fn finish(&mut self) {
        self.input = None;
        self.until("its end", |told| told.done);
        assert!(self.process.wait().success(), "{}", self.orders.name);
    }
}

impl Told {
    fn take(&mut self, line: &str) {
        self.steps += 1;
        self.last = line.to_owned();
        let mut words = line.split(' ');
        let word = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
        match word {
            "submitted" => {
                let block = number().expect("a block");
                self.model.blocks[block].submitted = number().expect("a generation") as u32;
            }
            "acknowledged" => {
                let block = number().expect("a block");
                self.model.blocks[block].acknowledged = number().expect("a generation") as u32;
                self.acknowledged += 1;
            }
            "phase" => {
                let rest: Vec<_> = line.split(' ').skip(1).collect();
                self.phase = rest[0].to_owned();
                if let Some(port) = rest.get(1) {
                    self.port = port.parse().ok().filter(|&port| port != 0);
                }
            }
            "verified" => self.verified += 1,
            "lost" => self.losses += 1,
            "done" => self.done = true,
            _ => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Client,
    Child,
    Parent,
    Engine,
}

/// What a process had when it was first looked at, and must not have more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    pid: u32,
    fds: usize,
    /// Mappings of shared areas.
    areas: usize,
    /// Bytes of memory that belong to it alone.
    anonymous: u64,
}

impl Level {
    fn of(pid: u32) -> Self {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|it| it.strip_prefix("RssAnon:"));
        let kib = line.and_then(|it| it.trim().strip_suffix(" kB"));
        let kib = kib.and_then(|it| it.trim().parse::<u64>().ok());
        Self {
            pid,
            fds,
            areas: maps.lines().filter(|line| line.contains("memfd:")).count(),
            anonymous: kib.unwrap_or(0) * 1024,
        }
    }

    fn allows(&self, now: &Self) -> bool {
        self.pid != now.pid
            || now.fds <= self.fds
                && now.areas <= self.areas
                && now.anonymous <= self.anonymous + GROWTH
    }
}

struct Torment {
    server: Server,
    /// By SMB Direct.
    near: Client,
    /// By TCP.
    far: Client,
    /// Of the engine, of the parent smbd, and of the process that serves the bystander of SMB Direct.
    levels: Option<[Level; 3]>,
}

impl Torment {
    fn engine_pid(&self) -> u32 {
        self.server.engine.as_ref().expect("is running").pid()
    }

    /// The process that serves a client of SMB Direct.
    fn owner_of(&self, client: &Client) -> Option<u32> {
        let port = client.see(|told| told.port)?;
        let status = self.server.try_status()?;
        let connections = status["connections"].as_array()?;
        let peer = format!("{}:{port}", target::address());
        let it = connections.iter().find(|it| it["peer"] == peer.as_str())?;
        it["owner_pid"].as_u64().map(|pid| pid as u32)
    }

    /// What is not as it has to be when only the bystanders are there. Both of their processes have a
    /// handle.
    fn leftovers(&mut self) -> Result<(), String> {
        let status = self.server.try_status().ok_or("no engine")?;
        let count = |what: &str| status[what].as_array().map_or(0, Vec::len);
        if (count("connections"), count("handles"), count("listeners")) != (1, 3, 1) {
            return Err(format!("status {status:#}"));
        }
        let served = self.server.clients_served();
        if served != 2 {
            let all = self.server.smbd_children();
            return Err(format!("{served} processes serve clients: {all:?}"));
        }
        let samba = self.server.smbstatus();
        let records = |what: &str| {
            let all = samba[what].as_object();
            all.map_or(0, serde_json::Map::len)
        };
        let records = (records("sessions"), records("tcons"), records("open_files"));
        if records != (2, 2, 2) {
            return Err(format!(
                "sessions, tcons, open files {records:?}: {samba:#}"
            ));
        }
        let child = self.owner_of(&self.near).ok_or("no process of `near`")?;
        let now = [self.engine_pid(), self.server.smbd_pid(), child].map(Level::of);
        // Nobody came or went meanwhile.
        let ids = |status: &serde_json::Value| {
            let all = status["handles"].as_array().map(Vec::as_slice);
            let all = all.unwrap_or_default().iter();
            all.map(|it| it["id"].clone()).collect::<Vec<_>>()
        };
        if self.server.try_status().as_ref().map(ids) != Some(ids(&status)) {
            return Err("handles come and go".into());
        }
        let first = self.levels.get_or_insert(now);
        for (first, now) in first.iter_mut().zip(now) {
            if !first.allows(&now) {
                return Err(format!("{now:?}, was {first:?}"));
            }
            if first.pid != now.pid {
                *first = now;
            }
        }
        Ok(())
    }

    /// Waits until nothing is left of a round.
    fn settle(&mut self) {
        let start = Instant::now();
        while let Err(left) = self.leftovers() {
            assert!(start.elapsed() < PATIENCE, "left over: {left}");
            // Each look starts two programs; the others shall have a processor meanwhile.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, target: Target, victim: &Client, signal: Signal) {
        let pid = match target {
            Target::Client => victim.process.pid(),
            Target::Child => {
                let mut owner = None;
                self.server.wait_until("the client has a process", || {
                    owner = self.owner_of(victim);
                    owner.is_some()
                });
                owner.expect("was waited for")
            }
            Target::Parent => self.server.smbd_pid(),
            Target::Engine => self.engine_pid(),
        };
        samba::send_signal(pid, signal);
    }

    /// Stops a process, watches the others work, lets it go on. Nobody loses anything; only a victim
    /// that was connecting may, if this machine made that take too long.
    fn stop_and_continue(&self, target: Target, victim: &mut Client) {
        let losses = |it: &Client| it.see(|told| told.losses);
        let before = (losses(&self.near), losses(&self.far));
        let pid_of_child = match target {
            Target::Child => self.owner_of(victim),
            _ => None,
        };
        let is_connected = victim.see(|told| told.port.is_some());
        let stopped = Instant::now();
        self.signal(target, victim, Signal::STOP);
        self.far.progress("a write while others are stopped", 3);
        if target != Target::Engine {
            self.near.progress("a write while others are stopped", 3);
        }
        match pid_of_child {
            // While it is stopped its connection may have got no owner yet.
            Some(pid) => samba::send_signal(pid, Signal::CONT),
            None => self.signal(target, victim, Signal::CONT),
        }
        let is_too_slow = !is_connected && stopped.elapsed() > CONNECT_LIMIT;
        let wanted = victim.see(|told| told.acknowledged) + 5;
        victim.until("a write after SIGCONT", |told| {
            told.acknowledged >= wanted || is_too_slow && told.ended
        });
        self.near.progress("a write after SIGCONT", 1);
        assert_eq!((losses(&self.near), losses(&self.far)), before, "losses");
        if is_too_slow && losses(victim) > 0 {
            println!("        given up after {:?}", stopped.elapsed());
            return victim.end();
        }
        assert_eq!(losses(victim), 0, "{}", victim.see(|it| it.last.clone()));
        victim.finish();
    }

    fn kill(&mut self, target: Target, victim: &mut Client) {
        let count = |it: &Client| it.see(|told| (told.losses, told.verified));
        let (near, far) = (count(&self.near), count(&self.far));
        self.signal(target, victim, Signal::KILL);
        let (mut near_lost, mut far_lost) = (0, 0);
        match target {
            Target::Client | Target::Child => {}
            Target::Engine => {
                self.server.engine = None;
                self.far.progress("a write without an engine", 2);
                self.server.start_engine();
                self.server.wait_for_smb_direct();
                near_lost = 1;
            }
            Target::Parent => {
                self.server.respawn_smbd();
                self.server.wait_for_smb_direct();
                (near_lost, far_lost) = (1, 1);
            }
        }
        victim.end();
        if target != Target::Client {
            let told = victim.see(|told| (told.losses, told.last.clone()));
            assert_eq!(told.0, 1, "{}", told.1);
        }
        for (client, before, lost) in [(&self.near, near, near_lost), (&self.far, far, far_lost)] {
            // What was acknowledged is there, the client says.
            client.until("what was lost is verified", |told| {
                told.verified >= before.1 + lost
            });
            client.progress("a write afterwards", 2);
            assert_eq!(count(client), (before.0 + lost, before.1 + lost));
        }
    }

    /// The victim's file: what was acknowledged is there, and no lock is left.
    fn inspect(&self, victim: &Client, by_tcp: bool) {
        let name = format!("{}-0", victim.orders.name);
        let told = victim.see(|told| (told.model.clone(), told.phase.clone()));
        let options = smb::options(Dialect::Smb311, Signing::IfRequired);
        let it = if by_tcp {
            Connection::tcp(smb::tcp(&self.server), &options)
        } else {
            smb::direct(&self.server, &Profile::linux(), &options)
        };
        let (mut it, _, tree) = smb::open_share(it.unwrap());
        let start = Instant::now();
        let file = it.open(tree, &name, OpenMode::ReadWrite).unwrap().id;
        // The process that had it is on its way out, maybe.
        while let Err(error) = lock(&mut it, tree, file) {
            assert!(start.elapsed() < PATIENCE, "{name} stays locked: {error}");
        }
        it.close(tree, file).unwrap();
        let bytes = fs::read(self.server.share(&name)).unwrap();
        told.0
            .check_file(&bytes)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        fs::remove_file(self.server.share(&name)).unwrap();
    }
}

fn orders(server: &Server, name: &str, seed: u64, transport: &str, persists: bool) -> Orders {
    let address: SocketAddr = match transport {
        "tcp" => smb::tcp(server),
        _ => smb::rdma(server),
    };
    Orders {
        name: name.into(),
        seed,
        transport: transport.into(),
        address,
        persists,
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
fn torment() {
    let Some(server) = smb::start("torment") else {
        return;
    };
    let rounds = number("SMBDIRECT_TORMENT_ROUNDS").unwrap_or(24);
    let seed = number("SMBDIRECT_TORMENT_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).unwrap();
        u32::from_ne_bytes(bytes).into()
    });
    println!("SMBDIRECT_TORMENT_SEED={seed} SMBDIRECT_TORMENT_ROUNDS={rounds}");
    let mut dice = Dice::new(seed);
    let near = orders(&server, "near", seed ^ 1, "windows", true);
    let far = orders(&server, "far", seed ^ 2, "tcp", true);
    let mut torment = Torment {
        near: Client::start(near),
        far: Client::start(far),
        server,
        levels: None,
    };
    torment.near.progress("its first writes", 2);
    torment.far.progress("its first writes", 2);
    torment.settle();

    let targets = [
        Target::Client,
        Target::Child,
        Target::Parent,
        Target::Engine,
    ];
    let mut deck = Vec::new();
    for round in 0..rounds {
        if deck.is_empty() {
            deck = [true, false]
                .map(|kills| targets.map(|it| (it, kills)))
                .concat();
        }
        let (target, kills) = deck.swap_remove(dice.below(deck.len() as u64) as usize);
        let transport = ["linux", "windows", "small"][dice.below(3) as usize];
        // In the set-up, or later. Its process is known when it is connected.
        let first = if target == Target::Child { 2 } else { 0 };
        let steps = match dice.below(3) {
            0 => first + dice.below(6),
            _ => first + dice.below(120),
        };
        let micros = dice.below(2000);
        println!("round {round}: {target:?}, kill {kills}, {transport}, step {steps}, {micros} us");
        let start = Instant::now();
        let name = format!("victim-{round}");
        let it = orders(&torment.server, &name, dice.next(), transport, false);
        let mut victim = Client::start(it);
        victim.until("the moment", |told| told.steps >= steps);
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(micros) {
            std::hint::spin_loop();
        }
        if kills {
            torment.kill(target, &mut victim);
        } else {
            torment.stop_and_continue(target, &mut victim);
        }
        torment.inspect(&victim, dice.below(2) == 0);
        torment.settle();
        println!("        {:?}", start.elapsed());
    }
    let sum = |it: &Client| it.see(|told| (told.steps, told.acknowledged, told.verified));
    let (near, far) = (sum(&torment.near), sum(&torment.far));
    println!("bystanders: steps, acknowledged writes, verified files: {near:?} {far:?}");
    torment.near.finish();
    torment.far.finish();
    torment.server.wait_for_baseline();
}
