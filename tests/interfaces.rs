//! `smbdirect interfaces` for an engine in a network namespace of its own, with interfaces of
//! several kinds.

mod common;
#[path = "common/engine_host.rs"]
mod engine_host;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/uml.rs"]
mod uml;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use engine_host::{open_at, PATIENCE};
use serde_json::Value;
use smbdirect::ipc::Params;

/// An engine in a namespace. Both end with the value.
struct Namespace {
    child: Child,
    socket: PathBuf,
}

impl Namespace {
    /// Makes the namespace with `setup`, a shell script, and starts the engine in it. `None`: this
    /// process may not, which is told.
    fn start(test: &str, setup: &str, listen: &[&str]) -> Option<Self> {
        for tool in ["ip", "unshare", "nsenter"] {
            if Command::new(tool).arg("-V").output().is_err() {
                common::skip(test, &format!("{tool} is not installed"));
                return None;
            }
        }
        let is_allowed = Command::new("unshare")
            .args(["--net", "true"])
            .output()
            .unwrap();
        if !is_allowed.status.success() {
            common::skip(test, "no right to make network namespaces (run as root)");
            return None;
        }
        let socket = std::env::temp_dir().join(format!("smbdirect-{test}-{}", std::process::id()));
        let script = format!("{setup}\nexec \"$@\"");
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-ec", &script, "engine"])
            .arg(common::program())
            .arg("engine")
            .arg("--socket")
            .arg(&socket)
            .env("SMBDIRECT_LOG", "warn")
            .stdout(Stdio::piped());
        for address in listen {
            command.args(["--listen", address]);
        }
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let is_ready = stdout.lines().any(|line| line.unwrap() == "ready");
        assert!(is_ready, "{setup}: {:?}", child.wait());
        Some(Self { child, socket })
    }

    /// Runs a command inside.
    fn inside(&self, command: &[&str]) {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.child.id()))
            .args(command)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {text}");
    }

    /// What `smbdirect interfaces --json` shows, each as one object.
    fn interfaces(&self) -> Vec<Value> {
        let output = interfaces(&self.socket, &["--json"]);
        let answer: Value = serde_json::from_str(&output).unwrap();
        answer["interfaces"].as_array().unwrap().clone()
    }

    /// The one with this address.
    fn interface(&self, address: &str) -> Value {
        let all = self.interfaces();
        all.iter()
            .find(|it| it["address"] == address)
            .unwrap_or_else(|| panic!("no {address} in {all:?}"))
            .clone()
    }

    /// Asks until an address is as `wanted`.
    fn until(&self, address: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        let start = Instant::now();
        loop {
            let all = self.interfaces();
            if wanted(all.iter().find(|it| it["address"] == address)) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{address}: {all:?}");
        }
    }

    /// The kernel tells of a link some time after its ends were set up.
    fn until_rdma(&self, address: &str) {
        self.until(address, |it| it.is_some_and(|it| it["rdma"] == true));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn interfaces(socket: &Path, options: &[&str]) -> String {
    let output = Command::new(common::program())
        .arg("interfaces")
        .arg("--socket")
        .arg(socket)
        .args(options)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Two ends of a cable, which has 10 Gbit/s.
const CABLE: &str = "ip link set lo up
    ip link add cable0 type veth peer name cable1
    ip link set cable0 up
    ip link set cable1 up
    ip addr add 192.0.2.1/24 dev cable0
    ip addr add 2001:db8::1/64 dev cable0 nodad";

#[test]
fn a_wildcard_counts_for_all_addresses_of_its_family() {
    let Some(host) = Namespace::start("wildcard", CABLE, &["0.0.0.0"]) else {
        return;
    };
    let before = host.interface("192.0.2.1");
    assert_eq!(before["rdma"], false);
    assert!(before["reason"].as_str().unwrap().contains("smbd"));

    let mut server = open_at(&host.socket, true);
    server.set_params(&Params::default()).unwrap();
    host.until_rdma("192.0.2.1");
    let v4 = host.interface("192.0.2.1");
    assert_eq!(v4["rdma"], true, "{v4}");
    assert_eq!(v4["name"], "cable0");
    assert_eq!(v4["port"], 5445);
    assert_eq!(v4["fabric"], "soft-iwarp");
    assert_eq!(v4["link_speed"], 10_000_000_000_u64);
    assert_eq!(v4["reason"], "soft-iwarp listens on 0.0.0.0:5445");
    let loopback = host.interface("127.0.0.1");
    assert_eq!(loopback["rdma"], true, "{loopback}");
    assert_eq!(loopback["link_speed"], Value::Null);
    let v6 = host.interface("2001:db8::1");
    assert_eq!(v6["rdma"], false, "{v6}");
    assert_eq!(v6["port"], Value::Null);
    assert_eq!(v6["index"], v4["index"]);
    assert!(v6["reason"]
        .as_str()
        .unwrap()
        .contains("no listener covers"));

    // All in one table.
    let table = interfaces(&host.socket, &[]);
    let line = table
        .lines()
        .find(|line| line.contains("192.0.2.1"))
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[0], "cable0", "{line}");
    assert_eq!(
        words[2..7],
        ["192.0.2.1", "yes", "no", "10", "Gbit/s"],
        "{line}"
    );

    // No server, no connections.
    drop(server);
    host.until("192.0.2.1", |it| it.unwrap()["rdma"] == false);
}

#[test]
fn a_specific_listener_counts_for_its_address() {
    let listen = ["[2001:db8::1]", "192.0.2.9:40001"];
    let setup = format!("{CABLE}\nip addr add 192.0.2.9/24 dev cable0 label cable0:1");
    let Some(host) = Namespace::start("specific", &setup, &listen) else {
        return;
    };
    let mut server = open_at(&host.socket, true);
    server.set_params(&Params::default()).unwrap();
    host.until_rdma("2001:db8::1");
    assert_eq!(host.interface("2001:db8::1")["port"], 5445);
    assert_eq!(host.interface("192.0.2.1")["rdma"], false);
    assert_eq!(host.interface("::1")["rdma"], false);
    // An alias is an address of its device. Clients would not look on this port.
    let alias = host.interface("192.0.2.9");
    assert_eq!(
        (&alias["name"], &alias["rdma"]),
        (&"cable0".into(), &true.into())
    );
    let reason = alias["reason"].as_str().unwrap();
    assert!(
        reason.contains("40001") && reason.contains("try only 5445"),
        "{reason}"
    );
}

#[test]
fn changes_of_the_host_are_seen() {
    let Some(host) = Namespace::start("changes", CABLE, &["0.0.0.0"]) else {
        return;
    };
    let mut server = open_at(&host.socket, true);
    server.set_params(&Params::default()).unwrap();
    host.until_rdma("192.0.2.1");
    host.inside(&["ip", "addr", "add", "192.0.2.77/24", "dev", "cable0"]);
    host.until_rdma("192.0.2.77");
    host.inside(&["ip", "link", "set", "cable1", "down"]);
    host.until("192.0.2.1", |it| {
        let it = it.unwrap();
        it["rdma"] == false && it["reason"].as_str().unwrap().contains("no link")
    });
    host.inside(&["ip", "link", "set", "cable0", "down"]);
    host.until("192.0.2.1", |it| {
        it.unwrap()["reason"].as_str().unwrap().contains("is down")
    });
    host.inside(&["ip", "addr", "del", "192.0.2.1/24", "dev", "cable0"]);
    host.until("192.0.2.1", |it| it.is_none());
}

/// What to make on top of the cable's second end, and whether its speed is that of the cable.
const STACKED: [(&str, &str, bool); 5] = [
    ("bridge", "ip link set cable1 master up0", true),
    ("macvlan", "", true),
    ("vlan", "", true),
    (
        "bond",
        "ip link set cable1 down; ip link set cable1 master up0",
        true,
    ),
    ("dummy", "", false),
];

const ON_TOP: &str = "interfaces_on_top_of_others_have_their_speed";
const IN_A_GUEST: &str = "what_this_kernel_lacks_in_a_guest";

/// What `ip link add` needs for such an interface, `up0`.
fn link_of(kind: &str) -> String {
    match kind {
        "macvlan" => "link cable1 name up0 type macvlan".into(),
        "vlan" => "link cable1 name up0 type vlan id 7".into(),
        kind => format!("up0 type {kind}"),
    }
}

/// Whether this kernel has such interfaces, and allows them.
fn has_kind(link: &str) -> bool {
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c"])
        .arg(format!(
            "ip link add cable1 type veth && ip link add {link}"
        ))
        .output();
    output.is_ok_and(|output| output.status.success())
}

/// Whether this is the guest of [`what_this_kernel_lacks_in_a_guest`].
fn is_in_guest() -> bool {
    std::env::var_os("SMBDIRECT_TEST_RDMA").is_some()
}

/// The kernel that the tests build has what that of this machine may lack.
#[test]
fn what_this_kernel_lacks_in_a_guest() {
    let lacks = STACKED.iter().any(|(kind, ..)| !has_kind(&link_of(kind)));
    if !lacks || is_in_guest() {
        return;
    }
    let Some(kernel) = uml::kernel_and_tools(IN_A_GUEST, &[]) else {
        return;
    };
    if !uml::isolated(IN_A_GUEST) {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let settings = [
        ("FABRIC", "siw".to_owned()),
        ("TESTS", format!("guest {} {ON_TOP}", this.display())),
    ];
    let guest = uml::Guest::boot(&kernel, uml::Bed::Device, "tests", &settings);
    let ended = guest.finish(|question| Err(format!("nobody answers '{question}'")));
    assert_eq!(ended.passed, [format!("guest::{ON_TOP}")]);
}

#[test]
fn interfaces_on_top_of_others_have_their_speed() {
    for (kind, more, has_speed) in STACKED {
        let link = &link_of(kind);
        if !has_kind(link) {
            assert!(!is_in_guest(), "the guest's kernel has no {kind}");
            println!("{kind}: in a guest, see {IN_A_GUEST}");
            continue;
        }
        let setup = format!(
            "{CABLE}\nip link add {link}\n{more}\nip link set up0 up\n\
             ip addr add 198.51.100.1/24 dev up0"
        );
        let Some(host) = Namespace::start(kind, &setup, &["0.0.0.0"]) else {
            return;
        };
        let mut server = open_at(&host.socket, true);
        server.set_params(&Params::default()).unwrap();
        // A bond may need a moment to notice its link.
        let speed = if has_speed {
            Value::from(10_000_000_000_u64)
        } else {
            Value::Null
        };
        host.until("198.51.100.1", |it| {
            let it = it.unwrap();
            it["rdma"] == true && it["name"] == "up0" && it["link_speed"] == speed
        });
    }
}
