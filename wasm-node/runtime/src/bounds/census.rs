//! The number of handles (WASI resources) of a failed guest, for messages about limits. Plain data; `host::handles` counts them.

use std::fmt;

/// Bytes of a handle besides its content: the boxed entry, its table slot, its children's set, and the guest's own slot.
pub(crate) const HANDLE_BYTES: u64 = 256;

/// The handles of an instance at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) handles: u64,
    /// The kind of which there are the most, and their number.
    pub(crate) most: (&'static str, u64),
}

impl Census {
    /// Their host memory besides their content.
    pub(crate) fn bytes(&self) -> u64 {
        self.handles * HANDLE_BYTES
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handles, most: (name, count) } = self;
        write!(f, "{count} of its {handles} handles are of the kind {name}")
    }
}
