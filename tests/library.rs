//! The shared library as a linker sees it, and its header as compilers do.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{library, root, skip, tool_is_missing};

/// The library exports what the header declares, and nothing else.
#[test]
fn exported_symbols_are_the_documented_ones() {
    if tool_is_missing("nm") {
        return skip("exported_symbols", "nm is not installed (binutils)");
    }
    let output = run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library()));
    let exported: BTreeSet<_> = output
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .map(str::to_owned)
        .collect();
    assert_eq!(exported, declared());
}

/// Programs bind to the ABI's number, not to a file name.
#[test]
fn soname_carries_the_abi() {
    if tool_is_missing("readelf") {
        return skip("soname", "readelf is not installed (binutils)");
    }
    let output = run(Command::new("readelf").arg("-d").arg(library()));
    let soname = output.lines().find(|line| line.contains("SONAME")).unwrap();
    let expected = format!("[libsmbdirect.so.{}]", smbdirect::capi::smbd_abi_version());
    assert!(soname.ends_with(&expected), "{soname}");
}

/// smbd forks, and RDMA libraries do not get over that: what smbd loads must not bring them along,
/// neither linked nor by a call of dlopen. Loading them is the engine's business.
#[test]
fn the_library_brings_no_rdma_library_along() {
    if tool_is_missing("readelf") {
        return skip("no_rdma_library", "readelf is not installed (binutils)");
    }
    let output = run(Command::new("readelf").arg("-d").arg(library()));
    let needed: Vec<_> = output
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    assert!(needed.contains(&"libc.so.6"), "{needed:?}");
    let is_basic = |name: &&str| {
        let known = ["libc.so.", "libm.so.", "libgcc_s.so.", "ld-linux"];
        known.iter().any(|start| name.starts_with(start))
    };
    assert!(needed.iter().all(is_basic), "{needed:?}");
    let bytes = std::fs::read(library()).unwrap();
    for text in ["libibverbs.so.1", "librdmacm.so.1", "rdma_create_id"] {
        let is_there = bytes.windows(text.len()).any(|it| it == text.as_bytes());
        assert!(!is_there, "{text} is in the library");
    }
}

/// What smbd loads has nothing of the SMB client of the tools in it: not the constants that the
/// client cannot do without. (Debug sections, which nobody loads, may name it.)
#[test]
fn the_library_has_no_smb_client() {
    let bytes = std::fs::read(library()).unwrap();
    let has = |text: &[u8]| bytes.windows(text.len()).any(|it| it == text);
    assert!(has(b"smbd_get_events"));
    for text in ["NTLMSSP\0", "SMBSigningKey\0", "SMB2AESCMAC\0"] {
        assert!(!has(text.as_bytes()), "{text} is in the library");
    }
}

/// Each function is documented right above its declaration.
#[test]
fn every_function_is_documented() {
    let header = header();
    for name in declared() {
        let at = header.find(&format!("{name}(")).unwrap();
        let start = header[..at].rfind("\n\n").unwrap();
        let above = &header[start..at];
        assert!(above.contains("/**"), "{name} has no documentation");
        assert!(
            above.contains("Returns:"),
            "{name} does not tell what it returns"
        );
    }
}

#[test]
fn header_compiles_as_c11_and_cpp17() {
    for (compiler, language, standard) in [("cc", "c", "c11"), ("c++", "c++", "c++17")] {
        if tool_is_missing(compiler) {
            skip("header_compiles", &format!("{compiler} is not installed"));
            continue;
        }
        run(Command::new(compiler)
            .args(["-x", language, &format!("-std={standard}")])
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"])
            .arg(root().join("include/smbdirect.h")));
    }
}

fn header() -> String {
    std::fs::read_to_string(root().join("include/smbdirect.h")).unwrap()
}

/// Names of the functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = header();
    let names: BTreeSet<_> = header
        .match_indices("smbd_")
        .map(|(at, _)| &header[at..])
        .filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            rest[end..].starts_with('(').then(|| rest[..end].to_owned())
        })
        .collect();
    assert!(names.len() >= 25, "{names:?}");
    names
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}
