//! From what is measured to how many pods that is the work of: upstream's `replica_calculator`. Pure, and total: what overflows
//! stays at its bound.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery_api::quantity::Quantity;
use machinery_client::Pod;
use machinery_client::pod::Container;

use crate::pods;

/// What one pod uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PodMetric {
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    /// In thousandths.
    pub(super) value: i64,
}

/// By the pod's name.
pub(super) type PodMetrics = BTreeMap<String, PodMetric>;

/// How far from the target usage may be before anything is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn allow(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// How many pods, and how much is used: on average, or (of a utilization) in percent and on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) usage: i64,
    pub(super) percent: i32,
}

/// What a proposal depends on beside a metric.
#[derive(Debug)]
pub(super) struct Calculator<'a> {
    pub(super) now: Timestamp,
    /// Those that the workload's selector chooses.
    pub(super) pods: &'a [&'a Pod],
    pub(super) tolerances: Tolerances,
    pub(super) cpu_initialization_period: SignedDuration,
    pub(super) initial_readiness_delay: SignedDuration,
    /// How many there shall be now.
    pub(super) current: i32,
    /// How many there are.
    pub(super) existing: i32,
}

/// Pods by what their figures are worth.
#[derive(Debug, Default, PartialEq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn ceil(value: f64) -> i32 {
    // A cast holds to the bounds, and to 0 where it is no number.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let whole = value.ceil() as i32;
    whole
}

#[expect(clippy::cast_precision_loss, reason = "upstream computes with these, too")]
fn ratio(used: i64, wanted: i64) -> f64 {
    used as f64 / wanted as f64
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn sum(values: impl Iterator<Item = i64>) -> i128 {
    values.map(i128::from).sum()
}

fn average(metrics: &PodMetrics) -> i64 {
    let count = metrics.len().max(1) as i128;
    clamp(clamp(sum(metrics.values().map(|metric| metric.value))) as i128 / count)
}

/// A quantity in thousandths; what is none counts as nothing.
pub(super) fn milli(text: &Text) -> i64 {
    Quantity::parse(&text.0).map_or(0, |quantity| quantity.milli())
}

impl Calculator<'_> {
    /// Of a resource, by the share of what the pods ask for.
    pub(super) fn utilization(
        &self,
        mut metrics: PodMetrics,
        percent: i32,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Proposal, String> {
        let groups = self.usable(&mut metrics, resource)?;
        let requests = requests(self.pods, container, resource)?;
        let of = |metrics: &PodMetrics| utilization(metrics, &requests, percent);
        let (first, used, usage) = of(&metrics)?;
        let fallback = |name: &str| {
            let request = requests.get(name).copied().unwrap_or(0);
            clamp(i128::from(request) * i128::from(percent.max(100)) / 100)
        };
        let replicas = self.settle(metrics, &groups, first, fallback, |metrics| Ok(of(metrics)?.0))?;
        Ok(Proposal { replicas, usage, percent: used })
    }

    /// Of a metric of each pod, by its average. `resource`: its name, where it is one.
    pub(super) fn per_pod(&self, mut metrics: PodMetrics, target: i64, resource: &str) -> Result<Proposal, String> {
        let groups = self.usable(&mut metrics, resource)?;
        let usage = average(&metrics);
        let of = |metrics: &PodMetrics| Ok(ratio(average(metrics), target));
        let replicas = self.settle(metrics, &groups, ratio(usage, target), |_| target, of)?;
        Ok(Proposal { replicas, usage, percent: 0 })
    }

    /// Of one figure for all pods.
    pub(super) fn of_all(&self, usage: i64, target: i64) -> Result<Proposal, String> {
        let ratio = ratio(usage, target);
        let replicas = if self.current == 0 {
            ceil(ratio)
        } else if self.tolerances.allow(ratio) {
            self.current
        } else {
            if self.pods.is_empty() {
                return Err(format!("unable to calculate ready pods: {NO_PODS}"));
            }
            let ready = self.pods.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).count();
            ceil(ratio * ready as f64)
        };
        Ok(Proposal { replicas, usage, percent: 0 })
    }

    /// Of one figure for all pods, by each one's share.
    pub(super) fn of_each(&self, usage: i64, target: i64) -> Proposal {
        let share = ratio(usage, target);
        let tolerated = self.tolerances.allow(share / f64::from(self.existing));
        let replicas = if tolerated { self.existing } else { ceil(share) };
        // Where there is no pod, what is used is nobody's share.
        let each = i128::from(self.existing.max(1));
        let usage = clamp((i128::from(usage) + each - 1).div_euclid(each));
        Proposal { replicas, usage, percent: 0 }
    }

    /// Takes out what says nothing.
    fn usable(&self, metrics: &mut PodMetrics, resource: &str) -> Result<Groups, String> {
        if self.pods.is_empty() {
            return Err(NO_PODS.into());
        }
        let groups = self.groups(metrics, resource);
        metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
        if metrics.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".into());
        }
        Ok(groups)
    }

    /// How many pods, where usage without the pods of which nothing is known is `first`.
    fn settle(
        &self,
        mut metrics: PodMetrics,
        groups: &Groups,
        first: f64,
        fallback: impl Fn(&str) -> i64,
        again: impl Fn(&PodMetrics) -> Result<f64, String>,
    ) -> Result<i32, String> {
        let unready_count = !groups.unready.is_empty() && first > 1.0;
        if !unready_count && groups.missing.is_empty() {
            let ready = groups.ready as f64;
            return Ok(if self.tolerances.allow(first) { self.current } else { ceil(first * ready) });
        }
        let mut suppose = |names: &BTreeSet<String>, value: &dyn Fn(&str) -> i64| {
            for name in names {
                let metric = PodMetric { at: self.now, window: SignedDuration::ZERO, value: value(name) };
                metrics.insert(name.clone(), metric);
            }
        };
        if first < 1.0 {
            suppose(&groups.missing, &fallback);
        } else if first > 1.0 {
            suppose(&groups.missing, &|_| 0);
        }
        if unready_count {
            suppose(&groups.unready, &|_| 0);
        }
        let ratio = again(&metrics)?;
        let turned = (first < 1.0 && ratio > 1.0) || (first > 1.0 && ratio < 1.0);
        if self.tolerances.allow(ratio) || turned {
            return Ok(self.current);
        }
        let replicas = ceil(ratio * metrics.len() as f64);
        let wrong = (ratio < 1.0 && replicas > self.current) || (ratio > 1.0 && replicas < self.current);
        Ok(if wrong { self.current } else { replicas })
    }

    fn groups(&self, metrics: &PodMetrics, resource: &str) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = || pod.metadata.name.clone().unwrap_or_default();
            let phase = pods::phase(pod);
            if pod.metadata.deletion_timestamp.is_some() || phase == "Failed" {
                groups.ignored.insert(name());
            } else if phase == "Pending" {
                groups.unready.insert(name());
            } else {
                match metrics.get(pod.metadata.name.as_deref().unwrap_or_default()) {
                    None => {
                        groups.missing.insert(name());
                    }
                    Some(metric) if resource == "cpu" && self.is_starting(pod, metric) => {
                        groups.unready.insert(name());
                    }
                    Some(_) => groups.ready += 1,
                }
            }
        }
        groups
    }

    /// Whether a pod's use of CPU may be that of its start.
    fn is_starting(&self, pod: &Pod, metric: &PodMetric) -> bool {
        let Some(status) = &pod.status else { return true };
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let (Some(ready), Some(started)) = (ready, &status.start_time) else { return true };
        let since = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let later = |from: Timestamp, by: SignedDuration| from.saturating_add(by).unwrap_or(Timestamp::MAX);
        let unready = ready.status == "False";
        if later(started.0, self.cpu_initialization_period) > self.now {
            unready || metric.at < later(since, metric.window)
        } else {
            unready && later(started.0, self.initial_readiness_delay) > since
        }
    }
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";

/// The ratio of utilization to what is wanted, the utilization in percent, and what is used on average.
fn utilization(metrics: &PodMetrics, requests: &BTreeMap<&str, i64>, percent: i32) -> Result<(f64, i32, i64), String> {
    let known: Vec<(i64, i64)> =
        metrics.iter().filter_map(|(name, metric)| Some((metric.value, *requests.get(name.as_str())?))).collect();
    let used = i128::from(clamp(sum(known.iter().map(|(used, _)| *used))));
    let asked = i128::from(clamp(sum(known.iter().map(|(_, asked)| *asked))));
    if asked == 0 {
        return Err("no metrics returned matched known pods".into());
    }
    let current = i32::try_from(used * 100 / asked).unwrap_or(if used < 0 { i32::MIN } else { i32::MAX });
    Ok((f64::from(current) / f64::from(percent), current, clamp(used / known.len() as i128)))
}

/// What each pod asks for, in thousandths.
fn requests<'a>(pods: &[&'a Pod], container: Option<&str>, resource: &str) -> Result<BTreeMap<&'a str, i64>, String> {
    let of = |pod: &&'a Pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        Ok((name, request(pod, name, container, resource)?))
    };
    pods.iter().map(of).collect()
}

fn request(pod: &Pod, name: &str, container: Option<&str>, resource: &str) -> Result<i64, String> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(0) };
    let whole = spec.shape.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let Some(whole) = whole.filter(|whole| container.is_none() && !whole.is_empty()) {
        let own = whole.get(resource).map(milli);
        // What a pod asks for as a whole need not name each resource: its containers do then.
        let sum = || sums(pod, resource);
        return own.or_else(sum).ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"));
    }
    let mut all = 0_i64;
    for one in containers(pod) {
        let own = one.name.as_deref().unwrap_or_default();
        if container.is_some_and(|wanted| wanted != own) {
            continue;
        }
        let amount = one.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
        let missing = || format!("missing request for {resource} in container {own} of Pod {name}");
        all = all.saturating_add(milli(amount.ok_or_else(missing)?));
        if container.is_some() {
            return Ok(all);
        }
    }
    match container {
        Some(wanted) => Err(format!("container {wanted} not found in Pod {name}")),
        None => Ok(all),
    }
}

/// Its containers and sidecars.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let shape = pod.spec.as_ref().map(|spec| &spec.shape);
    let sidecar = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
    let inits = shape.and_then(|shape| shape.init_containers.as_ref()).into_iter().flatten().filter(sidecar);
    shape.into_iter().flat_map(|shape| &shape.containers).chain(inits)
}

/// What containers ask for together; none where none does.
fn sums(pod: &Pod, resource: &str) -> Option<i64> {
    let asked = |one: &Container| Some(milli(one.resources.as_ref()?.requests.as_ref()?.get(resource)?));
    containers(pod).filter_map(asked).fold(None, |all: Option<i64>, one| Some(all.unwrap_or(0).saturating_add(one)))
}
