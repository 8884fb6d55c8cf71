//! The tests of fabric, engine, C interface and smbd over RDMA devices: they run again in a
//! User-mode Linux guest that has `rxe0` (RoCE) or `siw0` (iWARP).
//!
//! Without more this makes a selection; `make test-devices` makes all of them.

mod common;
#[path = "common/samba.rs"]
mod samba;
#[path = "common/uml.rs"]
mod uml;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use common::{library, program, root};
use samba::samba;
use uml::{isolated, kernel_and_tools, Bed, Guest, VERBS};

/// A test program of this project, and which of its tests: names, or parts of names; none is all.
type Selection = (&'static str, &'static [&'static str]);

/// What is made: a selection that takes about as long as the fabric's tests, or all there is.
struct Set {
    usual: &'static [Selection],
    whole: &'static [Selection],
}

const FABRIC: Set = Set {
    usual: &[("fabric", &["verbs"])],
    whole: &[("fabric", &["verbs"])],
};

const CROWDS: Selection = (
    "crowds",
    &[
        "a_flood_does_not_starve_small_pdus",
        "idle_clients_hold_little_memory",
    ],
);

const ENGINE: Set = Set {
    usual: &[
        ("engine", &[]),
        ("routing", &[]),
        ("faults", &[]),
        ("rdma_faults", &[]),
        (
            "isolation",
            &["reaches_no_area", "is_no_server", "do_not_count"],
        ),
        CROWDS,
        // What RDMA devices want of the system calls that the unit allows.
        (
            "hardening",
            &["the_engine_needs_no_more_than_its_unit_allows"],
        ),
    ],
    whole: &[
        ("engine", &[]),
        ("routing", &[]),
        ("faults", &[]),
        ("rdma_faults", &[]),
        ("isolation", &[]),
        CROWDS,
        // What RDMA devices want of the system calls that the unit allows.
        (
            "hardening",
            &["the_engine_needs_no_more_than_its_unit_allows"],
        ),
    ],
};

const SMBD: Set = Set {
    usual: &[
        (
            "samba_rdma",
            &[
                "memory_in_any_pieces",
                "empty_descriptors_in_between",
                "reads_at_the_end_of_the_file",
                "many_requests_wait_for_their_turn",
                "compounds_with_rdma",
            ],
        ),
        (
            "samba_rdma_io",
            &[
                "the_end_of_the_file",
                "the_first_token_is_invalidated",
                "compounds_use_rdma",
                "close_waits_for_what_was_asked_before",
                "connections_end_while_requests_are_in_flight",
                "the_engine_ends_while_requests_are_in_flight",
                "memory_that_the_client_does_not_have",
            ],
        ),
        (
            "samba_rdma_life",
            &["refused_by_the_file", "two_rdma_channels_of_a_session"],
        ),
        (
            "samba_rdma_faults",
            &["a_session_survives_its_rdma_channel"],
        ),
        ("samba_sessions", &["a_tcp_client_finds_rdma_by_itself"]),
        ("samba_transform", &["case_64", "case_82"]),
        ("samba_transform_life", &["compounds_with_transforms"]),
        (
            "conformance",
            &[
                "credits::",
                "wounds::",
                "answers_count_when_an_endpoint_was_stopped",
                "the_ends_of_what_is_legal",
            ],
        ),
    ],
    whole: &[
        ("samba", &[]),
        ("samba_encryption", &[]),
        ("samba_full", &[]),
        ("samba_rdma", &[]),
        ("samba_rdma_faults", &[]),
        ("samba_rdma_io", &[]),
        ("samba_rdma_life", &[]),
        ("samba_sessions", &[]),
        ("samba_transform", &[]),
        ("samba_transform_faults", &[]),
        ("samba_transform_life", &[]),
        ("conformance", &[]),
        ("torment", &[]),
    ],
};

/// With a client by software iWARP, of which memory can be invalidated, and which can stand still.
const SMBD_BY_SOFTWARE: Set = Set {
    usual: &[
        ("samba_rdma_io", STANDING_STILL),
        ("samba_rdma_io", &["the_first_token_is_invalidated"]),
        (
            "conformance",
            &["v1_invalidate", "a_token_goes_with_one_segment"],
        ),
        ("torment", &["torment"]),
    ],
    whole: SMBD.whole,
};

/// What is left out over devices; these are names, or parts of them, too.
///
/// MPA of software iWARP, and where it listens; 300 connections that one processor has to look at
/// within 5 s; what only a machine without devices has.
const NO_DEVICE: &[&str] = &[
    "half_open_connections_are_capped_and_end",
    "answers_count_when_the_engine_was_stopped",
    "smb_conf_tells_where_to_listen",
    "verbs_without_a_device",
];
/// The client holds memory of the server back by doing nothing. A device serves the server all the
/// same.
const STANDING_STILL: &[&str] = &[
    "interim_responses_invalidate_nothing",
    "requests_wait_for_memory_in_their_order",
    "sessions_and_shares_go_while_requests_are_in_flight",
];
/// siw has no memory windows, so nothing of its clients can be invalidated.
const NO_SIW: &[&str] = &[
    "the_first_token_is_invalidated",
    "302_write_v1_invalidate",
    "302_read_v1_invalidate",
    "a_token_goes_with_one_segment",
];
/// A token is used that its owner has not told by the connection, and so may not be bound yet. The
/// others want software iWARP at one end, which does not speak RoCE.
const NO_RXE: &[&str] = &[
    "a_token_goes_with_one_segment",
    "others_go_on_while_a_large_payload_is_transformed",
    "verbs_to_software_iwarp",
];

#[test]
fn fabric_over_rxe() {
    selected("fabric_over_rxe", "rxe", &FABRIC);
}

#[test]
fn fabric_over_siw() {
    selected("fabric_over_siw", "siw", &FABRIC);
}

#[test]
fn engine_over_rxe() {
    selected("engine_over_rxe", "rxe", &ENGINE);
}

#[test]
fn engine_over_siw() {
    selected("engine_over_siw", "siw", &ENGINE);
}

#[test]
fn c_programs_over_rxe() {
    c_programs("c_programs_over_rxe", "rxe");
}

#[test]
fn c_programs_over_siw() {
    c_programs("c_programs_over_siw", "siw");
}

#[test]
fn smbd_over_rxe() {
    smbd("smbd_over_rxe", "rxe", &SMBD, None);
}

#[test]
fn smbd_over_siw() {
    smbd("smbd_over_siw", "siw", &SMBD, None);
}

#[test]
fn smbd_over_siw_for_software_iwarp() {
    let test = "smbd_over_siw_for_software_iwarp";
    smbd(test, "siw", &SMBD_BY_SOFTWARE, Some("soft-iwarp"));
}

#[test]
fn trouble_over_rxe() {
    trouble("trouble_over_rxe", "rxe");
}

#[test]
fn trouble_over_siw() {
    trouble("trouble_over_siw", "siw");
}

/// What happens to the devices themselves and the wire between two of them: tests/uml/devices.sh.
fn trouble(test: &str, device: &str) {
    let Some(kernel) = kernel_and_tools(test, &VERBS) else {
        return;
    };
    if isolated(test) {
        let mut settings = settings(device);
        settings.push(("WIRE", "switch".to_owned()));
        boot(test, &kernel, Bed::Wire, "devices", &settings);
    }
}

fn selected(test: &str, device: &str, set: &Set) {
    let Some(kernel) = kernel_and_tools(test, &VERBS) else {
        return;
    };
    if isolated(test) {
        let tests = lines_of(set, &without(device, None));
        run(test, &kernel, device, &tests, &[]);
    }
}

fn smbd(test: &str, device: &str, set: &Set, client: Option<&str>) {
    let Some(samba) = samba(test) else { return };
    let Some(kernel) = kernel_and_tools(test, &VERBS) else {
        return;
    };
    if isolated(test) {
        let tree = samba
            .parent()
            .expect("the build tree")
            .display()
            .to_string();
        let settings = [
            ("SMBDIRECT_TEST_SAMBA", tree),
            ("SMBDIRECT_TEST_CLIENT", client.unwrap_or_default().into()),
            ("SMBDIRECT_TORMENT_ROUNDS", "6".into()),
        ];
        let tests = lines_of(set, &without(device, client));
        run(test, &kernel, device, &tests, &settings);
    }
}

/// What is left out with this device and client.
fn without(device: &str, client: Option<&str>) -> Vec<&'static str> {
    let more: [&[&str]; 2] = match (device, client) {
        ("rxe", _) => [STANDING_STILL, NO_RXE],
        (_, None) => [STANDING_STILL, NO_SIW],
        (_, Some(_)) => [&[], &[]],
    };
    [NO_DEVICE, more[0], more[1]].concat()
}

fn c_programs(test: &str, device: &str) {
    let Some(kernel) = kernel_and_tools(test, &VERBS) else {
        return;
    };
    if !isolated(test) {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ctest-{device}"));
    let output = Command::new("make")
        .arg("-C")
        .arg(root().join("ctest"))
        .arg(format!("OUT={}", folder.display()))
        .arg(format!("LIBDIR={}", library().parent().unwrap().display()))
        .arg("CFLAGS=-g -O2")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut names: Vec<_> = std::fs::read_dir(root().join("ctest"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".c").map(str::to_owned))
        .collect();
    names.sort();
    let mut lines = String::new();
    for name in names {
        let _ = writeln!(lines, "{name} exec {}", folder.join(&name).display());
    }
    run(test, &kernel, device, &lines, &[]);
}

/// Boots a guest that makes the tests.
fn run(test: &str, kernel: &Path, device: &str, tests: &str, more: &[(&'static str, String)]) {
    let mut settings = settings(device);
    settings.push(("TESTS", tests.to_owned()));
    settings.extend_from_slice(more);
    boot(test, kernel, Bed::Device, "tests", &settings);
}

fn settings(device: &str) -> Vec<(&'static str, String)> {
    vec![
        ("FABRIC", device.to_owned()),
        ("SMBDIRECT_PROGRAM", program().display().to_string()),
        ("SMBDIRECT_LIBRARY", library().display().to_string()),
    ]
}

fn boot(test: &str, kernel: &Path, bed: Bed, set: &str, settings: &[(&'static str, String)]) {
    let guest = Guest::boot(kernel, bed, set, settings);
    let ended = guest.finish(|question| Err(format!("nobody answers '{question}'")));
    assert!(!ended.hangs, "there is no mount that could hang");
    let passed = ended.passed;
    println!(
        "GUEST: {test}: {} passed: {}",
        passed.len(),
        passed.join(" ")
    );
}

/// What `set_tests` of tests/uml/programs.sh reads: of the set the usual, the whole with
/// SMBDIRECT_TEST_DEVICES=all, or what that says instead, as in `samba_rdma;engine an_area events`.
fn lines_of(set: &Set, without: &[&str]) -> String {
    let wanted = std::env::var("SMBDIRECT_TEST_DEVICES").unwrap_or_default();
    let selections: Vec<(&str, Vec<&str>)> = match wanted.as_str() {
        "" | "all" => {
            let is_all = wanted == "all";
            let chosen = if is_all { set.whole } else { set.usual };
            let chosen = chosen.iter();
            chosen.map(|(name, it)| (*name, it.to_vec())).collect()
        }
        own => own
            .split(';')
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?, words.collect()))
            })
            .collect(),
    };
    let programs = test_programs(selections.iter().map(|(name, _)| *name));
    let skips: Vec<_> = without.iter().map(|it| format!(" --skip {it}")).collect();
    let skips = skips.concat();
    let mut lines = String::new();
    for (name, tests) in selections {
        let path = programs[name].display();
        let _ = writeln!(lines, "{name} {path} {}{skips}", tests.join(" "));
    }
    lines
}

/// Where the test programs are that belong to this one; cargo knows, and builds what is missing.
fn test_programs<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--offline", "--no-run", "--message-format=json"]);
    let this = std::env::current_exe().unwrap();
    if this.ancestors().any(|folder| folder.ends_with("release")) {
        cargo.arg("--release");
    }
    for name in names {
        cargo.args(["--test", name]);
    }
    let output = cargo
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?;
            let path = message["executable"].as_str()?;
            Some((name.to_owned(), path.into()))
        })
        .collect()
}
