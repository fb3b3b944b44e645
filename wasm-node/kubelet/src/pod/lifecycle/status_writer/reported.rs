//! The pod's status in the API, as far as its worker has observed it: compares the API's current status, not the last
//! write, as others write into the status too. Pure. A foreign overwrite is repaired, at a limited rate.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;

use crate::pod::lifecycle::status;
use crate::spec::compressed::Compressed;

/// The minimum interval between two repairs of a status that others keep overwriting (upstream's reconcile period).
const REPAIR_INTERVAL: Duration = Duration::from_secs(10);
/// The delay of the first repair after a foreign status write, so that controllers can react to that write.
const REPAIR_FIRST: Duration = Duration::from_secs(5);

/// The pod's status in the API, as far as its worker has observed it.
#[derive(Debug, Default)]
pub(super) struct ReportedStatus {
    /// The last written status.
    written: Option<Arc<Compressed<PodStatus>>>,
    /// The version after that write. Older states from the watch don't contain it.
    version: u64,
    /// The watch has delivered that version or a newer one.
    observed: bool,
    /// The written status isn't compared with the API's.
    suppressed: bool,
    /// The earliest monotonic time at which a foreign overwrite is repaired.
    repair_from: Duration,
    /// A foreign overwrite was detected.
    overwritten: bool,
}

impl ReportedStatus {
    /// The watch delivered a state of the pod.
    pub(super) fn observe(&mut self, version: u64) {
        self.observed |= version >= self.version;
    }

    /// `status` was accepted as `version`; `newest` is the newest version from the watch.
    pub(super) fn record_write(
        &mut self,
        status: Arc<Compressed<PodStatus>>,
        version: u64,
        newest: u64,
        elapsed: Duration,
    ) {
        if self.written.as_ref().is_some_and(|written| written.same(&status)) {
            self.repair_from = elapsed + REPAIR_INTERVAL;
        }
        *self = Self {
            written: Some(status),
            version,
            observed: newest >= version,
            suppressed: false,
            overwritten: false,
            ..*self
        };
    }

    /// Suppresses writes until the wanted status differs from this one.
    pub(super) fn suppress_writes(&mut self, status: Arc<Compressed<PodStatus>>) {
        self.written = Some(status);
        self.suppressed = true;
    }

    /// Whether `wanted` has to be written, given the status that the watch `shows`.
    pub(super) fn dirty(&self, wanted: &Arc<Compressed<PodStatus>>, shows: Option<&PodStatus>) -> bool {
        match &self.written {
            Some(written) if self.suppressed || !self.observed => !written.same(wanted),
            _ => !shows.is_some_and(|shows| status::shows(shows, &wanted.get())),
        }
    }

    /// Records the result of [`Self::dirty`]. After a foreign overwrite, controllers get time to react to it, as the
    /// kubelet reconciles every 10 s: the DaemonSet controller replaces a pod that was failed by hand.
    pub(super) fn record_overwrite(&mut self, dirty: bool, wanted: &Arc<Compressed<PodStatus>>, elapsed: Duration) {
        let overwritten = dirty && self.written.as_ref().is_some_and(|written| written.same(wanted));
        if overwritten && !self.overwritten {
            self.repair_from = self.repair_from.max(elapsed + REPAIR_FIRST);
        }
        self.overwritten = overwritten;
    }

    /// The remaining delay before an overwritten status is repaired.
    pub(super) fn repair_delay(&self, wanted: &Arc<Compressed<PodStatus>>, elapsed: Duration) -> Option<Duration> {
        let is_written = || self.written.as_ref().is_some_and(|written| written.same(wanted));
        Some(self.repair_from.saturating_sub(elapsed)).filter(|wait| !wait.is_zero() && is_written())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str) -> Arc<Compressed<PodStatus>> {
        Arc::new(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }.into())
    }

    #[test]
    fn overwritten_statuses_are_repaired_at_a_bounded_rate() {
        let (ours, theirs) = (status("Running"), status("Failed"));
        let second = Duration::from_secs;
        let mut api = ReportedStatus::default();
        assert!(api.dirty(&ours, None) && api.dirty(&ours, Some(&theirs.get())), "never written");
        api.record_write(ours.clone(), 7, 6, second(1));
        assert!(!api.dirty(&ours, Some(&theirs.get())), "the watch shows what was there before our write");
        api.observe(7);
        assert!(!api.dirty(&ours, Some(&ours.get())));
        api.observe(8);
        assert!(api.dirty(&ours, Some(&theirs.get())), "another one has written");
        api.record_overwrite(true, &ours, second(2));
        api.record_overwrite(true, &ours, second(4));
        assert_eq!(api.repair_delay(&ours, second(4)), Some(second(3)), "from when it was found");
        assert_eq!(api.repair_delay(&ours, second(7)), None);
        api.record_write(ours.clone(), 9, 8, second(7));
        api.observe(10);
        assert!(api.dirty(&ours, Some(&theirs.get())));
        api.record_overwrite(true, &ours, second(8));
        assert_eq!(api.repair_delay(&ours, second(8)), Some(second(9)), "the second time later");
        assert_eq!(api.repair_delay(&theirs, second(8)), None, "a change of our own waits for nothing");
        assert_eq!(api.repair_delay(&ours, second(17)), None);
    }

    #[test]
    fn a_watch_that_is_ahead_of_our_write_is_believed() {
        let mut api = ReportedStatus::default();
        api.record_write(status("Running"), 7, 9, Duration::ZERO);
        assert!(api.dirty(&status("Running"), Some(&status("Failed").get())));
    }

    #[test]
    fn a_suppressed_status_is_written_after_the_next_change() {
        let mut api = ReportedStatus::default();
        api.suppress_writes(status("Failed"));
        api.observe(100);
        assert!(!api.dirty(&status("Failed"), Some(&status("Running").get())));
        assert!(api.dirty(&status("Succeeded"), Some(&status("Running").get())));
    }
}
