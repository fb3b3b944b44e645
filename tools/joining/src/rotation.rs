//! When a certificate is renewed: at a random point of 70 to 90% of its life, as upstream's `certificate_manager.go`.

use std::time::Duration;

use apiserver_auth::own_certificates::OwnCertificate;
use jiff::Timestamp;
use machinery_env::Env;

const FIRST_PERCENT: i64 = 70;
const SPAN_PERCENT: i64 = 20;
/// The clock is read this often: timers stand still while a machine is suspended.
const CLOCK_CHECK: Duration = Duration::from_mins(1);

/// The time of renewal.
pub(crate) fn rotate_at(env: &Env, of: &OwnCertificate) -> Timestamp {
    let life = of.not_after.duration_since(of.not_before).as_secs().max(0);
    let span = u64::try_from(life * SPAN_PERCENT / 100).unwrap_or(0);
    let after = life * FIRST_PERCENT / 100 + env.below(span + 1).cast_signed();
    of.not_before.saturating_add(Duration::from_secs(after.max(0).cast_unsigned())).unwrap_or(of.not_after)
}

/// Whether a certificate is to be renewed at `at` or earlier: one that begins later was issued by a clock that was set back.
pub(crate) fn is_due(at: Timestamp, of: &OwnCertificate, now: Timestamp) -> bool {
    at <= now || now < of.not_before
}

/// Waits until a certificate is due by the machine's clock, which may be set meanwhile.
pub(crate) async fn sleep_until_due(env: &Env, at: Timestamp, of: &OwnCertificate) {
    loop {
        let now = env.now();
        let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        if left.is_zero() || is_due(at, of, now) {
            return;
        }
        env.sleep(left.min(CLOCK_CHECK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_are_spread_over_a_fifth_of_the_life() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let held = |seconds: u64| OwnCertificate {
            user: String::new(),
            groups: Vec::new(),
            names: Vec::new(),
            not_before: start,
            not_after: start.saturating_add(Duration::from_secs(seconds)).unwrap(),
        };
        let year = held(1_000_000);
        let points: Vec<i64> = (0..500).map(|_| rotate_at(&env, &year).duration_since(start).as_secs()).collect();
        assert!(points.iter().all(|point| (700_000..=900_000).contains(point)), "{points:?}");
        assert!(points.iter().any(|point| *point < 750_000) && points.iter().any(|point| *point > 850_000));
        assert_eq!(rotate_at(&env, &held(0)), start);
        let reversed = OwnCertificate { not_after: start, not_before: held(10).not_after, ..held(10) };
        assert_eq!(rotate_at(&env, &reversed), reversed.not_before);
    }
}
