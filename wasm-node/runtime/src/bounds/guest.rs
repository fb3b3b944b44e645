//! Per-instance bounds with a flag. Their defaults suffice for nearly every guest, so the error of a guest that hits one names
//! the bound and its flag.

use std::fmt;
use std::ops::RangeInclusive;

use guest_sockets::SocketLimits;
use wasmtime::Trap;
use wasmtime::component::ResourceTableError;

use super::census::Census;
use super::limits::{CONCURRENT_ENTRIES_MIN, CONCURRENT_PART, RESOURCE_TABLE_ENTRIES_MAX, WASM_STACK_BYTES};

/// Bytes of a guest's stack: less doesn't suffice for a language's own start, more would make the pool's stacks take tens of
/// gigabytes of address space.
pub const STACK_BYTES: RangeInclusive<usize> = 64 << 10..=8 << 20;
/// Handles: a request needs some ten, and the host visits all of them now and then.
pub const HANDLES: RangeInclusive<usize> = 64..=1 << 20;

/// Bounds of each instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestBounds {
    /// Bytes of its stack: deeper recursion traps. Address space at first, memory beside the container's limit once used.
    /// Within [`STACK_BYTES`].
    pub stack_bytes: usize,
    /// Maximum WASI handles (resources): one more traps. Each counts as 256 bytes plus its content in the container's
    /// memory. Within [`HANDLES`].
    pub handles: usize,
    /// Quotas of the sockets of a pod.
    pub sockets: SocketLimits,
}

impl Default for GuestBounds {
    fn default() -> Self {
        Self { stack_bytes: WASM_STACK_BYTES, handles: RESOURCE_TABLE_ENTRIES_MAX, sockets: SocketLimits::default() }
    }
}

impl GuestBounds {
    /// Maximum entries of an instance's streams, futures and tasks of WASI 0.3.
    pub(crate) fn concurrent(&self) -> usize {
        (self.handles / CONCURRENT_PART).max(CONCURRENT_ENTRIES_MIN)
    }

    /// The flag of the bound that a guest hit, if this error is due to one.
    pub(crate) fn advice(&self, error: &wasmtime::Error, handles: Option<&Census>) -> Option<String> {
        if matches!(cause(error), Some(Trap::StackOverflow)) {
            let bound = Size(self.stack_bytes);
            return Some(format!(
                "the guest is at its bound of {bound} of stack, which the node's --guest-stack-size raises"
            ));
        }
        if matches!(cause(error), Some(ResourceTableError::Full)) {
            let bound = self.handles;
            if handles.is_some_and(|census| census.handles < bound as u64) {
                // Its table of handles has room, so the full one is that of concurrent state.
                return Some(format!(
                    "the guest is at its bound of {} entries for streams, futures and tasks, which the node's --guest-handles raises",
                    self.concurrent()
                ));
            }
            let census = handles.map(|census| format!("; {census}")).unwrap_or_default();
            return Some(format!(
                "the guest is at its bound of {bound} handles, which the node's --guest-handles raises{census}"
            ));
        }
        None
    }
}

/// Finds an error of a type in the chain: a host interface may have wrapped it.
fn cause<T: std::error::Error + Send + Sync + 'static>(error: &wasmtime::Error) -> Option<&T> {
    error.downcast_ref().or_else(|| error.chain().find_map(|cause| cause.downcast_ref()))
}

/// Bytes in the notation of flags.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}Mi", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) => write!(f, "{}Ki", bytes >> 10),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_at_a_limit_name_its_flag() {
        let bounds = GuestBounds { stack_bytes: 2 << 20, handles: 64, ..GuestBounds::default() };
        let of = |error: wasmtime::Error| bounds.advice(&error, None).unwrap_or_default();
        let stack = "the guest is at its bound of 2Mi of stack, which the node's --guest-stack-size raises";
        let handles = "the guest is at its bound of 64 handles, which the node's --guest-handles raises";
        assert_eq!(of(Trap::StackOverflow.into()), stack);
        assert_eq!(of(wasmtime::Error::new(Trap::StackOverflow).context("error while executing")), stack);
        assert_eq!(of(ResourceTableError::Full.into()), handles);
        assert_eq!(of(wasmtime::Error::new(Around(ResourceTableError::Full)).context("in a call")), handles);
        assert_eq!(of(ResourceTableError::NotPresent.into()), "");
        assert_eq!(of(Trap::UnreachableCodeReached.into()), "");
        assert_eq!(of(wasmtime::Error::msg("call stack exhausted")), "");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("around")]
    struct Around(#[source] ResourceTableError);

    #[test]
    fn sizes_are_as_flags_take_them() {
        assert_eq!(Size(512 << 10).to_string(), "512Ki");
        assert_eq!(Size(8 << 20).to_string(), "8Mi");
        assert_eq!(Size(100_000).to_string(), "100000 bytes");
    }
}
