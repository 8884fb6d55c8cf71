//! What the documents name exists.

use std::fs;
use std::path::Path;

/// The files and tests of docs/spec-map.md.
#[test]
fn spec_map_names_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for directory in ["src", "tests"] {
        append(&root.join(directory), &mut code);
    }
    let map = fs::read_to_string(root.join("docs/spec-map.md")).unwrap();
    let mut missing = Vec::new();
    let mut names = 0;
    for row in map.lines().filter(|line| line.starts_with('|')) {
        for name in row.split('`').skip(1).step_by(2) {
            names += 1;
            let exists = if name.contains('/') {
                root.join("src").join(name).exists()
            } else {
                code.contains(&format!("fn {name}()"))
            };
            if !exists {
                missing.push(name);
            }
        }
    }
    assert!(names > 100, "the tables are not understood: {names} names");
    assert!(missing.is_empty(), "not there: {missing:?}");
}

/// The cases of docs/conformance.md: each has its test.
#[test]
fn conformance_has_every_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    append(&root.join("tests/conformance"), &mut code);
    code.push_str(&fs::read_to_string(root.join("tests/samba_transform.rs")).unwrap());
    let page = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut cases = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let Ok(number) = cells[1].parse::<u32>() else {
            continue;
        };
        let name = cells[2].trim_matches('`');
        assert!(name.starts_with(&format!("case_{number:02}_")), "{row}");
        assert!(code.contains(&format!("fn {name}()")), "no test: {row}");
        assert!(cells[3].starts_with(|c: char| "123[".contains(c)), "{row}");
        cases.push(number);
    }
    let expected: Vec<_> = (1..=92).collect();
    assert_eq!(cases, expected);
}

/// Every file that a document links to.
#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/conformance.md",
        "docs/discovery.md",
        "docs/smbtorture.md",
        "docs/spec-map.md",
        "docs/threat-model.md",
        "docs/transforms.md",
    ];
    for document in documents {
        let path = root.join(document);
        let text = fs::read_to_string(&path).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let target = path.with_file_name(target);
            assert!(target.exists(), "{document} links to {}", target.display());
        }
    }
}

/// Appends every Rust file below a directory.
fn append(directory: &Path, code: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            append(&path, code);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            code.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
