//! Which images of a node go, and when: upstream's rules for unused images by age and by the disk's use. Pure.

use std::time::Duration;

/// When unused images go. The defaults are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectPolicy {
    /// Nothing that came more recently goes to make room.
    pub age_min: Duration,
    /// What nobody used for longer goes in any case; none = age alone is no reason.
    pub age_max: Option<Duration>,
    /// From this share of the disk on room is made; 100 = never.
    pub high_percent: u8,
    /// Down to this share.
    pub low_percent: u8,
}

impl Default for CollectPolicy {
    fn default() -> Self {
        Self { age_min: Duration::from_secs(120), age_max: None, high_percent: 85, low_percent: 80 }
    }
}

/// The disk that images lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub total_bytes: u64,
    /// What is free for us.
    pub available_bytes: u64,
}

/// An image as the decision sees it. Times are those of a monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    /// What its removal gives back: nothing where the registry holds its blobs and it was never compiled. What several
    /// images share counts for each of them, as upstream's layers do.
    pub(super) frees_bytes: u64,
    pub(super) detected_at: Duration,
    pub(super) used_at: Duration,
    /// A pod has it, or is about to.
    pub(super) in_use: bool,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Names of the images to remove.
    pub(super) forget: Vec<String>,
    /// What has to come free, and what of it the unused images can give.
    pub(super) wanted_bytes: u64,
    pub(super) found_bytes: u64,
}

/// Decides: first by age, then, where the disk is too full, the longest unused ones until enough would be free.
pub(super) fn decide(policy: &CollectPolicy, images: &[Candidate], disk: Option<Disk>, now: Duration) -> Decision {
    let idle = |image: &Candidate| now.saturating_sub(image.used_at.max(image.detected_at));
    let mut unused: Vec<&Candidate> = images.iter().filter(|image| !image.in_use).collect();
    unused.sort_by_key(|image| (image.used_at, image.detected_at, &image.name));
    let mut decision = Decision::default();
    let (old, rest): (Vec<&Candidate>, Vec<&Candidate>) =
        unused.into_iter().partition(|image| policy.age_max.is_some_and(|age_max| idle(image) > age_max));
    let aged_bytes: u64 = old.iter().map(|image| image.frees_bytes).sum();
    decision.forget.extend(old.into_iter().map(|image| image.name.clone()));

    let Some(disk) = disk.filter(|disk| disk.total_bytes > 0) else { return decision };
    let share = |percent: u8| u128::from(disk.total_bytes) * u128::from(percent) / 100;
    let available = disk.available_bytes.saturating_add(aged_bytes).min(disk.total_bytes);
    let used = u128::from(disk.total_bytes - available);
    if policy.high_percent >= 100 || used < share(policy.high_percent) {
        return decision;
    }
    decision.wanted_bytes = u64::try_from(used.saturating_sub(share(policy.low_percent))).unwrap_or(u64::MAX);
    for image in rest {
        if decision.found_bytes >= decision.wanted_bytes {
            break;
        }
        // What gives nothing back would only have to be compiled again.
        if image.frees_bytes == 0 || now.saturating_sub(image.detected_at) < policy.age_min {
            continue;
        }
        decision.found_bytes += image.frees_bytes;
        decision.forget.push(image.name.clone());
    }
    decision
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn image(name: &str, frees_bytes: u64, detected: u64, used: u64, in_use: bool) -> Candidate {
        Candidate { name: name.into(), frees_bytes, detected_at: minutes(detected), used_at: minutes(used), in_use }
    }

    fn disk(available_bytes: u64) -> Option<Disk> {
        Some(Disk { total_bytes: 1000, available_bytes })
    }

    #[test]
    fn ages_and_thresholds_decide() {
        let images = [
            image("running", 500, 0, 60, true),
            image("old", 30, 0, 1, false),
            image("older", 30, 0, 0, false),
            image("in-the-registry", 0, 0, 0, false),
            image("recent", 30, 10, 50, false),
            image("young", 900, 59, 59, false),
        ];
        let plain = CollectPolicy::default();
        let aged = CollectPolicy { age_max: Some(minutes(30)), ..plain };
        let never = CollectPolicy { high_percent: 100, ..plain };
        for (policy, disk, forget, wanted, found) in [
            // Below the high threshold nothing goes, however long it is unused.
            (plain, disk(151), &[][..], 0, 0),
            (plain, None, &[], 0, 0),
            (plain, Some(Disk { total_bytes: 0, available_bytes: 0 }), &[], 0, 0),
            // At it: down to the low one, longest unused first, no more than needed.
            (plain, disk(150), &["older", "old"], 50, 60),
            (plain, disk(111), &["older", "old", "recent"], 89, 90),
            // What is in use, too young, or gives nothing back stays even when it is not enough.
            (plain, disk(0), &["older", "old", "recent"], 200, 90),
            (never, disk(0), &[], 0, 0),
            // Age alone, whether it gives something back or not.
            (aged, disk(900), &["in-the-registry", "older", "old"], 0, 0),
            // What age gives back counts.
            (aged, disk(100), &["in-the-registry", "older", "old"], 0, 0),
            (aged, disk(80), &["in-the-registry", "older", "old", "recent"], 60, 30),
        ] {
            let decision = decide(&policy, &images, disk, minutes(60));
            assert_eq!(decision.forget, forget, "{policy:?} {disk:?}");
            assert_eq!((decision.wanted_bytes, decision.found_bytes), (wanted, found), "{policy:?} {disk:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_in_use_stays(
            images in prop::collection::vec((0u64..1 << 40, 0u64..200, 0u64..200, any::<bool>()), 0..12),
            (total_bytes, available_bytes, now) in (any::<u64>(), any::<u64>(), 0u64..400),
            (high_percent, low_percent) in (any::<u8>(), any::<u8>()),
        ) {
            let images: Vec<Candidate> = images.into_iter().enumerate()
                .map(|(n, (bytes, detected, used, in_use))| image(&n.to_string(), bytes, detected, used, in_use)).collect();
            let policy = CollectPolicy { age_max: Some(minutes(60)), high_percent, low_percent, ..CollectPolicy::default() };
            let now = minutes(now);
            let decision = decide(&policy, &images, Some(Disk { total_bytes, available_bytes }), now);
            for name in &decision.forget {
                let image = images.iter().find(|image| image.name == *name).unwrap();
                prop_assert!(!image.in_use);
                prop_assert!(now.saturating_sub(image.detected_at) >= policy.age_min);
            }
        }
    }
}
