//! NodeResourcesFit and NodeResourcesBalancedAllocation: what is free, and how evenly it is used.

use std::borrow::Cow;

use super::{Event, Filter, Plugin, PreFilterResult, Reasons, Refusal, SCORE_MAX, Score, ScoringStrategy, plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(super) const FIT: Plugin = Plugin {
    weight: 1,
    pre_filter: Some(|cycle| PreFilterResult::Filter(Box::new(Room(cycle.pod)))),
    pre_score: Some(|cycle, _| Some(Box::new(LoadScore(cycle.pod, cycle.args.scoring_strategy)))),
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
    let (asked, room) = (&pod.wants.requests, node.room());
    let has = |asked: i64, left: i64| asked <= 0 || asked <= left;
    let fits = room.pods > 0
        && has(asked.cpu_milli, room.cpu_milli)
        && has(asked.memory_bytes, room.memory_bytes)
        && has(asked.ephemeral_bytes, room.ephemeral_bytes);
    if fits && asked.others.is_empty() { Ok(()) } else { lacking(pod, node) }
}

/// What there is too little of.
fn lacking(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let mut reasons: Option<Reasons> = None;
    let mut add = |reason: Cow<'static, str>| {
        reasons = Some(match (reasons.take(), reason) {
            (None, Cow::Borrowed(only)) => Reasons::One(only),
            (None, made) => Reasons::Many(vec![made]),
            (Some(Reasons::One(first)), next) => Reasons::Many(vec![first.into(), next]),
            (Some(Reasons::Many(mut known)), next) => {
                known.push(next);
                Reasons::Many(known)
            }
        });
    };
    let (asked, offered, room) = (&pod.wants.requests, &node.facts.allocatable, node.room());
    let mut unresolvable = false;
    if room.pods <= 0 {
        add("Too many pods".into());
        unresolvable |= node.facts.pods_max == 0;
    }
    let fixed = [
        ("Insufficient cpu", asked.cpu_milli, offered.cpu_milli, room.cpu_milli),
        ("Insufficient memory", asked.memory_bytes, offered.memory_bytes, room.memory_bytes),
        ("Insufficient ephemeral-storage", asked.ephemeral_bytes, offered.ephemeral_bytes, room.ephemeral_bytes),
    ];
    for (reason, asked, offered, _) in fixed.into_iter().filter(|(_, asked, _, left)| *asked > 0 && asked > left) {
        add(reason.into());
        unresolvable |= asked > offered;
    }
    for (name, asked) in asked.others.iter().filter(|(_, asked)| **asked > 0) {
        let offered = offered.others.get(name).copied().unwrap_or(0);
        let used = node.requested.others.get(name).copied().unwrap_or(0);
        if i128::from(*asked) > i128::from(offered) - used {
            add(format!("Insufficient {name}").into());
            unresolvable |= *asked > offered;
        }
    }
    reasons.map_or(Ok(()), |reasons| Err(Refusal { reasons, unresolvable }))
}

struct LoadScore<'a>(&'a PodInfo, ScoringStrategy);

impl Score for LoadScore<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (offered, load, own) = (&node.facts.allocatable, node.load(), &self.0.wants.scored);
        let parts = [
            (offered.cpu_milli, load.scored_cpu_milli.saturating_add(own.cpu_milli)),
            (offered.memory_bytes, load.scored_memory_bytes.saturating_add(own.memory_bytes)),
        ];
        let (mut sum, mut count) = (0, 0);
        for (offered, used) in parts.into_iter().filter(|(offered, _)| *offered > 0) {
            let share = if used > offered {
                0
            } else {
                let part = match self.1 {
                    ScoringStrategy::LeastAllocated => offered - used,
                    ScoringStrategy::MostAllocated => used,
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
fn percent(part: i64, offered: i64) -> i64 {
    match part.checked_mul(SCORE_MAX) {
        Some(hundredfold) => hundredfold / offered,
        None => (i128::from(part) * i128::from(SCORE_MAX) / i128::from(offered)) as i64,
    }
}

struct Balance<'a>(&'a PodInfo);

impl Score for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (offered, load, own) = (&node.facts.allocatable, node.load(), &self.0.wants.requests);
        let parts = [
            (offered.cpu_milli, load.cpu_milli.saturating_add(own.cpu_milli)),
            (offered.memory_bytes, load.memory_bytes.saturating_add(own.memory_bytes)),
        ];
        let shares = parts.iter().filter(|(offered, _)| *offered > 0);
        let mut shares = shares.map(|(offered, used)| (*used as f64 / *offered as f64).min(1.0));
        let deviation = match (shares.next(), shares.next()) {
            (Some(a), Some(b)) => (a - b).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * SCORE_MAX as f64) as i64
    }
}
