//! The process that holds a data folder's lock. Nothing here takes the lock: a process that starts at the same moment must
//! not find it taken.

use std::path::Path;

use serde::Serialize;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessFacts {
    pub(crate) pid: u32,
    /// Time since its start.
    pub(crate) running_seconds: u64,
    /// Resident memory.
    pub(crate) memory_bytes: u64,
}

/// The process that holds the lock of a data folder; `None` if there is none or the system doesn't report it.
pub(crate) fn holder(lock: &Path) -> Option<ProcessFacts> {
    let pid = Pid::from_u32(holder_pid(lock)?);
    let mut system = System::new().ok()?;
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
    let process = system.process(pid)?;
    Some(ProcessFacts { pid: pid.as_u32(), running_seconds: process.run_time(), memory_bytes: process.memory() })
}

/// The owner of the lock in `/proc/locks` (proc_locks(5)).
#[cfg(target_os = "linux")]
fn holder_pid(lock: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(lock).ok()?.ino();
    owner(&std::fs::read_to_string("/proc/locks").ok()?, inode)
}

#[cfg(not(target_os = "linux"))]
fn holder_pid(_: &Path) -> Option<u32> {
    None
}

/// The process with a `FLOCK` on a file, by its inode: device numbers of layered file systems differ between the table and
/// stat(2). Lines of waiting processes have an arrow after their number.
#[cfg(any(target_os = "linux", test))]
fn owner(table: &str, inode: u64) -> Option<u32> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields.as_slice() else { return None };
        let found = file.rsplit(':').next()?.parse::<u64>().ok()?;
        pid.parse().ok().filter(|_| found == inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_the_process_with_the_lock() {
        let table = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 22 00:2f:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 00:2f:78 0 EOF\n3: FLOCK  ADVISORY  WRITE -1 00:2f:79 0 EOF\n";
        assert_eq!(owner(table, 77), Some(22));
        assert_eq!(owner(table, 78), None, "it waits");
        assert_eq!(owner(table, 79), None, "of another namespace of processes");
        assert_eq!(owner("", 77), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_locked_folder_has_this_process_as_holder() {
        let temp = tempfile::tempdir().unwrap();
        let data = tools_command::data_dir::DataDir::at(temp.path().join("data"));
        let file = data.path().join("lock");
        assert_eq!(holder(&file), None);
        let held = data.lock().unwrap();
        let facts = holder(&file).unwrap();
        assert_eq!(facts.pid, std::process::id());
        assert!(facts.memory_bytes > 0);
        drop(held);
        assert_eq!(holder(&file), None);
    }
}
