//! Image garbage collection: upstream's rules for unused images, by age and by disk usage. Pure.

use std::time::Duration;

/// When unused images are removed. The defaults are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectPolicy {
    /// Images detected more recently are not removed to free disk space.
    pub age_min: Duration,
    /// Images unused for longer are always removed; none = no limit by age.
    pub age_max: Option<Duration>,
    /// Disk usage in percent from which images are removed; 100 = never.
    pub high_percent: u8,
    /// Disk usage in percent down to which images are removed.
    pub low_percent: u8,
}

impl CollectPolicy {
    /// Upstream's.
    pub const DEFAULT: Self =
        Self { age_min: Duration::from_secs(120), age_max: None, high_percent: 85, low_percent: 80 };
}

impl Default for CollectPolicy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The disk that holds the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub total_bytes: u64,
    /// Bytes available to this process.
    pub available_bytes: u64,
}

/// An image as input of [`decide`]. Times are those of a monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    /// Bytes that its removal frees: 0 if the registry holds its blobs and it was never compiled. A blob shared by
    /// several images counts for each of them, like upstream's layers.
    pub(super) frees_bytes: u64,
    pub(super) detected_at: Duration,
    pub(super) used_at: Duration,
    /// Whether a pod has the image or is about to get it.
    pub(super) in_use: bool,
}

/// The result of [`decide`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Names of the images to remove.
    pub(super) forget: Vec<String>,
    /// Bytes to free, and the part of them that unused images can free.
    pub(super) wanted_bytes: u64,
    pub(super) found_bytes: u64,
}

/// Selects images first by age. If the disk is too full, it then selects the longest unused ones until enough bytes
/// would be free.
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
        // Removing an image that frees nothing only costs a new compilation.
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
            // Below the high threshold no image is removed, however long it is unused.
            (plain, disk(151), &[][..], 0, 0),
            (plain, None, &[], 0, 0),
            (plain, Some(Disk { total_bytes: 0, available_bytes: 0 }), &[], 0, 0),
            // At the threshold: down to the low one, longest unused first, no more than needed.
            (plain, disk(150), &["older", "old"], 50, 60),
            (plain, disk(111), &["older", "old", "recent"], 89, 90),
            // Images that are in use, too young, or free nothing stay even if the target is missed.
            (plain, disk(0), &["older", "old", "recent"], 200, 90),
            (never, disk(0), &[], 0, 0),
            // Age alone removes an image, whether it frees something or not.
            (aged, disk(900), &["in-the-registry", "older", "old"], 0, 0),
            // Bytes freed by age count.
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
        fn images_in_use_are_kept(
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
