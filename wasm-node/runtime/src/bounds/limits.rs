//! Fixed limits of a container or an instance, independent of its spec.

/// Requests that may queue for a permit of one pod: enough for any burst that can be served within a minute, few enough
/// that a flood of clients holds little memory.
pub(crate) const QUEUED_REQUESTS_MAX: usize = 4096;

/// Default bytes of a guest's stack: wasmtime's own default.
pub(crate) const WASM_STACK_BYTES: usize = 512 << 10;
/// Default maximum of handles (WASI resources) of an instance. A request needs some ten. But JavaScript engines keep one for each piece
/// of a body that they read, and two for each request that they send: enough for some 400 MB in pieces of 7 kB, or 30,000 requests.
/// A guest's memory is the limit before, as each handle is charged to it.
pub(crate) const RESOURCE_TABLE_ENTRIES_MAX: usize = 1 << 16;
/// Streams, futures and tasks of WASI 0.3 are one part in this many of an instance's handles. By default 8,192 entries: a stream or
/// a future has three, a task four, a request with its response some 25.
pub(crate) const CONCURRENT_PART: usize = 8;
/// Their minimum: ten requests.
pub(crate) const CONCURRENT_ENTRIES_MIN: usize = 256;
/// Host memory of such an entry with what belongs to it.
pub(crate) const CONCURRENT_ENTRY_BYTES: u64 = 512;
/// Open files and folders of one instance: each is a descriptor of the whole process.
pub(crate) const OPEN_FILES_MAX: usize = 256;
/// Bytes that one host call may copy out of a guest (wasmtime's default is 128 MiB). Larger writes arrive in pieces.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 2 << 20;
/// The same for preview 1, where a larger write to the log or request for random bytes fails as a whole. Reads and writes of
/// files copy nothing and have no such bound.
pub(crate) const PREVIEW1_HOSTCALL_BYTES_MAX: usize = 32 << 20;
/// In-memory size of one set of HTTP fields: twice what common servers take on the wire.
pub(crate) const HTTP_FIELDS_BYTES_MAX: usize = 32 << 10;
/// Random bytes per call (wasmtime's default is 64 MiB).
pub(crate) const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// One chunk of an outgoing body: with the one buffered beside it, 128 KiB per body in flight.
pub(crate) const BODY_CHUNK_BYTES: usize = 64 << 10;
/// Concurrent outgoing requests of one container.
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
/// The same as WAVE, whose reader keeps some 50 bytes per value while parsing.
pub(crate) const CALL_WAVE_BYTES_MAX: usize = 1 << 20;
/// Bytes of one call's arguments as values: 40 bytes each, so some 800,000 values.
pub(crate) const CALL_VALUES_BYTES_MAX: usize = 32 << 20;
/// The same for a result, before it is copied out of the guest.
pub(crate) const RESULT_VALUES_BYTES_MAX: usize = 16 << 20;
/// The same for a result with flags: wasmtime counts a set flag by its name's length alone, which may be 1 of some 30 bytes.
pub(crate) const RESULT_FLAGS_BYTES_MAX: usize = 1 << 20;
/// Bytes of a result as text.
pub(crate) const RESULT_TEXT_BYTES_MAX: usize = 8 << 20;
/// Concurrent sessions of one plugin: each holds an instance between calls.
pub(crate) const SESSIONS_MAX: usize = 64;
/// Concurrent resources of one session.
pub(crate) const SESSION_RESOURCES_MAX: usize = 1024;
