//! Gives the shared library its SONAME, so that programs bind to the ABI and not to a file name.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsmbdirect.so.1");
}
