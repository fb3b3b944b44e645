//! Buckets of response times: nodes count by them, and the API server computes quantiles of the sums over pods.

use std::time::Duration;

/// The upper bounds of the buckets, in microseconds: 1, 2.5 and 5 of each power of ten. A small module responds in some
/// 100 µs, and a request's default timeout is 60 s; the last bucket, without a bound, has what is beyond.
pub const BOUNDS_MICROS: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 60_000_000,
];
/// The number of buckets.
pub const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// Counts by bucket; each response is in one bucket.
pub type Counts = [u64; BUCKETS];

/// The bucket of a response time.
#[must_use]
pub fn bucket(took: Duration) -> usize {
    let nanos = took.as_nanos();
    BOUNDS_MICROS.partition_point(|bound| u128::from(*bound) * 1000 < nanos)
}

/// Adds the counts of other responses.
pub fn add(sum: &mut Counts, other: &Counts) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum = sum.saturating_add(*other);
    }
}

/// The number of responses.
#[must_use]
pub fn count(counts: &Counts) -> u64 {
    counts.iter().fold(0, |sum, one| sum.saturating_add(*one))
}

/// The time in microseconds within which `percent` of the responses came, with their times spread evenly over each
/// bucket (Prometheus' `histogram_quantile`). In the last bucket it is the highest bound. `None` without responses.
#[must_use]
pub fn percentile_micros(counts: &Counts, percent: u8) -> Option<u64> {
    let all = u128::from(count(counts));
    if all == 0 {
        return None;
    }
    // Ranks in hundredths of a response.
    let rank = all * u128::from(percent.min(100));
    let mut below = 0;
    for (at, inside) in counts.iter().enumerate() {
        let inside = u128::from(*inside) * 100;
        if inside > 0 && below + inside >= rank {
            let from = u128::from(at.checked_sub(1).map_or(0, |at| BOUNDS_MICROS[at]));
            let Some(to) = BOUNDS_MICROS.get(at).copied().map(u128::from) else { break };
            let micros = from + (to - from) * (rank - below) / inside;
            return u64::try_from(micros).ok();
        }
        below += inside;
    }
    BOUNDS_MICROS.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(usize, u64)]) -> Counts {
        let mut counts = [0; BUCKETS];
        of.iter().for_each(|(at, count)| counts[*at] = *count);
        counts
    }

    #[test]
    fn each_time_has_one_bucket_up_to_its_bound() {
        let of = |micros| bucket(Duration::from_micros(micros));
        assert_eq!((of(0), of(100), of(101), of(250), of(60_000_000)), (0, 0, 1, 1, 16));
        assert_eq!(bucket(Duration::from_nanos(100_001)), 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert!(BOUNDS_MICROS.is_sorted());
    }

    #[test]
    fn percentiles_are_interpolated() {
        assert_eq!(percentile_micros(&counts(&[]), 50), None);
        // Ten responses of 0 to 100 µs.
        let fast = counts(&[(0, 10)]);
        assert_eq!((percentile_micros(&fast, 50), percentile_micros(&fast, 100)), (Some(50), Some(100)));
        // 98 of 1 to 2.5 ms, two of 1 to 2.5 s: half of the latter are within the 99th percentile.
        let mixed = counts(&[(4, 98), (13, 2)]);
        assert_eq!(percentile_micros(&mixed, 50), Some(1_000 + 1_500 * 50 / 98));
        assert_eq!(percentile_micros(&mixed, 98), Some(2_500));
        assert_eq!(percentile_micros(&mixed, 99), Some(1_750_000));
        assert_eq!(percentile_micros(&counts(&[(0, 1), (BUCKETS - 1, 99)]), 50), Some(60_000_000));
    }

    #[test]
    fn huge_counts_do_not_overflow() {
        let mut sum = counts(&[(3, u64::MAX)]);
        add(&mut sum, &counts(&[(3, 1), (5, u64::MAX)]));
        assert_eq!(count(&sum), u64::MAX);
        assert!(percentile_micros(&sum, 99).is_some());
        assert_eq!(percentile_micros(&counts(&[(0, u64::MAX)]), 0), Some(0));
    }
}
