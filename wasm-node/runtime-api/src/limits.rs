//! The limits of a container, as its spec and annotations have them.

use std::time::Duration;

/// Wall clock to a response's head where no annotation says otherwise (contract: 60 s).
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Requests at once per pod where no annotation says otherwise (contract: 64).
pub const CONCURRENCY_DEFAULT: usize = 64;
/// The limits of a container's spec and its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `limits.memory`: shared by all live instances; none = only the node's own budget holds.
    pub memory_bytes: Option<u64>,
    /// `limits.cpu` in thousandths of a core; none = not throttled.
    pub cpu_millis: Option<u64>,
    /// `fuel.coracle.dev/<container>`: per run or per request.
    pub fuel: Option<u64>,
    /// `timeout.coracle.dev/<container>`.
    pub timeout: Duration,
    /// `concurrency.coracle.dev/<container>`.
    pub concurrency: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            cpu_millis: None,
            fuel: None,
            timeout: REQUEST_TIMEOUT_DEFAULT,
            concurrency: CONCURRENCY_DEFAULT,
        }
    }
}
