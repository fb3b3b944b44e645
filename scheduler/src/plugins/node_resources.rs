//! NodeResourcesFit and NodeResourcesBalancedAllocation: free resources, and even use of them.

use std::borrow::Cow;
use std::cell::Cell;

use super::args::Resource;
use super::{
    Args, Event, Filter, Plugin, PreFilterResult, Reasons, Refusal, SCORE_MAX, Score, ScoringStrategy, plugin,
};
use crate::node::{Load, NodeInfo};
use crate::pod::PodInfo;
use crate::resources::Resources;

pub(super) const FIT: Plugin = Plugin {
    weight: 1,
    pre_filter: Some(|cycle| PreFilterResult::Filter(Box::new(ResourceFilter { pod: cycle.pod, args: cycle.args }))),
    pre_score: Some(|cycle, _| match cycle.args.has_usual_scores() {
        true => {
            let (own, strategy) = (&cycle.pod.requirements.scored, cycle.args.scoring_strategy);
            Some(Box::new(LoadScore::new(move |load| free_share(load, own, strategy))))
        }
        false => Some(Box::new(WeightedScore(cycle.pod, cycle.args))),
    }),
    // The pod's profile may ignore named extended resources.
    queueing_hint: |event, pod| match event {
        Event::Node(node, change) => (change.added || change.allocatable) && fits(pod, node),
        Event::PodGone(_, Some(node)) => fits(pod, node),
        _ => false,
    },
    ..plugin("NodeResourcesFit")
};

pub(super) const BALANCED: Plugin = Plugin {
    weight: 1,
    // As upstream: a pod without requests doesn't change the balance.
    pre_score: Some(|cycle, _| {
        let (pod, resources) = (cycle.pod, &cycle.args.balanced_resources);
        let asks = match resources.is_empty() {
            true => pod.requirements.requests.cpu_milli != 0 || pod.requirements.requests.memory_bytes != 0,
            false => resources.iter().any(|resource| resource.of(&pod.requirements.requests) != 0),
        };
        asks.then(|| -> Box<dyn Score> {
            match resources.is_empty() {
                true => Box::new(LoadScore::new(|load| usual_balance(load, &pod.requirements.requests))),
                false => Box::new(Balance(pod, resources)),
            }
        })
    }),
    ..plugin("NodeResourcesBalancedAllocation")
};

struct ResourceFilter<'a> {
    pod: &'a PodInfo,
    args: &'a Args,
}

impl Filter for ResourceFilter<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if fits(self.pod, node) && self.pod.requirements.requests.others.is_empty() {
            return Ok(());
        }
        check_resources(self.pod, node, self.args)
    }
}

/// Whether the pod fits, without regard to extended resources.
fn fits(pod: &PodInfo, node: &NodeInfo) -> bool {
    let (requested, free) = (&pod.requirements.requests, node.free());
    let has = |requested: i64, left: i64| requested <= 0 || requested <= left;
    free.pods > 0
        && has(requested.cpu_milli, free.cpu_milli)
        && has(requested.memory_bytes, free.memory_bytes)
        && has(requested.ephemeral_bytes, free.ephemeral_bytes)
}

/// Which resources are insufficient.
fn check_resources(pod: &PodInfo, node: &NodeInfo, args: &Args) -> Result<(), Refusal> {
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
    let (requested, offered, free) = (&pod.requirements.requests, &node.facts.allocatable, node.free());
    let mut unresolvable = false;
    if free.pods <= 0 {
        add("Too many pods".into());
        unresolvable |= node.facts.pods_max == 0;
    }
    let fixed = [
        ("Insufficient cpu", requested.cpu_milli, offered.cpu_milli, free.cpu_milli),
        ("Insufficient memory", requested.memory_bytes, offered.memory_bytes, free.memory_bytes),
        ("Insufficient ephemeral-storage", requested.ephemeral_bytes, offered.ephemeral_bytes, free.ephemeral_bytes),
    ];
    for (reason, requested, offered, _) in
        fixed.into_iter().filter(|(_, requested, _, left)| *requested > 0 && requested > left)
    {
        add(reason.into());
        unresolvable |= requested > offered;
    }
    for (name, requested) in requested.others.iter().filter(|(name, requested)| **requested > 0 && !args.ignores(name))
    {
        let offered = offered.others.get(name).copied().unwrap_or(0);
        let used = node.requested.others.get(name).copied().unwrap_or(0);
        if i128::from(*requested) > i128::from(offered) - used {
            add(format!("Insufficient {name}").into());
            unresolvable |= *requested > offered;
        }
    }
    reasons.map_or(Ok(()), |reasons| Err(Refusal { reasons, unresolvable }))
}

/// A score that depends on a node's load alone. Nodes in sequence often have the same one, such as those without pods, and
/// then the same score, without its divisions.
struct LoadScore<F> {
    score: F,
    last: Cell<Option<(Load, i64)>>,
}

impl<F: Fn(&Load) -> i64> LoadScore<F> {
    fn new(score: F) -> Self {
        Self { score, last: Cell::new(None) }
    }
}

impl<F: Fn(&Load) -> i64> Score for LoadScore<F> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let load = node.load();
        match self.last.get() {
            Some((same, score)) if same == *load => score,
            _ => {
                let score = (self.score)(load);
                self.last.set(Some((*load, score)));
                score
            }
        }
    }
}

/// The score by the usual resources, cpu and memory, in equal parts.
fn free_share(load: &Load, own: &Resources, strategy: ScoringStrategy) -> i64 {
    let parts = [
        (load.offered_cpu_milli, load.scored_cpu_milli.saturating_add(own.cpu_milli)),
        (load.offered_memory_bytes, load.scored_memory_bytes.saturating_add(own.memory_bytes)),
    ];
    let (mut sum, mut count) = (0, 0);
    for (offered, used) in parts.into_iter().filter(|(offered, _)| *offered > 0) {
        sum += share(strategy, offered, used);
        count += 1;
    }
    if count == 0 { 0 } else { sum / count }
}

/// `part` of `offered` in hundredths, rounded down. 128-bit division is about twenty times slower, and this runs for
/// every feasible node.
fn percent(part: i64, offered: i64) -> i64 {
    match part.checked_mul(SCORE_MAX) {
        Some(hundredfold) => hundredfold / offered,
        None => (i128::from(part) * i128::from(SCORE_MAX) / i128::from(offered)) as i64,
    }
}

/// The score of a resource, from 0 to 100.
fn share(strategy: ScoringStrategy, offered: i64, used: i64) -> i64 {
    match strategy {
        ScoringStrategy::MostAllocated => percent(used.min(offered), offered),
        _ if used > offered => 0,
        _ => percent(offered - used, offered),
    }
}

/// Scores with the profile's resources, weights or shape.
struct WeightedScore<'a>(&'a PodInfo, &'a Args);

impl Score for WeightedScore<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let Self(pod, args) = self;
        let usual = [(Resource::Cpu, 1), (Resource::Memory, 1)];
        let resources = if args.scored_resources.is_empty() { &usual[..] } else { &args.scored_resources };
        let shaped = args.scoring_strategy == ScoringStrategy::RequestedToCapacityRatio;
        let (mut sum, mut weights) = (0, 0);
        for (resource, weight) in resources {
            let Some((offered, used)) = resource.on(node, &pod.requirements, true) else { continue };
            let used = used.saturating_add(resource.of(&pod.requirements.scored));
            let score = match shaped {
                true if used > offered => args.shaped(SCORE_MAX),
                true => args.shaped(percent(used, offered)),
                false => share(args.scoring_strategy, offered, used),
            };
            if !shaped || score > 0 {
                sum += score * weight;
                weights += weight;
            }
        }
        match weights {
            0 => 0,
            _ if shaped => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

fn fraction(offered: i64, used: i64) -> f64 {
    (used as f64 / offered as f64).min(1.0)
}

/// The change of a balance by the pod, from 50 to 100.
fn balance_change(balance: impl Fn(bool) -> i64) -> i64 {
    let half = SCORE_MAX / 2;
    half + (half + balance(true) - balance(false)) / 2
}

/// The change of the balance of cpu and memory by the pod.
fn usual_balance(load: &Load, requested: &Resources) -> i64 {
    balance_change(|with| {
        if load.offered_cpu_milli == 0 || load.offered_memory_bytes == 0 {
            return SCORE_MAX;
        }
        let own = |requested: i64| if with { requested } else { 0 };
        let cpu = fraction(load.offered_cpu_milli, load.cpu_milli.saturating_add(own(requested.cpu_milli)));
        let memory = fraction(load.offered_memory_bytes, load.memory_bytes.saturating_add(own(requested.memory_bytes)));
        ((1.0 - ((cpu - memory) / 2.0).abs()) * SCORE_MAX as f64) as i64
    })
}

/// The change of the balance of the profile's resources by the pod.
struct Balance<'a>(&'a PodInfo, &'a [Resource]);

impl Score for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        balance_change(|with| self.balance(node, with))
    }
}

impl Balance<'_> {
    fn balance(&self, node: &NodeInfo, with: bool) -> i64 {
        let own = |requested: i64| if with { requested } else { 0 };
        let amounts = self.1.iter().filter_map(|resource| {
            let (offered, used) = resource.on(node, &self.0.requirements, false)?;
            Some(fraction(offered, used.saturating_add(own(resource.of(&self.0.requirements.requests)))))
        });
        let fractions: Vec<f64> = amounts.collect();
        let deviation = match fractions.as_slice() {
            [] | [_] => 0.0,
            [a, b] => ((a - b) / 2.0).abs(),
            all => {
                let mean = all.iter().sum::<f64>() / all.len() as f64;
                (all.iter().map(|fraction| (fraction - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt()
            }
        };
        ((1.0 - deviation) * SCORE_MAX as f64) as i64
    }
}
