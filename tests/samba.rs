//! Debian's unmodified smbclient, `smbdirect proxy`, the engine and the patched smbd together.

mod common;
#[path = "common/samba.rs"]
mod samba;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::ChildStdin;
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::{json, Value};

use samba::{samba, send_signal, Options, Running, Server};

/// Bytes without a pattern, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Files of a folder with their contents, by relative name.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                files.push((name.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn files_and_trees_arrive_intact() {
    let Some(bin) = samba("files_and_trees_arrive_intact") else {
        return;
    };
    let server = Server::start(bin, "");
    let client = server.dir.join("client");
    let large = noise(64 << 20, 1);
    fs::write(client.join("large"), &large).unwrap();
    for i in 0..120 {
        let folder = client.join(format!("tree/d{}", i % 7));
        fs::create_dir_all(&folder).unwrap();
        // Sizes on both sides of one fragment, and an empty file.
        let size = (i * i * 7) % 40_000;
        fs::write(folder.join(format!("f{i}")), noise(size, i as u64 + 2)).unwrap();
    }

    server.smb("put large; get large back");
    assert!(fs::read(server.share("large")).unwrap() == large);
    assert!(fs::read(client.join("back")).unwrap() == large);

    let sent = tree(&client.join("tree"));
    assert_eq!(sent.len(), 120);
    server.smb("recurse on; prompt off; mput tree");
    assert!(tree(&server.share("tree")) == sent);
    fs::create_dir(client.join("got")).unwrap();
    server.smb("recurse on; prompt off; lcd got; mget tree");
    assert!(tree(&client.join("got/tree")) == sent);
    server.wait_for_baseline();
}

/// The only connection that has an owner.
fn connection_of(server: &Server) -> Value {
    let mut connections = server.owned_connections();
    assert_eq!(connections.len(), 1, "{connections:#?}");
    connections.remove(0)
}

/// How much a counter grew.
fn growth(before: &Value, after: &Value, name: &str) -> u64 {
    let read = |it: &Value| {
        it[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {it}"))
    };
    read(after) - read(before)
}

/// The sessions that smbstatus shows.
fn sessions_of(server: &Server) -> Vec<Value> {
    let status = server.smbstatus();
    let sessions = status["sessions"].as_object().expect("sessions");
    sessions.values().cloned().collect()
}

#[test]
fn status_tells_what_a_client_does() {
    let Some(bin) = samba("status_tells_what_a_client_does") else {
        return;
    };
    let server = Server::start(bin, "");
    let many = server.share("many");
    fs::create_dir(&many).unwrap();
    for i in 0..3000 {
        fs::write(
            many.join(format!("a file with a rather long name {i:05}")),
            "",
        )
        .unwrap();
    }
    fs::write(server.dir.join("client/file"), noise(3 << 20, 1)).unwrap();

    let mut session = server.client(server.proxy_port).hold();
    let start = connection_of(&server);
    let owner = start["owner_pid"].as_u64().unwrap();
    assert!(server.smbd_children().contains(&(owner as u32)), "{start}");
    assert_eq!(start["state"], "attached");
    assert_eq!(start["active"], false);
    let local = format!("{}:{}", common::target::address(), server.rdma_port);
    assert_eq!(start["local"], local.as_str());
    let handles = server.status()["handles"].clone();
    let handle = handles
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["pid"] == owner);
    assert_eq!(handle.expect("the owner's handle")["connections"], 1);

    session.command("put file");
    session.wait_for_output("putting file");
    let after_put = connection_of(&server);
    let received = growth(&start, &after_put, "bytes_received");
    assert!(
        (3 << 20..(3 << 20) + 65536).contains(&received),
        "{received}"
    );
    let fragments = growth(&start, &after_put, "messages_received");
    assert!(((3 << 20) / 8136..1000).contains(&fragments), "{fragments}");

    session.command("get file back");
    session.wait_for_output("getting file");
    let after_get = connection_of(&server);
    let sent = growth(&after_put, &after_get, "bytes_sent");
    assert!((3 << 20..(3 << 20) + 65536).contains(&sent), "{sent}");

    session.command("ls many\\*");
    session.wait_for_output("name 02999");
    let after_ls = connection_of(&server);
    let pdus = growth(&after_get, &after_ls, "pdus_sent");
    let fragments = growth(&after_get, &after_ls, "messages_sent");
    assert!(fragments > 4 * pdus, "{fragments} fragments of {pdus} PDUs");

    let sessions = sessions_of(&server);
    assert_eq!(sessions.len(), 1, "{sessions:#?}");
    let channels = sessions[0]["channels"].as_object().expect("channels");
    let channels: Vec<_> = channels.values().collect();
    assert_eq!(channels.len(), 1, "{channels:#?}");
    assert_eq!(channels[0]["transport"], "smbdirect");
    // smbstatus writes `ipv4:ADDRESS:PORT`.
    for (name, end) in [("remote_address", "peer"), ("local_address", "local")] {
        let address = format!("ipv4:{}", start[end].as_str().unwrap());
        assert_eq!(channels[0][name], address.as_str());
    }

    let (status, said) = session.finish();
    assert!(status.success() && !said.contains("NT_STATUS_"), "{said}");
    let names = said
        .lines()
        .filter(|line| line.contains("long name"))
        .count();
    assert_eq!(names, 3000);
    server.wait_for_baseline();
}

#[test]
fn signing_and_encryption() {
    let Some(bin) = samba("signing_and_encryption") else {
        return;
    };
    let server = Server::start(bin, "server signing = mandatory");
    server.add_user("secret");
    let data = noise(5_000_000, 7);
    fs::write(server.dir.join("client/file"), &data).unwrap();
    for (protection, which) in [("sign", "signing"), ("encrypt", "encryption")] {
        let client = || {
            let option = format!("--client-protection={protection}");
            server
                .client(server.proxy_port)
                .arg(&option)
                .password("secret")
        };
        client().run(&format!("put file {protection}; get {protection} back"));
        assert!(fs::read(server.share(protection)).unwrap() == data);
        assert!(fs::read(server.dir.join("client/back")).unwrap() == data);

        // The process of that client may still have its session.
        server.wait_for_baseline();
        let session = client().hold();
        let sessions = sessions_of(&server);
        assert_eq!(sessions.len(), 1, "{sessions:#?}");
        assert_eq!(sessions[0]["username"], samba::user().as_str());
        let degree = sessions[0][which]["degree"].as_str().expect("a degree");
        assert!(["full", "partial"].contains(&degree), "{which}: {degree}");
        assert!(session.finish().0.success());
        server.wait_for_baseline();
    }

    let (status, said) = server
        .client(server.proxy_port)
        .password("wrong")
        .try_run("ls");
    assert!(!status.success(), "{status}");
    assert!(said.contains("NT_STATUS_LOGON_FAILURE"), "{said}");
    server.wait_for_baseline();
}

#[test]
fn dialects_from_3_0_on() {
    let Some(bin) = samba("dialects_from_3_0_on") else {
        return;
    };
    let server = Server::start(bin, "");
    let client = |dialect: &str| {
        server
            .client(server.proxy_port)
            .arg("--option=client min protocol=SMB2_02")
            .arg("--max-protocol")
            .arg(dialect)
    };
    let data = noise(2_000_000, 9);
    fs::write(server.dir.join("client/file"), &data).unwrap();
    for dialect in ["SMB3_00", "SMB3_02", "SMB3_11"] {
        client(dialect).run(&format!("put file {dialect}; get {dialect} back"));
        assert!(fs::read(server.dir.join("client/back")).unwrap() == data);
        // The process of that client may still have its session.
        server.wait_for_baseline();
        let session = client(dialect).hold();
        let sessions = sessions_of(&server);
        assert_eq!(sessions.len(), 1, "{sessions:#?}");
        assert_eq!(sessions[0]["session_dialect"], dialect);
        assert!(session.finish().0.success());
        server.wait_for_baseline();
    }
    for dialect in ["SMB2_02", "SMB2_10"] {
        let (status, said) = client(dialect).try_run("ls");
        assert!(!status.success(), "{dialect}: {status}\n{said}");
        server.wait_for_baseline();
    }
    server.smb("ls");
}

/// Feeds a `put -` until smbclient is gone.
fn feed(mut input: ChildStdin) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let block = noise(1 << 20, 3);
        while input.write_all(&block).is_ok() {}
    })
}

/// Starts a transfer in each direction and waits until both are in full swing. Returns the two
/// clients, and the thread that feeds the first.
fn transfers(server: &Server) -> ([Running<'_>; 2], JoinHandle<()>) {
    let endless = File::create(server.share("endless")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let mut put = server
        .client(server.proxy_port)
        .start_with_input("put - incoming");
    let feeder = feed(put.input.take().expect("is piped"));
    let get = server
        .client(server.proxy_port)
        .start("get endless /dev/null");
    server.wait_until("both transfers run", || {
        let connections = server.owned_connections();
        let moves = |name: &str| {
            let bytes = |it: &Value| it[name].as_u64().unwrap_or(0);
            connections.iter().any(|it| bytes(it) > 8 << 20)
        };
        moves("bytes_received") && moves("bytes_sent")
    });
    ([put, get], feeder)
}

/// Both transfers have to end with an error.
fn expect_failures((clients, feeder): ([Running<'_>; 2], JoinHandle<()>)) {
    for client in clients {
        let (status, said) = client.finish();
        // smbclient's exit status does not tell of a failed transfer in every version, and SIGPIPE
        // may end it.
        assert!(
            !status.success() || said.contains("NT_STATUS_"),
            "{status}\n{said}"
        );
    }
    feeder.join().unwrap();
}

#[test]
fn killed_children_leave_nothing() {
    let Some(bin) = samba("killed_children_leave_nothing") else {
        return;
    };
    let server = Server::start(bin, "");
    let children = server.smbd_children();
    let running = transfers(&server);
    let connections = server.owned_connections();
    assert_eq!(connections.len(), 2, "{connections:#?}");
    for connection in &connections {
        let owner = connection["owner_pid"].as_u64().unwrap() as u32;
        assert!(server.smbd_children().contains(&owner));
        samba::send_signal(owner, Signal::KILL);
    }
    expect_failures(running);
    server.wait_for_baseline();
    assert!(server.smbd_children().is_subset(&children));
    assert!(server.smb("ls").contains("endless"));
    server.wait_for_baseline();
}

#[test]
fn killed_engine_is_replaced() {
    let Some(bin) = samba("killed_engine_is_replaced") else {
        return;
    };
    let mut server = Server::start(bin, "");
    let running = transfers(&server);
    let engine = server.engine.as_ref().expect("was started");
    engine.kill(Signal::KILL);
    expect_failures(running);
    server.engine = None;
    assert!(server.smb_by_tcp("ls").contains("endless"));
    server.wait_until("the owners end", || server.clients_served() == 0);

    server.start_engine();
    server.wait_for_smb_direct();
    assert!(server.smb("ls").contains("endless"));
    server.wait_for_baseline();
    let text = "The SMB Direct engine is gone, only TCP";
    assert_eq!(server.read("smbd.log").matches(text).count(), 1);
}

#[test]
fn stopped_smbd_leaves_nothing() {
    let Some(bin) = samba("stopped_smbd_leaves_nothing") else {
        return;
    };
    let mut server = Server::start(bin, "");
    let session = server.client(server.proxy_port).hold();
    assert_eq!(server.owned_connections().len(), 1);
    server
        .smbd
        .as_ref()
        .expect("was started")
        .kill(Signal::TERM);
    drop(session);
    let smbd = server.smbd.as_mut().expect("was started");
    smbd.wait();
    server.wait_until("smbd's children end", || server.smbd_children().is_empty());
    server.wait_until("the engine has no handle", || {
        server.status()["handles"] == json!([])
    });
    let status = server.status();
    assert_eq!(status["engine"]["has_params"], false, "{status:#}");
    assert_eq!(status["connections"], json!([]), "{status:#}");
    assert_eq!(status["listeners"], json!([]), "{status:#}");
    let (status, _) = server.client(server.proxy_port).try_run("ls");
    assert!(!status.success(), "{status}");

    server.start_smbd();
    server.wait_for_smb_direct();
    server.smb("ls");
    server.wait_for_baseline();
}

#[test]
fn without_the_library_smbd_serves_tcp() {
    let Some(bin) = samba("without_the_library_smbd_serves_tcp") else {
        return;
    };
    let server = Server::start_with(
        bin,
        &Options {
            library: Some("/nonexistent/libsmbdirect.so.1"),
            ..Options::default()
        },
    );
    for _ in 0..2 {
        server.smb_by_tcp("ls");
    }
    let log = server.read("smbd.log") + &server.read("smbd.out");
    let said: Vec<_> = log
        .lines()
        .filter(|line| line.contains("has no effect"))
        .collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(
        said[0].contains("/nonexistent/libsmbdirect.so.1"),
        "{said:?}"
    );
    assert_eq!(server.status()["handles"], json!([]));
}

#[test]
fn switched_off_opens_nothing() {
    let Some(bin) = samba("switched_off_opens_nothing") else {
        return;
    };
    let options = Options {
        global: "server smb direct = no",
        ..Options::default()
    };
    let server = Server::start_with(bin, &options);
    let session = server.client(server.tcp_port).hold();
    let status = server.status();
    assert_eq!(status["handles"], json!([]), "{status:#}");
    assert_eq!(status["engine"]["has_params"], false, "{status:#}");
    assert_eq!(sessions_of(&server).len(), 1);
    let channels = sessions_of(&server)[0]["channels"].clone();
    let transport = |it: &Value| it["transport"].clone();
    let transports: Vec<_> = channels
        .as_object()
        .unwrap()
        .values()
        .map(transport)
        .collect();
    assert_eq!(transports, ["tcp"]);
    assert!(session.finish().0.success());
}

/// Fabric and address of each listener.
fn listeners_of(server: &Server) -> Vec<String> {
    let status = server.status();
    let listeners = status["listeners"].as_array().expect("listeners");
    let mut texts: Vec<_> = listeners
        .iter()
        .map(|it| {
            let text = |name: &str| it[name].as_str().expect("a text").to_owned();
            format!("{} {}", text("fabric"), text("address"))
        })
        .collect();
    texts.sort();
    texts
}

/// The fabrics of `smb direct listen`, their ports, and that smbd follows a changed smb.conf.
#[test]
fn smb_conf_tells_where_to_listen() {
    let Some(bin) = samba("smb_conf_tells_where_to_listen") else {
        return;
    };
    let options = Options {
        global: "smb direct listen = verbs:0.0.0.0 verbs:127.0.0.1:4445 iwarp:127.0.0.1:@RDMA@ \
                 verbs:somewhere verbs:127.0.0.1:0",
        ..Options::default()
    };
    let server = Server::start_with(bin, &options);
    let software = format!("soft-iwarp 127.0.0.1:{}", server.rdma_port);
    let mut all = vec![software.as_str()];
    if cfg!(feature = "verbs") {
        all.extend([
            "verbs 0.0.0.0:445",
            "verbs 0.0.0.0:5445",
            "verbs 127.0.0.1:4445",
        ]);
    }
    server.wait_until("smbd listens", || listeners_of(&server) == all);
    for refused in ["verbs:somewhere", "verbs:127.0.0.1:0"] {
        let text = format!("'smb direct listen': '{refused}' is not a numeric address");
        assert!(server.read("smbd.log").contains(&text), "{refused}");
    }
    let text = "cannot listen on 0.0.0.0:445: this engine was built without the feature verbs";
    assert_eq!(
        server.read("smbd.log").contains(text),
        !cfg!(feature = "verbs")
    );

    let file = server.dir.join("smb.conf");
    let text = fs::read_to_string(&file).unwrap();
    let changed = text.replace("= verbs:0.0.0.0 verbs:127.0.0.1:4445", "=");
    assert_ne!(changed, text);
    fs::write(&file, changed).unwrap();
    send_signal(server.smbd_pid(), Signal::HUP);
    server.wait_until("smbd listens as smb.conf says now", || {
        listeners_of(&server) == [software.as_str()]
    });
}

#[test]
fn an_engine_that_comes_later() {
    let Some(bin) = samba("an_engine_that_comes_later") else {
        return;
    };
    let options = Options {
        engine: false,
        ..Options::default()
    };
    let mut server = Server::start_with(bin, &options);
    server.smb_by_tcp("mkdir made-by-tcp");
    let text = "No SMB Direct, only TCP is served until the engine is there";
    server.wait_until("smbd tells that there is no engine", || {
        server.read("smbd.log").contains(text)
    });
    server.start_engine();
    server.wait_for_smb_direct();
    server.start_proxy();
    assert!(server.smb("ls").contains("made-by-tcp"));
    server.wait_for_baseline();
    assert_eq!(server.read("smbd.log").matches(text).count(), 1);
}

#[test]
fn an_engine_of_smbd_itself() {
    let Some(bin) = samba("an_engine_of_smbd_itself") else {
        return;
    };
    let command = format!(
        "smb direct engine command = {} engine --socket @DIR@/engine.sock",
        common::program().display()
    );
    let options = Options {
        global: &command,
        engine: false,
        ..Options::default()
    };
    let mut server = Server::start_with(bin, &options);
    server.wait_for_smb_direct();
    server.start_proxy();
    server.smb("ls");
    let engine = |server: &Server| {
        let status = server.try_status()?;
        let pid = status["engine"]["pid"].as_u64()?;
        Some(pid as u32)
    };
    let first = engine(&server).expect("an engine");
    samba::send_signal(first, Signal::KILL);
    server.wait_until("a new engine", || {
        engine(&server).is_some_and(|pid| pid != first)
    });
    server.wait_for_smb_direct();
    server.smb("ls");
    server.wait_for_baseline();

    let last = engine(&server).expect("an engine");
    let mut smbd = server.smbd.take().expect("was started");
    smbd.kill(Signal::TERM);
    smbd.wait();
    server.wait_until("the engine ends with smbd", || !samba::is_alive(last));
    assert!(server.try_status().is_none());
    server.wait_until("smbd's children end", || server.smbd_children().is_empty());
}

/// A ClientGuid for smbclient.
const GUID: &str = "--option=libsmb:client_guid=6a1c9e0b-52f4-4b6e-9d3c-0f8f5e2d7a41";

/// Both connections belong to one process, and both work.
fn expect_one_owner(server: &Server, mut sessions: [Running<'_>; 2], marker: &str) {
    let sessions_seen = sessions_of(server);
    assert_eq!(sessions_seen.len(), 2, "{sessions_seen:#?}");
    let pid = |it: &Value| it["server_id"]["pid"].clone();
    assert_eq!(pid(&sessions_seen[0]), pid(&sessions_seen[1]));
    // A process that has passed its connection on is on its way out.
    server.wait_until("one process serves", || server.clients_served() == 1);
    for (i, session) in sessions.iter_mut().enumerate() {
        session.command(&format!("mkdir {marker}{i}"));
        let made = server.share(&format!("{marker}{i}"));
        server.wait_until("the folder is made", || made.exists());
    }
    for session in sessions {
        let (status, said) = session.finish();
        assert!(status.success() && !said.contains("NT_STATUS_"), "{said}");
    }
    server.wait_for_baseline();
}

#[test]
fn one_client_guid_is_one_process() {
    let Some(bin) = samba("one_client_guid_is_one_process") else {
        return;
    };
    let server = Server::start(bin, "server multi channel support = yes");
    let client = |port| server.client(port).arg(GUID);
    let moved = || server.status()["engine"]["counters"]["connections_moved"].clone();

    // The engine knows the ClientGuid and brings the second connection to its process.
    let first = client(server.proxy_port).hold();
    let second = client(server.proxy_port).hold();
    let owners = server.owned_connections();
    assert_eq!(owners.len(), 2, "{owners:#?}");
    assert_eq!(owners[0]["owner_pid"], owners[1]["owner_pid"]);
    assert_eq!(moved(), 0);
    expect_one_owner(&server, [first, second], "routed");

    // TCP first, and the other way round.
    for (ports, marker) in [
        ([server.tcp_port, server.proxy_port], "tcp-first"),
        ([server.proxy_port, server.tcp_port], "tcp-second"),
    ] {
        let sessions = ports.map(|port| client(port).hold());
        assert_eq!(server.owned_connections().len(), 1);
        expect_one_owner(&server, sessions, marker);
    }
    assert_eq!(moved(), 0);

    // Two that come at the same moment: both are offered before either has a process, so one
    // process has to pass its connection to the other.
    let smbd = server.smbd.as_ref().expect("was started");
    smbd.kill(Signal::STOP);
    let mut sessions = [(); 2].map(|()| client(server.proxy_port).begin());
    server.wait_until("both connections are offered", || {
        let status = server.status();
        let connections = status["connections"].as_array().expect("connections");
        let offered = connections.iter().filter(|it| it["state"] == "offered");
        offered.count() == 2
    });
    smbd.kill(Signal::CONT);
    for session in &mut sessions {
        session.wait_for_ls();
    }
    let owners = server.owned_connections();
    assert_eq!(owners.len(), 2, "{owners:#?}");
    assert_eq!(owners[0]["owner_pid"], owners[1]["owner_pid"]);
    assert_eq!(moved(), 1);
    expect_one_owner(&server, sessions, "passed");
}
