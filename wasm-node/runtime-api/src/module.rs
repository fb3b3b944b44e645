//! What a module is, what looking at it says, and why it can't be run.

/// Size of a module: a Python or JavaScript runtime as a component has 10 to 40 MB.
pub const MODULE_BYTES_MAX: u64 = 128 << 20;

/// Which engine a container needs: fuel metering is a setting of a whole engine and costs 26 to 45 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metering {
    /// Epochs only: the default.
    Epochs,
    /// Epochs and fuel: for containers with a `fuel.coracle.dev/` annotation.
    Fuel,
}

/// What a container is, by what its module exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end: `wasi:cli/run`, or `_start` of a core module.
    Command,
    /// Answers requests: `wasi:http/incoming-handler`.
    HttpServer,
    /// Exports functions of its own, which are called over HTTP: neither of the above.
    Plugin,
}

/// Why a module can't be run. Messages are shown in pods' statuses.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not wasm at all.
    #[error("not a WebAssembly module or component: {0}")]
    NotWasm(String),
    /// It breaks the format's rules.
    #[error("not a valid module: {0}")]
    Invalid(String),
    /// The compiler refused it.
    #[error("the module does not compile: {0}")]
    Compile(String),
    /// It compiles too long.
    #[error("the module does not compile within {seconds} s, which the node's --module-compile-timeout raises")]
    CompileTime {
        /// The bound.
        seconds: u64,
    },
    /// The compiler process ended at its memory bound.
    #[error(
        "compiling the module needs more than {mebibytes} MiB of memory, which the node's --module-compile-memory raises \
         as far as the machine has it"
    )]
    CompileMemory {
        /// The bound.
        mebibytes: u64,
    },
    /// Too large to compile.
    #[error(
        "the module has {bytes} bytes, at most {max_bytes} are taken, which nothing raises: wasm-strip removes debug sections, \
         wasm-opt -Oz makes code smaller"
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// It imports something that this node doesn't offer.
    #[error("the module imports {import:?}, which this node does not offer")]
    MissingImport {
        /// The first missing one's name.
        import: String,
    },
    /// It imports what a pod has to be granted, and this one isn't.
    #[error(
        "the module imports {import:?}, which is not granted: the pod's annotation \
         \"host.coracle.dev/{container}\" must name {interface:?}"
    )]
    NotGranted {
        /// The first such import's name.
        import: String,
        /// The host interface's name in the annotation.
        interface: String,
        /// The container.
        container: String,
    },
    /// It imports what its pod may not.
    #[error(
        "the module imports {import:?}, which the pod's annotation \"imports.coracle.dev/{container}\" doesn't allow: it holds \
         what the image said that it imports when the pod was admitted, or what the pod's author allows"
    )]
    NotAllowed {
        /// The first such import's name.
        import: String,
        /// The container.
        container: String,
    },
    /// It imports a host interface's package but not in a shape that fits.
    #[error("the module's imports do not fit what this node offers: {0}")]
    BadImport(String),
    /// It exports nothing that a container can be.
    #[error("{0}")]
    Unsupported(String),
    /// It compiles, but asks for more memories, tables or instances than a module may have.
    #[error("the module does not fit this node's engine: {0}")]
    Unfit(String),
    /// The engine with the wanted metering can't be made.
    #[error("wasmtime: {0}")]
    Engine(String),
    /// The disk.
    #[error("{what}: {source}{}", crate::disk::advice(source))]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

impl LoadError {
    /// The same again where the module is at fault, and the next try would most likely end alike.
    #[must_use]
    pub fn of_the_module(&self) -> Option<Self> {
        match self {
            Self::Compile(why) => Some(Self::Compile(why.clone())),
            Self::CompileTime { seconds } => Some(Self::CompileTime { seconds: *seconds }),
            Self::CompileMemory { mebibytes } => Some(Self::CompileMemory { mebibytes: *mebibytes }),
            _ => None,
        }
    }

    /// An error of the disk, for `map_err`.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// What the compiler says, for `map_err`.
    pub fn compile(error: impl std::fmt::Display) -> Self {
        Self::Compile(format!("{error:#}"))
    }
}

/// What a module imports and exports, without running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// A component (WASI 0.2) or a core module (preview 1).
    pub component: bool,
    /// What a container of it is; none where it can't be one.
    pub kind: Option<Kind>,
    /// Names of imports, in the module's order.
    pub imports: Vec<String>,
    /// Names of exports.
    pub exports: Vec<String>,
}
