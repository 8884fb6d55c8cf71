//! What patched smbd answers to FSCTL_QUERY_NETWORK_INTERFACE_INFO ([MS-SMB2] 2.2.32.5).

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/smb.rs"]
mod smb;

use std::net::{IpAddr, Ipv6Addr, TcpListener};

use rustix::process::Signal;
use samba::{samba, Options, Server};
use smb::{open_share, options, tcp};
use smbdirect::smb::{Connection, Dialect, Profile, Signing};

const RSS: u32 = 1;
const RDMA: u32 = 2;

/// Bytes of one NETWORK_INTERFACE_INFO.
const ENTRY: usize = 152;

#[derive(Debug, PartialEq)]
struct Entry {
    index: u32,
    capability: u32,
    link_speed: u64,
    address: IpAddr,
}

fn field<const N: usize>(entry: &[u8], at: usize) -> [u8; N] {
    entry[at..at + N].try_into().unwrap()
}

/// Takes the answer apart, byte by byte.
fn parse(bytes: &[u8]) -> Vec<Entry> {
    assert_eq!(bytes.len() % ENTRY, 0, "{bytes:02x?}");
    let count = bytes.len() / ENTRY;
    let mut entries = Vec::new();
    for (at, entry) in bytes.chunks(ENTRY).enumerate() {
        let next = u32::from_le_bytes(field(entry, 0)) as usize;
        assert_eq!(next, if at + 1 < count { ENTRY } else { 0 });
        assert_eq!(field(entry, 12), [0; 4], "Reserved");
        assert_eq!(field(entry, 26), [0; 2], "Port");
        let (address, rest): (IpAddr, _) = match u16::from_le_bytes(field(entry, 24)) {
            0x0002 => (field::<4>(entry, 28).into(), &entry[32..]),
            0x0017 => {
                assert_eq!(field(entry, 28), [0; 4], "FlowInfo");
                (field::<16>(entry, 32).into(), &entry[48..])
            }
            family => panic!("Family {family:#06x}"),
        };
        assert!(rest.iter().all(|&byte| byte == 0), "{entry:02x?}");
        entries.push(Entry {
            index: u32::from_le_bytes(field(entry, 4)),
            capability: u32::from_le_bytes(field(entry, 8)),
            link_speed: u64::from_le_bytes(field(entry, 16)),
            address,
        });
    }
    entries
}

/// What a new client is told over TCP.
fn ask(server: &Server) -> Vec<Entry> {
    let options = options(Dialect::Smb311, Signing::IfRequired);
    ask_on(Connection::tcp(tcp(server), &options).unwrap())
}

fn ask_on(connection: Connection) -> Vec<Entry> {
    let (mut it, _, tree) = open_share(connection);
    parse(&it.interface_info(tree).unwrap())
}

/// A server with a user, and SMB Direct on each address of `listen`.
fn start(test: &str, global: &str, listen: &[&str]) -> Option<Server> {
    let bin = samba(test)?;
    let specs: Vec<_> = listen.iter().map(|ip| format!("{ip}:@RDMA@")).collect();
    let global = format!(
        "server multi channel support = yes\n\
         smb direct listen = {}\n{global}",
        specs.join(" ")
    );
    let server = Server::start_with(
        bin,
        &Options {
            global: &global,
            ..Options::default()
        },
    );
    server.add_user(smb::PASSWORD);
    server.wait_until("smbd listens for SMB Direct", || {
        let status = server.status();
        let listeners = status["listeners"].as_array().map_or(0, Vec::len);
        status["engine"]["has_params"] == true && listeners == listen.len()
    });
    Some(server)
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[test]
fn addresses_that_take_connections_are_rdma_capable() {
    let test = "addresses_that_take_connections_are_rdma_capable";
    let mut interfaces = vec!["127.0.0.1", "127.0.0.2/8", "127.0.0.3"];
    let mut listen = vec!["127.0.0.1"];
    if has_ipv6() {
        interfaces.push("::1");
        listen.push("[::1]");
    } else {
        common::skip(&format!("{test}: IPv6"), "this machine has no ::1");
    }
    let global = format!(
        "interfaces = {}\nbind interfaces only = no",
        interfaces.join(" ")
    );
    let Some(server) = start(test, &global, &listen) else {
        return;
    };
    let entries = ask(&server);
    let find = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        entries.iter().find(|it| it.address == address)
    };
    let v4 = find("127.0.0.1").expect("is listed");
    assert_eq!(v4.capability, RDMA, "{entries:?}");
    // Unknown to the kernel, so smbd's own default.
    assert_eq!(v4.link_speed, 1_000_000_000);
    // An address that smb.conf made up, where nobody listens.
    let other = find("127.0.0.2").expect("is listed");
    assert_eq!(other.capability, 0, "{entries:?}");
    // No address of this machine.
    assert_eq!(find("127.0.0.3"), None);
    if has_ipv6() {
        let v6 = find("::1").expect("is listed");
        assert_eq!(v6.capability, RDMA, "{entries:?}");
        assert_eq!(v6.index, v4.index);
    }
    // A client that came by SMB Direct is told the same, and one with the first dialect.
    let options = options(Dialect::Smb300, Signing::IfRequired);
    let direct = smb::direct(&server, &Profile::linux(), &options).unwrap();
    assert_eq!(ask_on(direct), entries);
    server.wait_for_baseline();
}

#[test]
fn smb_conf_overrides_what_was_found() {
    let test = "smb_conf_overrides_what_was_found";
    let nowhere = "127.0.0.99";
    let here = "127.0.0.1";
    let cases = [
        (here, "capability=RSS", RSS),
        (here, "capability=NONE", 0),
        (here, "capability=RSS,capability=RDMA", RSS | RDMA),
        (here, "speed=25000000000,if_index=77", RDMA),
        (nowhere, "capability=RDMA", RDMA),
        (nowhere, "speed=25000000000", 0),
    ];
    for (listen, extra, capability) in cases {
        let global = format!("interfaces = \"127.0.0.1;{extra}\"");
        let Some(server) = start(test, &global, &[listen]) else {
            return;
        };
        let entries = ask(&server);
        assert_eq!(entries.len(), 1, "{extra}: {entries:?}");
        assert_eq!(entries[0].capability, capability, "{extra}: {entries:?}");
        let has_speed = extra.contains("speed");
        let speed = if has_speed { 25 } else { 1 } * 1_000_000_000;
        assert_eq!(entries[0].link_speed, speed, "{extra}");
        if extra.contains("if_index") {
            assert_eq!(entries[0].index, 77);
        }
        // The administrator is told what does not fit.
        let log = server.read("smbd.log");
        let hides = "does not name RDMA";
        assert_eq!(
            log.contains(hides),
            listen == here && capability & RDMA == 0,
            "{log}"
        );
        let none = "No address of 'interfaces' takes SMB Direct";
        assert_eq!(log.contains(none), capability & RDMA == 0, "{log}");
    }
}

#[test]
fn an_engine_that_is_gone_takes_no_connections() {
    let test = "an_engine_that_is_gone_takes_no_connections";
    let Some(mut server) = start(test, "", &["127.0.0.1"]) else {
        return;
    };
    // A client that stays, and new ones.
    let options = options(Dialect::Smb311, Signing::IfRequired);
    let (mut client, _, tree) = open_share(Connection::tcp(tcp(&server), &options).unwrap());
    let mut of_client = || parse(&client.interface_info(tree).unwrap())[0].capability;
    assert_eq!(of_client(), RDMA);
    let mut engine = server.engine.take().unwrap();
    engine.kill(Signal::KILL);
    engine.wait();
    assert_eq!(of_client(), 0);
    assert_eq!(ask(&server)[0].capability, 0);
    server.start_engine();
    server.wait_for_smb_direct();
    assert_eq!(ask(&server)[0].capability, RDMA);
    server.wait_until("the client that stayed sees it", || of_client() == RDMA);
}

#[test]
fn without_the_option_nothing_is_rdma_capable() {
    let test = "without_the_option_nothing_is_rdma_capable";
    let Some(bin) = samba(test) else {
        return;
    };
    let global = "server smb direct = no\nserver multi channel support = yes";
    let server = Server::start_with(
        bin,
        &Options {
            global,
            ..Options::default()
        },
    );
    server.add_user(smb::PASSWORD);
    let entries = ask(&server);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].capability, 0);
    let handles = server.status();
    assert_eq!(handles["handles"].as_array().map(Vec::len), Some(0));
}
