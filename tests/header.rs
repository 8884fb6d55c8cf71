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
        .with_src(root.join("src/capi/types.rs"))
        .with_src(root.join("src/capi/mod.rs"))
        .with_src(root.join("src/capi/data.rs"))
        .with_src(root.join("src/capi/connections.rs"))
        .generate()
        .expect("cbindgen")
        .write(&mut generated);
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
