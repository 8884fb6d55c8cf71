//! The tests of fabric, engine, C interface and smbd over RDMA devices: they run again in a
//! User-mode Linux guest that has `rxe0` (RoCE) or `siw0` (iWARP).

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

/// A test program of this project, and which of its tests: names, or parts of names.
type Selection = (&'static str, &'static [&'static str]);

const FABRIC: &[Selection] = &[("fabric", &["verbs"])];

const ENGINE: &[Selection] = &[("engine", &[]), ("routing", &[])];

const SMBD: &[Selection] = &[
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
            "close_waits_for_what_was_asked_before",
            "memory_that_the_client_does_not_have",
        ],
    ),
];

#[test]
fn fabric_over_rxe() {
    selected("fabric_over_rxe", "rxe", FABRIC);
}

#[test]
fn fabric_over_siw() {
    selected("fabric_over_siw", "siw", FABRIC);
}

#[test]
fn engine_over_rxe() {
    selected("engine_over_rxe", "rxe", ENGINE);
}

#[test]
fn engine_over_siw() {
    selected("engine_over_siw", "siw", ENGINE);
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
    smbd("smbd_over_rxe", "rxe");
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
        boot(test, &kernel, Bed::Wire, "devices", &settings(device));
    }
}

fn selected(test: &str, device: &str, selections: &[Selection]) {
    let Some(kernel) = kernel_and_tools(test, &VERBS) else {
        return;
    };
    if isolated(test) {
        run(test, &kernel, device, &lines_of(selections), &[]);
    }
}

fn smbd(test: &str, device: &str) {
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
        let settings = [("SMBDIRECT_TEST_SAMBA", tree)];
        run(test, &kernel, device, &lines_of(SMBD), &settings);
    }
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
        // It wants a token invalidated, which siw cannot do, and knows when a lazy completion of an
        // RDMA WRITE comes, which with rxe is when the peer has acknowledged it.
        if name == "rdma" {
            continue;
        }
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

/// What `set_tests` of tests/uml/programs.sh reads.
fn lines_of(selections: &[Selection]) -> String {
    let programs = test_programs(selections.iter().map(|(name, _)| *name));
    let mut lines = String::new();
    for (name, tests) in selections {
        let path = programs[*name].display();
        let _ = writeln!(lines, "{name} {path} {}", tests.join(" "));
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
