//! Amounts of resources, as nodes offer and pods request them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery_api::quantity::Quantity;
use machinery_client::pod::{Container, PodShape};
use machinery_rules::requests::{Amounts, Share, pod_total};

/// The score's default for a container without a request: 100m and 200 MiB, as upstream.
const SCORED_CPU_MILLI: i64 = 100;
const SCORED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts: cpu in thousandths, everything else in units or bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes.
    pub ephemeral_bytes: i64,
    /// Extended resources and huge pages.
    pub others: BTreeMap<String, i64>,
}

/// A quantity's value: cpu in thousandths, others rounded up; an invalid quantity is zero.
fn amount(name: &str, text: &Text) -> i64 {
    let quantity = Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero());
    if name == "cpu" { quantity.milli() } else { quantity.value() }
}

impl Resources {
    /// From a map of quantities; `pods` is ignored, as pods don't request it.
    #[must_use]
    pub fn of(map: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resources = Self::default();
        for (name, text) in map.into_iter().flatten().filter(|(name, _)| *name != "pods") {
            *resources.slot(name) = amount(name, text);
        }
        resources
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu_milli,
            "memory" => &mut self.memory_bytes,
            "ephemeral-storage" => &mut self.ephemeral_bytes,
            other => self.others.entry(other.to_owned()).or_default(),
        }
    }

    fn names<'a>(&'a self, other: &'a Self) -> Vec<String> {
        let fixed = ["cpu", "memory", "ephemeral-storage"].into_iter().map(str::to_owned);
        fixed.chain(self.others.keys().chain(other.others.keys()).cloned()).collect()
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        let mut other = other.clone();
        for name in self.names(&other) {
            let value = with(*self.slot(&name), *other.slot(&name));
            *self.slot(&name) = value;
        }
        self.others.retain(|_, amount| *amount != 0);
    }

    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl Amounts for Resources {
    fn add(&mut self, other: &Self) {
        if other.others.is_empty() {
            self.cpu_milli = self.cpu_milli.saturating_add(other.cpu_milli);
            self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
            self.ephemeral_bytes = self.ephemeral_bytes.saturating_add(other.ephemeral_bytes);
        } else {
            self.combine(other, i64::saturating_add);
        }
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

/// The sum of many pods' amounts. It is exact: a pod may request up to `i64::MAX`, and a saturated sum would lose the
/// other pods' amounts when that pod is removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceSum {
    /// Thousandths of a core.
    pub cpu_milli: i128,
    /// Bytes.
    pub memory_bytes: i128,
    /// Bytes.
    pub ephemeral_bytes: i128,
    /// Extended resources and huge pages.
    pub others: BTreeMap<String, i128>,
}

impl ResourceSum {
    pub fn add(&mut self, pod: &Resources) {
        self.change(pod, 1);
    }

    /// Subtracts amounts that were added.
    pub fn remove(&mut self, pod: &Resources) {
        self.change(pod, -1);
    }

    // 2^64 pods of `i64::MAX` fit.
    fn change(&mut self, pod: &Resources, sign: i128) {
        self.cpu_milli += sign * i128::from(pod.cpu_milli);
        self.memory_bytes += sign * i128::from(pod.memory_bytes);
        self.ephemeral_bytes += sign * i128::from(pod.ephemeral_bytes);
        for (name, amount) in pod.others.iter().filter(|(_, amount)| **amount != 0) {
            let amount = sign * i128::from(*amount);
            let sum = match self.others.get_mut(name) {
                Some(sum) => {
                    *sum += amount;
                    *sum
                }
                None => *self.others.entry(name.clone()).or_insert(amount),
            };
            if sum == 0 {
                self.others.remove(name);
            }
        }
    }
}

/// The requests of a pod, and its requests with defaults for scores.
#[must_use]
pub fn requests(shape: &PodShape) -> (Resources, Resources) {
    let of = |container: &Container| Resources::of(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let pod_level = shape.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let scored = |container: &Container| {
        let mut scored = of(container);
        let named = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let names = |name: &str| named.is_some_and(|requests| requests.contains_key(name));
        if pod_level.is_none() && !names("cpu") {
            scored.cpu_milli = SCORED_CPU_MILLI;
        }
        if pod_level.is_none() && !names("memory") {
            scored.memory_bytes = SCORED_MEMORY_BYTES;
        }
        scored
    };
    (total(shape, pod_level, of), total(shape, pod_level, scored))
}

fn total(
    shape: &PodShape,
    pod_level: Option<&BTreeMap<String, Text>>,
    of: impl Fn(&Container) -> Resources,
) -> Resources {
    let own = shape.containers.iter().map(|container| (Share::Own, of(container)));
    let init = shape.init_containers.iter().flatten();
    let init = init.map(|container| (Share::of_init(container.restart_policy.as_deref()), of(container)));
    let mut sum = pod_total(own.chain(init));
    for (name, text) in pod_level.into_iter().flatten() {
        if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
            *sum.slot(name) = amount(name, text);
        }
    }
    sum.add(&Resources::of(shape.overhead.as_ref()));
    sum
}
