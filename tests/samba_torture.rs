//! Debian's smbtorture, unmodified: each test of its smb2 suites has to end over SMB Direct, through
//! `smbdirect proxy`, as it does by plain TCP on the same smbd.
//!
//! `make test` runs the suites that take seconds, `make torture` all of them (about half an hour).
//! Whether smbd passes a test is Samba's business: some fail on both roads, because this smbd lacks
//! the modules that they want, or smbtorture has another version than smbd.

mod common;
#[path = "common/samba.rs"]
mod samba;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use common::{skip, tool_is_missing};
use samba::{samba, Server};

/// Suites of a few seconds.
const QUICK: &[&str] = &[
    "smb2.compound",
    "smb2.connect",
    "smb2.credits",
    "smb2.durable-v2-open",
    "smb2.getinfo",
    "smb2.ioctl",
    "smb2.lock",
    "smb2.read",
    "smb2.rename",
    "smb2.session-id",
    "smb2.tcon",
];

/// What `make torture` leaves out: suites that run for ever, or want a server of their own
/// configuration and wait for ever if it is another one.
const LEFT_OUT: &[&str] = &[
    "smb2.aio_delay",
    "smb2.bench",
    "smb2.change_notify_disabled",
    "smb2.hold-oplock",
    "smb2.hold-sharemode",
    "smb2.maxfid",
    "smb2.notify-inotify",
];

/// Tests that end differently, each explained in docs/smbtorture.md.
const EXPLAINED: &[&str] = &[
    "smb2.session.bind_negative_smb202",
    "smb2.session.bind_negative_smb210d",
    "smb2.session.bind_negative_smb210s",
    "smb2.session.bind_negative_smb2to3d",
    "smb2.session.bind_negative_smb2to3s",
    "smb2.session.bind_negative_smb3signGtoH2Xd",
    "smb2.session.bind_negative_smb3signGtoH2Xs",
    "smb2.session.bind_negative_smb3signH2XtoGd",
    "smb2.session.bind_negative_smb3signH2XtoGs",
    "smb2.session.bind_negative_smb3to2d",
    "smb2.session.bind_negative_smb3to2s",
];

/// Longest time for one run of a suite.
const PATIENCE: &str = "900";

/// How often a test that seems to differ is tried again: some depend on the time that things take.
const TRIES: usize = 5;

/// How each test ended: success, failure, error, skip; by its full name.
type Outcomes = BTreeMap<String, String>;

struct Bed {
    server: Server,
}

impl Bed {
    fn start(bin: &'static std::path::Path) -> Self {
        let shares = "smbd:FSCTL_SMBTORTURE = yes
             smbd:suicide mode = yes
             ea support = yes
             store dos attributes = yes
             kernel oplocks = no
             [tcp]
             path = @DIR@/tcp
             read only = no
             [rdma]
             path = @DIR@/rdma
             read only = no";
        let server = Server::start(bin, shares);
        server.add_user("secret");
        for name in ["tcp", "rdma"] {
            let folder = server.dir.join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        }
        Self { server }
    }

    /// Runs tests by one road.
    fn run(&self, share: &str, port: u16, tests: &str) -> Outcomes {
        let output = Command::new("timeout")
            .args([PATIENCE, "smbtorture", "--configfile=/dev/null"])
            .args(["--target=samba3", "--fullname", "--format=subunit"])
            .args(["--option=torture:progress=no", "-p"])
            .arg(port.to_string())
            .arg(format!("-U{}%secret", samba::user()))
            .arg(format!("//127.0.0.1/{share}"))
            .arg(tests)
            .current_dir(self.server.dir.join("client"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let mut outcomes = Outcomes::new();
        for line in said.lines() {
            let Some((word, name)) = line.split_once(": ") else {
                continue;
            };
            let name = name.trim_end_matches(" [").to_owned();
            match word {
                "test" => {
                    // Until it is told how it ended: smbtorture may not get that far.
                    outcomes.entry(name).or_insert_with(|| "crash".into());
                }
                "success" | "failure" | "error" | "skip" => {
                    outcomes.insert(name, word.into());
                }
                _ => {}
            }
        }
        outcomes
    }

    /// Both roads at the same time.
    fn run_both(&self, tests: &str) -> [Outcomes; 2] {
        std::thread::scope(|scope| {
            let tcp = scope.spawn(|| self.run("tcp", self.server.tcp_port, tests));
            let rdma = self.run("rdma", self.server.proxy_port, tests);
            [tcp.join().expect("does not panic"), rdma]
        })
    }

    /// Compares a suite. Returns how many tests it has, and those that end differently.
    fn compare(&self, suite: &str) -> (usize, Vec<String>) {
        let [tcp, rdma] = self.run_both(suite);
        let names: BTreeSet<&String> = tcp.keys().chain(rdma.keys()).collect();
        let differ = |name: &&&String| tcp.get(**name) != rdma.get(**name);
        let suspects: Vec<_> = names.iter().filter(differ).copied().collect();
        let mut different = Vec::new();
        for name in suspects {
            // One at a time now, so that neither disturbs the other.
            let mut seen = [&tcp, &rdma].map(|o| o.get(name).into_iter().cloned().collect());
            let agrees = |seen: &[BTreeSet<String>; 2]| !seen[0].is_disjoint(&seen[1]);
            for _ in 0..TRIES {
                if agrees(&seen) {
                    break;
                }
                let roads = [
                    ("tcp", self.server.tcp_port),
                    ("rdma", self.server.proxy_port),
                ];
                for (seen, (share, port)) in seen.iter_mut().zip(roads) {
                    seen.extend(self.run(share, port, name).remove(name));
                }
            }
            if !agrees(&seen) {
                let [tcp, rdma] = seen;
                different.push(format!("{name}: TCP {tcp:?}, SMB Direct {rdma:?}"));
            }
        }
        println!(
            "{suite}: {} tests, {} end differently",
            names.len(),
            different.len()
        );
        (names.len(), different)
    }
}

/// All suites of this smbtorture.
fn all_suites() -> BTreeSet<String> {
    let output = Command::new("smbtorture").arg("--list").output().unwrap();
    let listed = String::from_utf8_lossy(&output.stdout);
    let suite = |line: &str| {
        let mut words = line.trim().split('.');
        match (words.next(), words.next()) {
            (Some("smb2"), Some(name)) => Some(format!("smb2.{name}")),
            _ => None,
        }
    };
    let suites = listed.lines().filter_map(suite);
    suites.filter(|it| !LEFT_OUT.contains(&&**it)).collect()
}

#[test]
fn smbtorture_ends_as_over_tcp() {
    let name = "smbtorture_ends_as_over_tcp";
    let Some(bin) = samba(name) else {
        return;
    };
    if tool_is_missing("smbtorture") {
        let reason = "smbtorture is not installed (Debian: samba-testsuite)";
        let strict = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!strict, "{name}: {reason}");
        return skip(name, reason);
    }
    let suites = match std::env::var("SMBDIRECT_TORTURE").as_deref() {
        Ok("all") => all_suites(),
        Ok(names) => names.split_whitespace().map(String::from).collect(),
        Err(_) => QUICK.iter().copied().map(String::from).collect(),
    };
    let bed = Bed::start(bin);
    let mut different = Vec::new();
    for suite in &suites {
        let (count, found) = bed.compare(suite);
        assert!(count > 0, "{suite} has no tests");
        different.extend(found);
    }
    different.retain(|it| {
        let is_it = |name: &&str| it.starts_with(&format!("{name}: "));
        !EXPLAINED.iter().any(is_it)
    });
    assert!(different.is_empty(), "{}", different.join("\n"));
}
