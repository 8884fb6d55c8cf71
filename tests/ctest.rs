//! Builds the C programs of `ctest/` and runs them: plain, under AddressSanitizer and
//! UndefinedBehaviorSanitizer, and under valgrind. Each starts an engine of its own.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{library, program, root, skip, tool_is_missing};

/// Names of the programs, with the options of their run.
struct Run {
    name: &'static str,
    cflags: &'static str,
    /// What goes before the program.
    wrapper: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

#[test]
fn c_programs_run() {
    run_all(&Run {
        name: "plain",
        cflags: "-g -O2",
        wrapper: &[],
        environment: &[],
    });
}

#[test]
fn c_programs_run_under_sanitizers() {
    run_all(&Run {
        name: "sanitizers",
        cflags: "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all",
        wrapper: &[],
        environment: &[
            ("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0"),
            ("UBSAN_OPTIONS", "print_stacktrace=1"),
        ],
    });
}

#[test]
fn c_programs_run_under_valgrind() {
    if tool_is_missing("valgrind") {
        return skip("c_programs_run_under_valgrind", "valgrind is not installed");
    }
    run_all(&Run {
        name: "valgrind",
        cflags: "-g -O1",
        wrapper: &[
            "valgrind",
            "--quiet",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ],
        environment: &[],
    });
}

fn run_all(run: &Run) {
    for tool in ["cc", "make"] {
        if tool_is_missing(tool) {
            return skip("ctest", &format!("{tool} is not installed"));
        }
    }
    let out = build(run);
    let failures: Vec<_> = programs()
        .iter()
        .filter_map(|name| failure(run, &out, name))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Builds all programs; returns where they are.
fn build(run: &Run) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ctest-{}", run.name));
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(root().join("ctest"))
        .arg(format!("OUT={}", out.display()))
        .arg(format!("LIBDIR={}", library().parent().unwrap().display()))
        .arg(format!("CFLAGS={}", run.cflags));
    let output = make.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    out
}

/// Runs one program; `None`: it succeeded.
fn failure(run: &Run, out: &Path, name: &str) -> Option<String> {
    let path = out.join(name);
    let mut command = match run.wrapper.split_first() {
        Some((wrapper, arguments)) => {
            let mut command = Command::new(wrapper);
            command.args(arguments).arg(&path);
            command
        }
        None => Command::new(&path),
    };
    command
        .env("SMBDIRECT_PROGRAM", program())
        .env("SMBDIRECT_LIBRARY", library())
        .envs(run.environment.iter().copied());
    let output = command.output().unwrap();
    if output.status.success() {
        println!("{} {name}: ok", run.name);
        return None;
    }
    Some(format!(
        "{} {name}: {}\n{}",
        run.name,
        output.status,
        text(&output)
    ))
}

fn programs() -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(root().join("ctest"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".c").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() > 5, "{names:?}");
    names
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}
