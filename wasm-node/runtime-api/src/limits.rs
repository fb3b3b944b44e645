//! The limits of a container, as its spec and annotations have them.

use std::time::Duration;

/// Wall clock to a response's head where no annotation says otherwise (contract: 60 s).
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How often an instance answers where `reuse.coracle.dev/` doesn't say.
pub const REUSE_COUNT_DEFAULT: u32 = 128;
/// How long a parked instance waits for its next request where `reuse.coracle.dev/` doesn't say.
pub const REUSE_IDLE_DEFAULT: Duration = Duration::from_secs(1);
/// Requests at once per pod where no annotation says otherwise (contract: 64).
pub const CONCURRENCY_DEFAULT: usize = 64;
/// The least share of CPU, that of a container which requests none (the kernel's, and upstream's `MinShares`).
pub const CPU_SHARES_MIN: u64 = 2;
/// The largest (upstream's `MaxShares`).
const CPU_SHARES_MAX: u64 = 262_144;
/// That of one core.
const CPU_SHARES_PER_CORE: u64 = 1024;

/// What `requests.cpu` in thousandths of a core is as cgroups' `cpu.shares` (upstream's `MilliCPUToShares`).
#[must_use]
pub fn cpu_shares(request_millis: u64) -> u64 {
    (request_millis.saturating_mul(CPU_SHARES_PER_CORE) / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

/// The limits of a container's spec and its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `limits.memory`: shared by all live instances; none = only the node's own budget holds.
    pub memory_bytes: Option<u64>,
    /// `limits.cpu` in thousandths of a core; none = not throttled.
    pub cpu_millis: Option<u64>,
    /// Its part of the CPU where guests together want more than there is, see [`cpu_shares`].
    pub cpu_shares: u64,
    /// `fuel.coracle.dev/<container>`: per run or per request.
    pub fuel: Option<u64>,
    /// `timeout.coracle.dev/<container>`.
    pub timeout: Duration,
    /// `concurrency.coracle.dev/<container>`.
    pub concurrency: usize,
    /// `reuse.coracle.dev/<container>`; none = an instance for each request.
    pub reuse: Option<Reuse>,
}

/// How a server's instances are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// Requests that one answers, one after the other.
    pub count: u32,
    /// How long it waits for the next.
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
