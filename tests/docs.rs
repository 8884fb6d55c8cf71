//! What the documents name exists.

use std::fs;
use std::path::Path;

/// The files and tests of the tables in docs/spec-map.md, docs/conformance.md and docs/faults.md.
#[test]
fn tables_name_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for directory in ["src", "tests"] {
        append(&root.join(directory), &mut code);
    }
    let pages = [
        ("docs/spec-map.md", 100),
        ("docs/conformance.md", 100),
        ("docs/faults.md", 15),
    ];
    for (page, least) in pages {
        let text = fs::read_to_string(root.join(page)).unwrap();
        let mut missing = Vec::new();
        let mut names = 0;
        for row in text.lines().filter(|line| line.starts_with('|')) {
            for name in row.split('`').skip(1).step_by(2) {
                names += 1;
                let exists = if name.contains('/') {
                    root.join("src").join(name).exists()
                } else {
                    code.contains(&format!("fn {name}("))
                };
                if !exists {
                    missing.push(name);
                }
            }
        }
        assert!(
            names > least,
            "{page}: the tables are not understood: {names} names"
        );
        assert!(missing.is_empty(), "{page}: not there: {missing:?}");
    }
}

/// Every rule of docs/conformance.md says where it is enforced, and has a test.
#[test]
fn every_rule_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let (_, rules) = page.split_once("## Rules of [MS-SMBD] 3.1").unwrap();
    let (rules, _) = rules.split_once("### Deviations").unwrap();
    let rows: Vec<_> = rules.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    for row in &rows[2..] {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, section, files, tests] = cells[..] else {
            panic!("four cells: {row}");
        };
        assert!(section.starts_with(|c: char| c.is_ascii_digit()), "{row}");
        assert!(files.contains(".rs`"), "{row}");
        assert!(tests.contains('`') && !tests.contains('/'), "{row}");
    }
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
        assert!(code.contains(&format!("fn {name}(")), "no test: {row}");
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
