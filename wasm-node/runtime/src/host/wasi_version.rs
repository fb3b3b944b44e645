//! The version of WASI that an engine offers.

/// The WASI version of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum WasiVersion {
    /// Preview 1 and WASI 0.2: one call at a time.
    V0_2,
    /// WASI 0.3: async functions, streams and futures.
    V0_3,
}

/// Whether an interface is one of WASI 0.3, or of a draft of it.
pub(crate) fn is_wasi_0_3(name: &str) -> bool {
    let version = name.strip_prefix("wasi:").and_then(|name| Some(name.split_once('@')?.1));
    version.is_some_and(|version| version.starts_with("0.3."))
}
