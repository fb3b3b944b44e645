//! NodeResourcesFit and NodeResourcesBalancedAllocation: what is free, and how evenly it is used.

use std::borrow::Cow;

use super::{Event, Filter, Packing, Plugin, PreFilterResult, Reasons, Refusal, SCORE_MAX, Score, plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(super) const FIT: Plugin = Plugin {
    weight: 1,
    pre_filter: Some(|cycle| PreFilterResult::Filter(Box::new(Room(cycle.pod)))),
    pre_score: Some(|cycle, _| Some(Box::new(Load(cycle.pod, cycle.packing)))),
    queueing_hint: |event, pod| match event {
        Event::Node(node, change) => (change.added || change.allocatable) && fits(pod, node).is_ok(),
        Event::PodGone(_, Some(node)) => fits(pod, node).is_ok(),
        _ => false,
    },
    ..plugin("NodeResourcesFit")
};

pub(super) const BALANCED: Plugin = Plugin {
    weight: 1,
    // Upstream: a pod that asks for nothing doesn't change the balance.
    pre_score: Some(|cycle, _| match cycle.pod.wants.requests.is_zero() {
        true => None,
        false => Some(Box::new(Balance(cycle.pod))),
    }),
    ..plugin("NodeResourcesBalancedAllocation")
};

struct Room<'a>(&'a PodInfo);

impl Filter for Room<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        fits(self.0, node)
    }
}

fn fits(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let mut unresolvable = false;
    if node.pods.len() as i64 + 1 > node.facts.pods_max {
        reasons.push("Too many pods".into());
        unresolvable |= node.facts.pods_max == 0;
    }
    let mut check = |reason: &dyn Fn() -> Cow<'static, str>, asked: i64, offered: i64, used: i128| {
        if asked > 0 && i128::from(asked) > i128::from(offered) - used {
            reasons.push(reason());
            unresolvable |= asked > offered;
        }
    };
    let (asked, offered, used) = (&pod.wants.requests, &node.facts.allocatable, &node.requested);
    check(&|| "Insufficient cpu".into(), asked.cpu_milli, offered.cpu_milli, used.cpu_milli);
    check(&|| "Insufficient memory".into(), asked.memory_bytes, offered.memory_bytes, used.memory_bytes);
    check(
        &|| "Insufficient ephemeral-storage".into(),
        asked.ephemeral_bytes,
        offered.ephemeral_bytes,
        used.ephemeral_bytes,
    );
    for (name, asked) in &asked.others {
        let (offered, used) = (offered.others.get(name), used.others.get(name));
        let reason = || format!("Insufficient {name}").into();
        check(&reason, *asked, offered.copied().unwrap_or(0), used.copied().unwrap_or(0));
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons: Reasons::Many(reasons), unresolvable }) }
}

struct Load<'a>(&'a PodInfo, Packing);

impl Score for Load<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let offered = &node.facts.allocatable;
        let parts = [
            (offered.cpu_milli, node.scored.cpu_milli + i128::from(self.0.wants.scored.cpu_milli)),
            (offered.memory_bytes, node.scored.memory_bytes + i128::from(self.0.wants.scored.memory_bytes)),
        ];
        let parts = parts.map(|(offered, used)| (i128::from(offered), used));
        let (mut sum, mut count) = (0, 0);
        for (offered, used) in parts.into_iter().filter(|(offered, _)| *offered > 0) {
            let share = if used > offered {
                0
            } else {
                let part = match self.1 {
                    Packing::LeastAllocated => offered - used,
                    Packing::MostAllocated => used,
                };
                percent(part, offered)
            };
            sum += share;
            count += 1;
        }
        if count == 0 { 0 } else { sum / count }
    }
}

/// `part` of `offered` in hundredths, rounded down. 128-bit division is some twenty times slower, and this is asked of
/// every feasible node.
fn percent(part: i128, offered: i128) -> i64 {
    match (i64::try_from(part), i64::try_from(offered)) {
        (Ok(part), Ok(offered)) if part < i64::MAX / SCORE_MAX && part > i64::MIN / SCORE_MAX => {
            part * SCORE_MAX / offered
        }
        _ => (part * i128::from(SCORE_MAX) / offered) as i64,
    }
}

/// As a float, by the quick way where there is one.
fn float(amount: i128) -> f64 {
    i64::try_from(amount).map_or(amount as f64, |amount| amount as f64)
}

struct Balance<'a>(&'a PodInfo);

impl Score for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let offered = &node.facts.allocatable;
        let parts = [
            (offered.cpu_milli, node.requested.cpu_milli + i128::from(self.0.wants.requests.cpu_milli)),
            (offered.memory_bytes, node.requested.memory_bytes + i128::from(self.0.wants.requests.memory_bytes)),
        ];
        let shares = parts.iter().filter(|(offered, _)| *offered > 0);
        let mut shares = shares.map(|(offered, used)| (float(*used) / *offered as f64).min(1.0));
        let deviation = match (shares.next(), shares.next()) {
            (Some(a), Some(b)) => (a - b).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * SCORE_MAX as f64) as i64
    }
}
