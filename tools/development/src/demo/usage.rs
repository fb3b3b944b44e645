//! Resource usage of this process: CPU time and memory, as counted by the operating system.

use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// One sample.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU time of all threads since the process' start.
    pub(crate) cpu: Duration,
    /// Memory: proportional set size on Linux, else the resident set.
    pub(crate) memory_bytes: u64,
}

impl Usage {
    /// Takes a sample.
    pub(crate) fn read() -> Self {
        let pid = Pid::from_u32(std::process::id());
        let Ok(mut system) = System::new() else { return Self::default() };
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[pid]),
            false,
            ProcessRefreshKind::nothing().with_cpu().with_memory(),
        );
        let Some(process) = system.process(pid) else { return Self::default() };
        Self {
            cpu: Duration::from_millis(process.accumulated_cpu_time()),
            memory_bytes: proportional_bytes().unwrap_or_else(|| process.memory()),
        }
    }
}

/// `Pss` of `/proc/self/smaps_rollup` (proc_pid_smaps_rollup(5)).
fn proportional_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
