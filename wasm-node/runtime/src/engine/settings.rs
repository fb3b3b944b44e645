//! wasmtime's configuration: one set of settings, with and without fuel, for WASI 0.2 and 0.3, with and without the pool, and
//! the pool's partition. Settings that affect compiled code depend on [`CodeSettings`] alone, so that the compiler process'
//! artifacts fit the node's engines.
//!
//! WASI 0.3 has engines of its own. It needs the component model's async functions, and with them `concurrency_support`: a
//! store then has tables of tasks, a call runs in an event loop, and adapters between components switch tasks. A request of a
//! 0.2 guest would pay for that and gain nothing. The code behind that feature has also had most of wasmtime's faults of
//! 2026, an escape from the sandbox among them (CVE-2026-115384). Without the feature, a 0.2 guest cannot reach it. Both
//! settings are part of an artifact's compatibility hash: artifacts of 0.2 keep their fingerprint, and those of 0.3 have another.

use std::hash::{Hash, Hasher};

use wasmtime::{
    Config, Enabled, Engine as Wasmtime, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
};

use super::Metering;
use super::wasi::CodeSettings;
use crate::bounds::guest::GuestBounds;
use crate::bounds::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use crate::bounds::slots::Weight;
use crate::host::wasi_version::WasiVersion;

/// Maximum live instances of one engine; more requests queue. Each takes a stack and some mappings, and the kernel
/// allows a process 65,530 mappings.
pub(crate) const LIVE_INSTANCES_MAX: u32 = 1000;
/// The same with a small address space or a low limit of mappings.
const LIVE_INSTANCES_SMALL: u32 = 100;
/// Mappings of one live instance: two for its stack, two for its memory, two for its table, and spare.
const MAPPINGS_PER_INSTANCE: u32 = 12;
/// Linear memories and tables per live instance of the pool, on average; most components have one memory and two
/// tables. They cost address space. Core instances cost the pool nothing, so their number is the maximum.
const MEMORIES_PER_LIVE: u32 = 2;
const TABLES_PER_LIVE: u32 = 4;
/// Stacks per live instance of a pool of WASI 0.3, where each blocked component of a component has one. One more runs the next
/// task. Each has two mappings as long as the pool exists.
pub(crate) const CONCURRENT_STACKS_PER_LIVE: u32 = 4;
/// The settings of most containers.
const DEFAULT: CodeSettings = CodeSettings::new(Metering::Epochs, WasiVersion::V0_2);
/// One part in this many of the pool is for the node's own calls: probes and hooks, which never wait for requests.
const NODE_CALLS_PART: u32 = 10;
/// Maximum live commands per [`LIVE_INSTANCES_MAX`]: they take no part of the pool, but each has some seven mappings of
/// the process. As many as a node has pods.
const COMMANDS_PER_LIVE: u32 = 2;
/// Maximum live sessions: one per this many of [`LIVE_INSTANCES_MAX`]. They are for people and their scripts.
const SESSIONS_PART: u32 = 8;
/// Stack bytes of host calls above a guest's stack, whatever its size.
const HOST_STACK_BYTES: usize = 512 << 10;
/// Slots that stay bound to their module after use: their next instance is cheap, and they hold memory while idle.
const WARM_SLOTS_MAX: u32 = 32;
/// Bytes of a freed memory, table or stack that are cleared instead of unmapped: saves page faults per request, costs
/// at most this much per warm slot while idle.
const MEMORY_KEEP_BYTES: usize = 64 << 10;
const TABLE_KEEP_BYTES: usize = 8 << 10;
const STACK_KEEP_BYTES: usize = 32 << 10;

fn base(settings: CodeSettings, bounds: GuestBounds) -> Config {
    let is_concurrent = settings.wasi == WasiVersion::V0_3;
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(settings.metering == Metering::Fuel)
        // Both, as the one without the other is rejected or costs time.
        .concurrency_support(is_concurrent)
        .wasm_component_model_async(is_concurrent)
        .max_wasm_stack(bounds.stack_bytes)
        .async_stack_size(bounds.stack_bytes + HOST_STACK_BYTES)
        // Tenants reuse stacks.
        .async_stack_zeroing(true)
        // Names and offsets suffice for a log; no trap parses a hostile module's debug sections.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // Only wasmtime unwinds these frames.
        .native_unwind_info(false)
        .memory_init_cow(true)
        // This build has no garbage collector. With the proposal's subtypes an indirect call may reach a function that
        // the build lacks, which aborts the process (GHSA-rc4p-x33f-vpr2).
        .wasm_gc(false)
        // WIT's `map` type.
        .wasm_component_model_map(true)
        .parallel_compilation(true);
    config
}

fn pooled(settings: CodeSettings, bounds: GuestBounds, live: u32) -> Config {
    let stacks = match settings.wasi {
        WasiVersion::V0_2 => 1,
        WasiVersion::V0_3 => CONCURRENT_STACKS_PER_LIVE,
    };
    let mut pool = PoolingAllocationConfig::new();
    pool.total_stacks(live * stacks)
        .total_component_instances(live)
        .total_core_instances(live * CORE_INSTANCES_MAX as u32)
        .total_memories(live * MEMORIES_PER_LIVE)
        .total_tables(live * TABLES_PER_LIVE)
        .max_memories_per_component(MEMORIES_MAX as u32)
        .max_memories_per_module(MEMORIES_MAX as u32)
        .max_tables_per_component(TABLES_MAX as u32)
        .max_tables_per_module(TABLES_MAX as u32)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_unused_warm_slots(WARM_SLOTS_MAX)
        .linear_memory_keep_resident(MEMORY_KEEP_BYTES)
        .table_keep_resident(TABLE_KEEP_BYTES)
        .async_stack_keep_resident(STACK_KEEP_BYTES)
        .pagemap_scan(Enabled::Auto);
    let mut config = base(settings, bounds);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// An engine that runs guests: pooled where the system allows it. Also returns its maximum of live instances.
pub(crate) fn engine(settings: CodeSettings, bounds: GuestBounds) -> wasmtime::Result<(Wasmtime, u32)> {
    let failed = |live, error: &wasmtime::Error| tracing::warn!(live, "cannot create an instance pool: {error:#}");
    match largest_pool(settings, bounds, failed) {
        Some(found) => Ok(found),
        None => Ok((Wasmtime::new(&base(settings, bounds))?, LIVE_INSTANCES_SMALL)),
    }
}

/// The engine with the largest pool that the system allows, and its maximum of live instances. `failed` is called for each
/// pool that the system refuses.
fn largest_pool(
    settings: CodeSettings,
    bounds: GuestBounds,
    mut failed: impl FnMut(u32, &wasmtime::Error),
) -> Option<(Wasmtime, u32)> {
    let mappings = max_map_count();
    for live in [LIVE_INSTANCES_MAX, LIVE_INSTANCES_SMALL] {
        if mappings.is_some_and(|mappings| mappings_needed(live) > mappings) {
            continue;
        }
        match Wasmtime::new(&pooled(settings, bounds, live)) {
            Ok(engine) => return Some((engine, live)),
            Err(error) => failed(live, &error),
        }
    }
    None
}

/// The system's limit of mappings at which a pool is created: half of it is for the rest of the process.
fn mappings_needed(live: u32) -> u64 {
    2 * u64::from(live * MAPPINGS_PER_INSTANCE)
}

/// The instance pool that this system allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolCapacity {
    /// The maximum of live instances of an engine on this system.
    pub live: u32,
    /// The same on a system with enough address space and mappings.
    pub live_max: u32,
    /// Whether there is a pool: without one, each instance is slower.
    pub is_pooled: bool,
    /// The system's limit of mappings of a process; `None`: it has none.
    pub mappings: Option<u64>,
    /// The limit that the largest pool needs.
    pub mappings_needed: u64,
    /// Why the system refuses the largest pool.
    pub error: Option<String>,
}

impl PoolCapacity {
    /// Creates a pool as an engine with these bounds does, and removes it. Takes address space for a moment, and no memory.
    #[must_use]
    pub fn probe(bounds: GuestBounds) -> Self {
        let mut error = None;
        let found = largest_pool(DEFAULT, bounds, |_, why| {
            error.get_or_insert_with(|| format!("{why:#}"));
        });
        Self {
            live: found.as_ref().map_or(LIVE_INSTANCES_SMALL, |(_, live)| *live),
            live_max: LIVE_INSTANCES_MAX,
            is_pooled: found.is_some(),
            mappings: max_map_count(),
            mappings_needed: mappings_needed(LIVE_INSTANCES_MAX),
            error,
        }
    }
}

/// The pool's partition: for the node's own calls, and for requests.
pub(crate) fn shares(live: u32) -> (Weight, Weight) {
    let all =
        |live: u32| Weight { instances: live, memories: live * MEMORIES_PER_LIVE, tables: live * TABLES_PER_LIVE };
    let own = live / NODE_CALLS_PART;
    (all(own), all(live - own))
}

/// Capacity of commands.
pub(crate) fn commands(live: u32) -> Weight {
    let commands = live * COMMANDS_PER_LIVE;
    let tables = commands * TABLES_MAX as u32;
    Weight { instances: commands, memories: commands * MEMORIES_PER_LIVE, tables }
}

/// Capacity of sessions (`kubectl exec`), beside commands.
pub(crate) fn sessions(live: u32) -> Weight {
    let sessions = (live / SESSIONS_PART).max(1);
    Weight { instances: sessions, memories: sessions * MEMORIES_PER_LIVE, tables: sessions * TABLES_MAX as u32 }
}

/// An engine without a pool, for compiling and for long-lived instances. Its artifacts fit [`engine`]'s.
pub(crate) fn on_demand(settings: CodeSettings, bounds: GuestBounds) -> wasmtime::Result<Wasmtime> {
    Wasmtime::new(&base(settings, bounds))
}

/// The version of plugins' descriptions, which are files beside the artifacts: raised when `plugin/describe.rs` writes another
/// one of the same module.
const DESCRIPTION_VERSION: u32 = 2;

/// Identifies the settings of a compiled artifact (wasmtime's version, features, tunables, target) and the form of its
/// description. The stack size is not included: the compiler process need not know it.
pub(crate) fn fingerprint(engine: &Wasmtime) -> String {
    // Fixed keys: the same in every run of the same build.
    #[expect(deprecated, reason = "the one hasher of std whose keys are fixed")]
    let mut hasher = std::hash::SipHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    DESCRIPTION_VERSION.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn max_map_count() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::guest::STACK_BYTES;

    #[test]
    fn artifacts_fit_engines_of_every_stack() {
        for settings in CodeSettings::ALL {
            let made = |stack_bytes| {
                let bounds = GuestBounds { stack_bytes, ..GuestBounds::default() };
                fingerprint(&on_demand(settings, bounds).unwrap())
            };
            let default = made(GuestBounds::default().stack_bytes);
            assert_eq!(made(*STACK_BYTES.start()), default);
            assert_eq!(made(*STACK_BYTES.end()), default);
        }
    }

    /// An artifact is code: none may be loaded into an engine of another metering or WASI version.
    #[test]
    fn artifacts_of_other_settings_have_other_fingerprints() {
        let made = |settings| fingerprint(&on_demand(settings, GuestBounds::default()).unwrap());
        let all: std::collections::BTreeSet<String> = CodeSettings::ALL.into_iter().map(made).collect();
        assert_eq!(all.len(), CodeSettings::COUNT);
    }

    #[test]
    fn only_engines_of_0_3_compile_async_functions() {
        let text = r#"(component (import "f" (func async)))"#;
        for settings in CodeSettings::ALL {
            let engine = on_demand(settings, GuestBounds::default()).unwrap();
            let compiled = engine.precompile_component(&wat::parse_str(text).unwrap());
            assert_eq!(compiled.is_ok(), settings.wasi == WasiVersion::V0_3, "{settings:?}");
        }
    }

    #[test]
    fn the_largest_stacks_have_their_pool() {
        let bounds = GuestBounds { stack_bytes: *STACK_BYTES.end(), ..GuestBounds::default() };
        for settings in CodeSettings::ALL {
            Wasmtime::new(&pooled(settings, bounds, LIVE_INSTANCES_SMALL)).unwrap();
        }
    }

    #[test]
    fn the_probe_measures_an_engines_capacity() {
        let capacity = PoolCapacity::probe(GuestBounds::default());
        let (_, live) = engine(DEFAULT, GuestBounds::default()).unwrap();
        assert_eq!(capacity.live, live);
        assert!(capacity.live == capacity.live_max || capacity.error.is_some() || capacity.mappings.is_some());
    }
}
