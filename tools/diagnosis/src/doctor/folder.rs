//! Checks of the data folder. Pure.

use super::checks::{CheckResult, Finding, Level};
use super::facts::Facts;
use crate::inspection::amounts::bytes;
use crate::inspection::shell_quoted;

/// Permission bits of others than the owner.
const OTHERS: u32 = 0o077;
/// Free space of less than this many times the threshold of eviction is little.
const LITTLE: u64 = 2;

pub(super) fn disk(facts: &Facts) -> CheckResult {
    let with_threshold = facts.folder.disk.and_then(|disk| Some((disk, disk.eviction_bytes?)));
    let Some((disk, threshold)) = with_threshold else {
        return CheckResult::not_applicable("the free space of the data folder's disk is unknown");
    };
    let (free, path) = (disk.free_bytes, facts.folder.path.display());
    let fix = "free disk space, or start with a folder on another disk: coracle up --data-dir DIR";
    if free < threshold {
        let message =
            format!("the disk of {path} has {} free: below {} nodes evict pods", bytes(free), bytes(threshold));
        return CheckResult::Findings(vec![Finding::new(Level::Error, message, fix)]);
    }
    if free < threshold.saturating_mul(LITTLE) {
        let message =
            format!("the disk of {path} has {} free, and nodes evict pods below {}", bytes(free), bytes(threshold));
        return CheckResult::Findings(vec![Finding::new(Level::Warning, message, fix)]);
    }
    CheckResult::Passed(format!("{} free of {}", bytes(free), bytes(disk.total_bytes)))
}

pub(super) fn permissions(facts: &Facts) -> CheckResult {
    let folder = shell_quoted(&facts.folder.path.display().to_string());
    if let Some(why) = &facts.folder.error {
        let message = format!("the data folder {} can't be read: {why}", facts.folder.path.display());
        let fix = format!("sudo chown -R \"$USER\" {folder}, or run coracle as the user that owns it");
        return CheckResult::Findings(vec![Finding::new(Level::Error, message, fix)]);
    }
    let Some(modes) = &facts.folder.modes else {
        return CheckResult::not_applicable("files have no mode bits on this system");
    };
    let open = modes.iter().filter(|file| file.mode & OTHERS != 0);
    let findings = open.map(|file| {
        let path = file.path.display();
        let message = format!("other users have access to {path} (mode {:o}), which holds keys or Secrets", file.mode);
        let wanted = if file.is_folder { 700 } else { 600 };
        Finding::new(Level::Error, message, format!("chmod {wanted} {}", shell_quoted(&path.to_string())))
    });
    CheckResult::of(findings.collect(), || {
        if modes.is_empty() {
            "there is no data folder yet".to_owned()
        } else {
            "the data folder is private".to_owned()
        }
    })
}

pub(super) fn certificates(facts: &Facts) -> CheckResult {
    let all = &facts.folder.certificates;
    let findings = all.iter().filter(|one| one.needs_attention()).map(|one| {
        let level = if one.has_expired() || one.begins_later() { Level::Error } else { Level::Warning };
        Finding::new(level, one.warning(), one.remedy())
    });
    CheckResult::of(findings.collect(), || match all.iter().map(|one| one.days_left).min() {
        None => "there are none yet".to_owned(),
        Some(days) => format!("the next end is in {days} days"),
    })
}

pub(super) fn sockets(facts: &Facts) -> CheckResult {
    let findings = facts.folder.leftover_socket.iter().map(|socket| {
        let path = socket.display();
        let message = format!("{path} is left from a process that was killed; the next start replaces it");
        Finding::new(Level::Info, message, format!("rm {}", shell_quoted(&path.to_string())))
    });
    CheckResult::of(findings.collect(), || "none are left over".to_owned())
}
