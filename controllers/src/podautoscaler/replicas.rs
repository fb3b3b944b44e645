//! Replicas from metrics: upstream's `replica_calculator`. Pure, and total: overflows saturate.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery_api::quantity::Quantity;
use machinery_client::Pod;
use machinery_client::pod::Container;

use crate::pods;

/// The metric of one pod.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PodMetric {
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    /// In thousandths.
    pub(super) value: i64,
}

/// By pod name.
pub(super) type PodMetrics = BTreeMap<String, PodMetric>;

/// The tolerated relative deviations from the target.
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

/// The replicas, and the usage: the average, or (for a utilization) percent and average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) usage: i64,
    pub(super) percent: i32,
}

/// The inputs of a proposal other than the metric.
#[derive(Debug)]
pub(super) struct Calculator<'a> {
    pub(super) now: Timestamp,
    /// The pods of the workload's selector.
    pub(super) pods: &'a [&'a Pod],
    pub(super) tolerances: Tolerances,
    pub(super) cpu_initialization_period: SignedDuration,
    pub(super) initial_readiness_delay: SignedDuration,
    /// The desired replicas of the scale.
    pub(super) current: i32,
    /// The actual replicas of the scale.
    pub(super) existing: i32,
}

/// Pods by the usability of their metrics.
#[derive(Debug, Default, PartialEq)]
struct PodGroups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn ceil(value: f64) -> i32 {
    // The cast saturates, and turns NaN into 0.
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

/// A quantity in thousandths; an invalid one counts as zero.
pub(super) fn milli(text: &Text) -> i64 {
    Quantity::parse(&text.0).map_or(0, |quantity| quantity.milli())
}

impl Calculator<'_> {
    /// For a resource, by utilization of the pods' requests.
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
        let replicas = self.replicas_with_assumed(metrics, &groups, first, fallback, |metrics| Ok(of(metrics)?.0))?;
        Ok(Proposal { replicas, usage, percent: used })
    }

    /// For a metric of each pod, by its average. `resource`: the name, if the metric is a resource.
    pub(super) fn per_pod(&self, mut metrics: PodMetrics, target: i64, resource: &str) -> Result<Proposal, String> {
        let groups = self.usable(&mut metrics, resource)?;
        let usage = average(&metrics);
        let of = |metrics: &PodMetrics| Ok(ratio(average(metrics), target));
        let replicas = self.replicas_with_assumed(metrics, &groups, ratio(usage, target), |_| target, of)?;
        Ok(Proposal { replicas, usage, percent: 0 })
    }

    /// For one value of all pods.
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

    /// For one value of all pods, by the average per pod.
    pub(super) fn of_each(&self, usage: i64, target: i64) -> Proposal {
        let share = ratio(usage, target);
        let tolerated = self.tolerances.allow(share / f64::from(self.existing));
        let replicas = if tolerated { self.existing } else { ceil(share) };
        // Without pods the whole value is the average.
        let each = i128::from(self.existing.max(1));
        let usage = clamp((i128::from(usage) + each - 1).div_euclid(each));
        Proposal { replicas, usage, percent: 0 }
    }

    /// Removes unusable metrics.
    fn usable(&self, metrics: &mut PodMetrics, resource: &str) -> Result<PodGroups, String> {
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

    /// The replicas, where `first` is the ratio without the pods that lack metrics.
    fn replicas_with_assumed(
        &self,
        mut metrics: PodMetrics,
        groups: &PodGroups,
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

    fn groups(&self, metrics: &PodMetrics, resource: &str) -> PodGroups {
        let mut groups = PodGroups::default();
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

    /// Whether a pod's CPU usage may be that of its start.
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

/// The ratio of utilization to its target, the utilization in percent, and the average usage.
fn utilization(metrics: &PodMetrics, requests: &BTreeMap<&str, i64>, percent: i32) -> Result<(f64, i32, i64), String> {
    let known: Vec<(i64, i64)> =
        metrics.iter().filter_map(|(name, metric)| Some((metric.value, *requests.get(name.as_str())?))).collect();
    let used = i128::from(clamp(sum(known.iter().map(|(used, _)| *used))));
    let requested = i128::from(clamp(sum(known.iter().map(|(_, requested)| *requested))));
    if requested == 0 {
        return Err("no metrics returned matched known pods".into());
    }
    let current = i32::try_from(used * 100 / requested).unwrap_or(if used < 0 { i32::MIN } else { i32::MAX });
    Ok((f64::from(current) / f64::from(percent), current, clamp(used / known.len() as i128)))
}

/// The requests of each pod, in thousandths.
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
        // Pod-level requests need not contain each resource: then the containers' are summed.
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

/// The sum of the containers' requests; none if no container has one.
fn sums(pod: &Pod, resource: &str) -> Option<i64> {
    let requested = |one: &Container| Some(milli(one.resources.as_ref()?.requests.as_ref()?.get(resource)?));
    containers(pod).filter_map(requested).fold(None, |all: Option<i64>, one| Some(all.unwrap_or(0).saturating_add(one)))
}
