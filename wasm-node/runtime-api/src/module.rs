//! A module's kind by its exports, its inspection, and load errors.

/// Maximum bytes of a module: a Python or JavaScript runtime as a component has 10 to 40 MB.
pub const MODULE_BYTES_MAX: u64 = 128 << 20;

/// Engine required by a container: fuel metering is a setting of a whole engine and costs 26 to 45 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metering {
    /// Epochs only: the default.
    Epochs,
    /// Epochs and fuel: for containers with a `fuel.coracle.dev/` annotation.
    Fuel,
}

/// Kind of a container, derived from its module's exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end: `wasi:cli/run`, or `_start` of a core module.
    Command,
    /// Serves requests: `wasi:http/incoming-handler`.
    HttpServer,
    /// Exports functions of its own, called over HTTP: neither of the above.
    Plugin,
}

/// Reason why a module can't be run. The message is part of a pod's status.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No wasm.
    #[error("not a WebAssembly module or component: {0}")]
    NotWasm(String),
    /// It violates the format.
    #[error("not a valid module: {0}")]
    Invalid(String),
    /// The compiler rejected it.
    #[error("the module does not compile: {0}")]
    Compile(String),
    /// It exceeded the compile time.
    #[error("the module does not compile within {seconds} s, which the node's --module-compile-timeout raises")]
    CompileTime {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The compiler process exceeded its memory limit.
    #[error(
        "compiling the module needs more than {mebibytes} MiB of memory, which the node's --module-compile-memory raises \
         as far as the machine has it"
    )]
    CompileMemory {
        /// The limit in MiB.
        mebibytes: u64,
    },
    /// Too large to compile.
    #[error(
        "the module has {bytes} bytes, at most {max_bytes} are taken, which nothing raises: wasm-strip removes debug sections, \
         wasm-opt -Oz makes code smaller"
    )]
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        max_bytes: u64,
    },
    /// It imports an interface that this node lacks.
    #[error("the module imports {import:?}, which this node does not offer")]
    MissingImport {
        /// The first missing import.
        import: String,
    },
    /// It imports an interface that needs a grant, which its pod lacks.
    #[error(
        "the module imports {import:?}, which is not granted: the pod's annotation \
         \"host.coracle.dev/{container}\" must name {interface:?} (coracle run: --grant {interface})"
    )]
    NotGranted {
        /// The first such import.
        import: String,
        /// The host interface's name in the annotation.
        interface: String,
        /// The container.
        container: String,
    },
    /// It has an import that its pod doesn't permit.
    #[error(
        "the module imports {import:?}, which the pod's annotation \"imports.coracle.dev/{container}\" doesn't allow: it holds \
         what the image said that it imports when the pod was admitted, or what the pod's author allows"
    )]
    NotAllowed {
        /// The first such import.
        import: String,
        /// The container.
        container: String,
    },
    /// It imports a host interface's package with an incompatible type.
    #[error("the module's imports do not fit what this node offers: {0}")]
    BadImport(String),
    /// Its exports match no kind of container.
    #[error("{0}")]
    Unsupported(String),
    /// It compiles, but needs more memories, tables or instances than a module may have.
    #[error("the module does not fit this node's engine: {0}")]
    Unfit(String),
    /// The engine with this metering can't be created.
    #[error("wasmtime: {0}")]
    Engine(String),
    /// A disk error.
    #[error("{what}: {source}{}", crate::disk::advice(source))]
    Io {
        /// The failed operation.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

impl LoadError {
    /// A copy of an error of the module itself, which a retry would most likely repeat.
    #[must_use]
    pub fn module_error(&self) -> Option<Self> {
        match self {
            Self::Compile(why) => Some(Self::Compile(why.clone())),
            Self::CompileTime { seconds } => Some(Self::CompileTime { seconds: *seconds }),
            Self::CompileMemory { mebibytes } => Some(Self::CompileMemory { mebibytes: *mebibytes }),
            _ => None,
        }
    }

    /// Builds a disk error, for `map_err`.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Builds a compiler error, for `map_err`.
    pub fn compile(error: impl std::fmt::Display) -> Self {
        Self::Compile(format!("{error:#}"))
    }
}

/// A module's imports and exports, read without running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// A component (WASI 0.2) or a core module (preview 1).
    pub component: bool,
    /// The kind of its containers; `None` if it can't be one.
    pub kind: Option<Kind>,
    /// Names of imports, in the module's order.
    pub imports: Vec<String>,
    /// Names of exports.
    pub exports: Vec<String>,
}

/// The runtime's functions that inspect a module.
#[derive(Debug, Clone, Copy)]
pub struct ModuleInspector {
    /// Returns the module's kind, imports and exports.
    pub inspect: fn(&[u8]) -> Result<Inspection, LoadError>,
    /// Returns its imports under the names that policies use.
    pub imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
}
