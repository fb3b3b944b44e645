//! Scaling rules of an autoscaler: limits, stabilization windows and rates, from recent recommendations and changes.
//! Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// The maximum number of remembered entries: an hour, the longest window, one per second.
const REMEMBERED_MAX: usize = 3600;
/// Without rules of its own an autoscaler at most doubles a workload at once, or grows it to this size.
const GROWTH_MIN: i32 = 4;
const STABLE_UP: &str = "recent recommendations were lower than current one, applying the lowest recent recommendation";
const STABLE_DOWN: &str =
    "recent recommendations were higher than current one, applying the highest recent recommendation";

/// A condition's reason and message.
pub(super) type Why = (&'static str, &'static str);

/// Recent recommendations and changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct History {
    recommended: Vec<(Timestamp, i32)>,
    /// Scale-ups, with the number of added replicas.
    added: Vec<(Timestamp, i32)>,
    /// Scale-downs, with the number of removed replicas.
    removed: Vec<(Timestamp, i32)>,
}

/// The limits, the current and the desired size.
#[derive(Debug, Clone, Copy)]
pub(super) struct DesiredScale {
    pub(super) min: i32,
    pub(super) max: i32,
    pub(super) current: i32,
    pub(super) desired: i32,
}

/// The size after the rules.
#[derive(Debug, PartialEq)]
pub(super) struct NormalizedScale {
    pub(super) replicas: i32,
    /// The reason, if a stabilization window held the size back.
    pub(super) stabilized: Option<Why>,
    pub(super) limited: bool,
    pub(super) limit: Why,
}

fn prune(list: &mut Vec<(Timestamp, i32)>, from: Timestamp) {
    list.retain(|(at, _)| *at >= from);
    let spare = list.len().saturating_sub(REMEMBERED_MAX);
    list.drain(..spare);
}

fn before(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

fn seconds(seconds: i32) -> SignedDuration {
    SignedDuration::from_secs(seconds.max(0).into())
}

fn clamp(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX })
}

impl History {
    /// The first observed size is the first recommendation.
    pub(super) fn begin(&mut self, now: Timestamp, current: i32) {
        if self.recommended.is_empty() {
            self.recommended.push((now, current));
        }
    }

    /// Records a change.
    pub(super) fn scaled(&mut self, behavior: &Behavior<'_>, now: Timestamp, from: i32, to: i32) {
        let (list, rules) =
            if to > from { (&mut self.added, &behavior.up) } else { (&mut self.removed, &behavior.down) };
        let longest = rules.policies.iter().map(|policy| policy.period_seconds).max().unwrap_or(0);
        prune(list, before(now, seconds(longest)));
        list.push((now, clamp((i64::from(to) - i64::from(from)).abs())));
    }

    /// For an autoscaler without rules of its own.
    pub(super) fn limit_by_default(
        &mut self,
        wish: DesiredScale,
        now: Timestamp,
        window: SignedDuration,
    ) -> NormalizedScale {
        let cutoff = before(now, window);
        let recent = self.recommended.iter().filter(|(at, _)| *at >= cutoff).map(|(_, size)| *size);
        let stable = recent.max().map_or(wish.desired, |most| most.max(wish.desired));
        prune(&mut self.recommended, cutoff);
        self.recommended.push((now, wish.desired));
        let stabilized = (stable != wish.desired).then_some(("ScaleDownStabilized", STABLE_DOWN));
        let growth = wish.current.saturating_mul(2).max(GROWTH_MIN);
        let (most, why) = if wish.max > growth { (growth, TOO_FAST_UP) } else { (wish.max, TOO_MANY) };
        let (replicas, limit) = if stable < wish.min {
            (wish.min, TOO_FEW)
        } else if stable > most {
            (most, why)
        } else {
            (stable, WITHIN)
        };
        NormalizedScale { replicas, stabilized, limited: replicas != stable, limit }
    }

    /// For an autoscaler with rules of its own.
    pub(super) fn limit_by_rules(
        &mut self,
        wish: DesiredScale,
        behavior: &Behavior<'_>,
        now: Timestamp,
    ) -> NormalizedScale {
        let stable = self.stable(wish, behavior, now);
        let grows = wish.desired >= wish.current;
        let why = if grows { ("ScaleUpStabilized", STABLE_UP) } else { ("ScaleDownStabilized", STABLE_DOWN) };
        let stabilized = (stable != wish.desired).then_some(why);
        let (replicas, limit) = self.limited(DesiredScale { desired: stable, ..wish }, behavior, now);
        NormalizedScale { replicas, stabilized, limited: replicas != stable, limit }
    }

    fn stable(&mut self, wish: DesiredScale, behavior: &Behavior<'_>, now: Timestamp) -> i32 {
        let (up_cutoff, down_cutoff) = (before(now, behavior.up.window), before(now, behavior.down.window));
        let (mut up, mut down) = (wish.desired, wish.desired);
        for (at, size) in &self.recommended {
            if *at > up_cutoff {
                up = up.min(*size);
            }
            if *at > down_cutoff {
                down = down.max(*size);
            }
        }
        prune(&mut self.recommended, up_cutoff.min(down_cutoff));
        self.recommended.push((now, wish.desired));
        // First up to the minimum, then down to the maximum: the order matters if they conflict.
        wish.current.max(up).min(down)
    }

    /// Records a change; a scale-down is negative.
    #[cfg(test)]
    pub(super) fn remember_change(&mut self, at: Timestamp, change: i32) {
        if change > 0 { &mut self.added } else { &mut self.removed }.push((at, change.abs()));
    }

    /// The limits alone.
    #[cfg(test)]
    pub(super) fn rate(&self, wish: DesiredScale, behavior: &Behavior<'_>, now: Timestamp) -> (i32, Why) {
        self.limited(wish, behavior, now)
    }

    fn limited(&self, wish: DesiredScale, behavior: &Behavior<'_>, now: Timestamp) -> (i32, Why) {
        if wish.desired > wish.current {
            let limit = self.limit(wish.current, &behavior.up, now, true).max(wish.current);
            let (most, why) = if wish.max > limit { (limit, TOO_FAST_UP) } else { (wish.max, TOO_MANY) };
            if wish.desired > most {
                return (most, why);
            }
        } else if wish.desired < wish.current {
            let limit = self.limit(wish.current, &behavior.down, now, false).min(wish.current);
            let (least, why) = if wish.min < limit { (limit, TOO_FAST_DOWN) } else { (wish.min, TOO_FEW) };
            if wish.desired < least {
                return (least, why);
            }
        }
        (wish.desired, WITHIN)
    }

    /// The size that the policies of one direction allow.
    fn limit(&self, current: i32, rules: &ScalingRules<'_>, now: Timestamp, up: bool) -> i32 {
        if rules.select == "Disabled" {
            return current;
        }
        let since = |list: &[(Timestamp, i32)], period: i32| -> i64 {
            let cutoff = before(now, seconds(period));
            list.iter().filter(|(at, _)| *at > cutoff).map(|(_, change)| i64::from(*change)).sum()
        };
        let of = |policy: &HPAScalingPolicy| {
            let (added, removed) =
                (since(&self.added, policy.period_seconds), since(&self.removed, policy.period_seconds));
            let start = i64::from(clamp(i64::from(current) - added + removed));
            let value = i64::from(policy.value);
            match (policy.type_.as_str(), up) {
                ("Pods", true) => clamp(start + value),
                ("Pods", false) => clamp(start - value),
                // Up: rounded up, or a single pod would never grow. Down: rounded towards zero.
                (_, true) => percent(start, 1.0 + f64::from(policy.value) / 100.0, f64::ceil),
                (_, false) => percent(start, 1.0 - f64::from(policy.value) / 100.0, f64::trunc),
            }
        };
        let sizes = rules.policies.iter().map(of);
        // The largest change is the largest size upward, and the smallest size downward.
        let most = (rules.select == "Min") != up;
        let found = if most { sizes.max() } else { sizes.min() };
        found.unwrap_or(current)
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a cast holds to the bounds")]
fn percent(start: i64, factor: f64, round: fn(f64) -> f64) -> i32 {
    round(start as f64 * factor) as i32
}

const TOO_FAST_UP: Why = ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Why =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const WITHIN: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");

/// The rules of one direction.
#[derive(Debug)]
pub(super) struct ScalingRules<'a> {
    window: SignedDuration,
    select: &'a str,
    policies: std::borrow::Cow<'a, [HPAScalingPolicy]>,
}

/// An autoscaler's own rules.
#[derive(Debug)]
pub(super) struct Behavior<'a> {
    up: ScalingRules<'a>,
    down: ScalingRules<'a>,
}

impl<'a> Behavior<'a> {
    /// `window`: the scale-down stabilization window if the rules have none.
    pub(super) fn of(behavior: &'a HorizontalPodAutoscalerBehavior, window: SignedDuration) -> Self {
        let policy = |kind: &str, value| HPAScalingPolicy { type_: kind.into(), value, period_seconds: 15 };
        let up = vec![policy("Pods", 4), policy("Percent", 100)];
        Self {
            up: ScalingRules::of(behavior.scale_up.as_ref(), SignedDuration::ZERO, up),
            down: ScalingRules::of(behavior.scale_down.as_ref(), window, vec![policy("Percent", 100)]),
        }
    }
}

impl<'a> ScalingRules<'a> {
    fn of(rules: Option<&'a HPAScalingRules>, window: SignedDuration, policies: Vec<HPAScalingPolicy>) -> Self {
        let own = rules.and_then(|rules| rules.policies.as_deref()).filter(|policies| !policies.is_empty());
        let named = rules.and_then(|rules| rules.stabilization_window_seconds);
        Self {
            window: named.map_or(window, seconds),
            select: rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max"),
            policies: own.map_or(policies.into(), Into::into),
        }
    }
}
