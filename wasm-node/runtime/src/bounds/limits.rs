//! What one container or one instance may use, whatever its spec says.

/// Requests that may wait for a permit of one pod: enough for any burst that could be served within a minute, few
/// enough that a flood of clients holds little memory.
pub(crate) const QUEUED_REQUESTS_MAX: usize = 4096;

/// Bytes of a guest's stack where the node says nothing else: what wasmtime has by default.
pub(crate) const WASM_STACK_BYTES: usize = 512 << 10;
/// Handles (wasi resources) one instance may hold where the node says nothing else. A request needs some ten; a command that
/// walks a tree some hundred.
pub(crate) const RESOURCE_TABLE_ENTRIES_MAX: usize = 1024;
/// Open files and folders of one instance: each is a descriptor of the whole process.
pub(crate) const OPEN_FILES_MAX: usize = 256;
/// Bytes one host call may copy out of a guest (wasmtime's default is 128 MiB). Larger writes come in pieces.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 2 << 20;
/// The same for preview 1, where more fails as a whole instead of coming in pieces: a write to the log, random bytes. Reads
/// and writes of files copy nothing, and have no such bound.
pub(crate) const PREVIEW1_HOSTCALL_BYTES_MAX: usize = 32 << 20;
/// In-memory size of one set of HTTP fields: twice what common servers take on the wire.
pub(crate) const HTTP_FIELDS_BYTES_MAX: usize = 32 << 10;
/// Random bytes per call (wasmtime's default is 64 MiB).
pub(crate) const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// One chunk of an outgoing body: with the one buffered beside it, 128 KiB per body in flight.
pub(crate) const BODY_CHUNK_BYTES: usize = 64 << 10;
/// Outgoing requests of one container at once.
pub(crate) const OUTGOING_REQUESTS_MAX: u64 = 128;
/// Core instances of one store: a component of components needs tens, a bomb thousands.
pub(crate) const CORE_INSTANCES_MAX: usize = 64;
/// Linear memories of one store.
pub(crate) const MEMORIES_MAX: usize = 16;
/// Tables of one store.
pub(crate) const TABLES_MAX: usize = 32;
/// Elements of one table; the largest seen in the wild is a debug build with some 10,000.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// The body of one call of a plugin as JSON.
pub(crate) const CALL_BODY_BYTES_MAX: usize = 4 << 20;
/// The same as WAVE, whose reader keeps some fifty bytes for each value before it is one.
pub(crate) const CALL_WAVE_BYTES_MAX: usize = 1 << 20;
/// What the arguments of one call may take as values: forty bytes for each, so some 800,000 of them.
pub(crate) const CALL_VALUES_BYTES_MAX: usize = 32 << 20;
/// The same for a result, before it is copied out of the guest.
pub(crate) const RESULT_VALUES_BYTES_MAX: usize = 16 << 20;
/// The same for a result with flags in it: each flag that is set is a text that wasmtime counts by its letters alone, which
/// may be one of some thirty bytes.
pub(crate) const RESULT_FLAGS_BYTES_MAX: usize = 1 << 20;
/// A result as text.
pub(crate) const RESULT_TEXT_BYTES_MAX: usize = 8 << 20;
/// Sessions of one plugin at once: each holds an instance between calls.
pub(crate) const SESSIONS_MAX: usize = 64;
/// Resources of one session at once.
pub(crate) const SESSION_RESOURCES_MAX: usize = 1024;
