//! The two libraries, loaded when somebody wants the fabric.
//!
//! Nothing links them: smbd loads our library, forks, and must not get libibverbs by that; and one
//! program serves machines with and without rdma-core.

use std::sync::OnceLock;

use libloading::Library;

use super::ffi::{Functions, Libraries};

/// Both libraries. Never unloaded: providers keep threads and handlers of their own.
struct Loaded {
    functions: Functions,
    _libraries: Libraries,
}

static LOADED: OnceLock<Result<Loaded, String>> = OnceLock::new();

/// The functions of libibverbs and librdmacm, or why there are none.
pub(super) fn functions() -> Result<&'static Functions, &'static str> {
    match LOADED.get_or_init(load) {
        Ok(loaded) => Ok(&loaded.functions),
        Err(text) => Err(text),
    }
}

fn load() -> Result<Loaded, String> {
    let open = |name: &str, package: &str| {
        // SAFETY: loading runs the initialisers of a system library that is made to be loaded.
        unsafe { Library::new(name) }
            .map_err(|error| format!("{name} is not there (package {package}): {error}"))
    };
    let libraries = Libraries {
        verbs: open("libibverbs.so.1", "libibverbs1")?,
        cm: open("librdmacm.so.1", "librdmacm1")?,
    };
    // SAFETY: these are the libraries, and they stay loaded: nobody takes them out of the static.
    let functions = unsafe { Functions::find(&libraries) }
        .map_err(|error| format!("rdma-core is too old: {error}"))?;
    Ok(Loaded {
        functions,
        _libraries: libraries,
    })
}
