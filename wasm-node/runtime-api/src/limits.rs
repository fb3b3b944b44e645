//! Limits of a container from its spec and annotations, with their defaults.

use std::time::Duration;

/// Default wall clock to a response's head (contract: 60 s).
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Default number of requests per reused instance (`reuse.coracle.dev/`).
pub const REUSE_COUNT_DEFAULT: u32 = 128;
/// Default idle time of a parked instance (`reuse.coracle.dev/`).
pub const REUSE_IDLE_DEFAULT: Duration = Duration::from_secs(1);
/// Default concurrent requests per pod (contract: 64).
pub const CONCURRENCY_DEFAULT: usize = 64;
/// The minimum CPU shares, those of a container without a request (the kernel's, and upstream's `MinShares`).
pub const CPU_SHARES_MIN: u64 = 2;
/// The maximum (upstream's `MaxShares`).
const CPU_SHARES_MAX: u64 = 262_144;
/// The shares of one core.
const CPU_SHARES_PER_CORE: u64 = 1024;

/// Converts `requests.cpu` in thousandths of a core to cgroups' `cpu.shares` (upstream's `MilliCPUToShares`).
#[must_use]
pub fn cpu_shares(request_millis: u64) -> u64 {
    (request_millis.saturating_mul(CPU_SHARES_PER_CORE) / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

/// The limits of a container's spec and its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `limits.memory`, shared by all live instances; `None`: only the node's own budget.
    pub memory_bytes: Option<u64>,
    /// `limits.cpu` in thousandths of a core; `None`: not throttled.
    pub cpu_millis: Option<u64>,
    /// Its CPU weight under contention, see [`cpu_shares`].
    pub cpu_shares: u64,
    /// `fuel.coracle.dev/<container>`: per run or per request.
    pub fuel: Option<u64>,
    /// `timeout.coracle.dev/<container>`.
    pub timeout: Duration,
    /// `concurrency.coracle.dev/<container>`.
    pub concurrency: usize,
    /// `reuse.coracle.dev/<container>`; `None`: an instance per request.
    pub reuse: Option<Reuse>,
}

/// Reuse of a server's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// Requests that one instance serves, one after the other.
    pub count: u32,
    /// Maximum idle time before the next one.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            cpu_millis: None,
            cpu_shares: CPU_SHARES_MIN,
            fuel: None,
            timeout: REQUEST_TIMEOUT_DEFAULT,
            concurrency: CONCURRENCY_DEFAULT,
            reuse: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_upstreams() {
        let cases = [(0, 2), (1, 2), (2, 2), (3, 3), (4, 4), (100, 102), (1000, 1024), (300_000, 262_144)];
        for (millis, shares) in cases {
            assert_eq!(cpu_shares(millis), shares, "{millis}");
        }
        assert_eq!(cpu_shares(u64::MAX), CPU_SHARES_MAX);
    }
}
