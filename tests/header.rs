//! The committed header is the one that cbindgen makes of `src/capi`.

use std::path::Path;

/// Generates the header again and compares. `SMBDIRECT_UPDATE_HEADER=1` (what `make header` sets)
/// writes it instead.
#[test]
fn committed_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut generated = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        // The types come first; mod.rs brings its modules along.
        .with_src(root.join("src/capi/types.rs"))
        .with_src(root.join("src/capi/mod.rs"))
        .generate()
        .expect("cbindgen")
        .write(&mut generated);
    let text = String::from_utf8_lossy(&generated);
    for function in text.lines().filter(|line| line.starts_with("int smbd_")) {
        let times = text.lines().filter(|line| *line == function).count();
        assert_eq!(times, 1, "{function}");
    }
    let path = root.join("include/smbdirect.h");
    if std::env::var_os("SMBDIRECT_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &generated).expect("write the header");
        return;
    }
    let committed = std::fs::read(&path).expect("include/smbdirect.h");
    assert!(
        committed == generated,
        "include/smbdirect.h is not what cbindgen makes of src/capi: run `make header`"
    );
}
