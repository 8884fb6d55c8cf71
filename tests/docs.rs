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

/// Every file that a document links to.
#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/discovery.md",
        "docs/smbtorture.md",
        "docs/spec-map.md",
        "docs/threat-model.md",
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
