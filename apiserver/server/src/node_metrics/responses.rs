//! Reads kubelets' `/stats/responses/NAMESPACE`, and computes custom metrics of pods and Services from it. Pure.

use std::collections::{BTreeMap, HashMap};

use machinery_rules::response_times::{self, BOUNDS_MICROS, BUCKETS, Counts};
use serde_json::{Value, json};

use super::summary::{CustomMetric, custom_metrics};

/// Responses of one pod, or of several pods together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Recent {
    durations: Counts,
    window_seconds: f64,
}

impl Recent {
    pub(super) fn add(&mut self, other: &Self) {
        response_times::add(&mut self.durations, &other.durations);
        self.window_seconds = self.window_seconds.max(other.window_seconds);
    }

    /// The time within which `percent` of the responses came; `None` without responses.
    pub(super) fn percentile(&self, percent: u8) -> Option<Measurement> {
        let micros = response_times::percentile_micros(&self.durations, percent)?;
        Some(Measurement { micros: micros.into(), window_seconds: self.window_seconds })
    }
}

/// A caller: its namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Caller {
    /// No pod.
    Outside,
    /// A pod.
    Pod(String, String),
    /// The callers beyond those that a node counts separately.
    Others,
}

impl Caller {
    /// The labels of its metrics; empty for callers outside of pods.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let (namespace, pod) = match self {
            Self::Outside => return BTreeMap::new(),
            Self::Pod(namespace, pod) => (namespace.as_str(), pod.as_str()),
            // No pod has an empty namespace.
            Self::Others => ("", "other"),
        };
        [("caller-namespace", namespace), ("caller-pod", pod)].map(|(key, value)| (key.into(), value.into())).into()
    }
}

/// Calls of one caller to a Service.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Calls {
    recent: Recent,
    per_second: f64,
    errors_per_second: f64,
}

impl Calls {
    fn of(recent: Recent, errors: u64) -> Self {
        let rate = |count: u64| if recent.window_seconds > 0.0 { count as f64 / recent.window_seconds } else { 0.0 };
        Self { per_second: rate(response_times::count(&recent.durations)), errors_per_second: rate(errors), recent }
    }

    fn add(&mut self, other: &Self) {
        self.recent.add(&other.recent);
        self.per_second += other.per_second;
        self.errors_per_second += other.errors_per_second;
    }

    pub(super) fn per_second(&self) -> Measurement {
        self.measurement(self.per_second)
    }

    pub(super) fn errors_per_second(&self) -> Measurement {
        self.measurement(self.errors_per_second)
    }

    pub(super) fn percentile(&self, percent: u8) -> Option<Measurement> {
        self.recent.percentile(percent)
    }

    fn measurement(&self, per_second: f64) -> Measurement {
        // In thousandths, as other rates; the cast saturates.
        let milli = (per_second * 1000.0).round() as i64;
        Measurement { micros: i128::from(milli) * 1000, window_seconds: self.recent.window_seconds }
    }
}

/// A value in millionths with its window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measurement {
    pub(super) micros: i128,
    pub(super) window_seconds: f64,
}

impl From<&CustomMetric> for Measurement {
    fn from(of: &CustomMetric) -> Self {
        Self { micros: i128::from(of.milli) * 1000, window_seconds: of.window_seconds as f64 }
    }
}

/// The responses of one pod.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PodResponses {
    pub(super) time: Value,
    /// By metric name: the pod's rates.
    pub(super) rates: HashMap<String, CustomMetric>,
    /// `None` if no container serves, or its responses are not known yet.
    pub(super) recent: Option<Recent>,
    /// The Service's namespace and name, the caller, and the calls.
    calls: Vec<((String, String), Caller, Calls)>,
}

/// The calls to a Service, by caller, over several pods.
pub(super) fn calls<'a>(
    pods: impl IntoIterator<Item = &'a PodResponses>,
    (namespace, service): (&str, &str),
) -> BTreeMap<&'a Caller, Calls> {
    let mut sums: BTreeMap<&Caller, Calls> = BTreeMap::new();
    let all = pods.into_iter().flat_map(|pod| &pod.calls);
    for (_, caller, calls) in all.filter(|(of, ..)| of.0 == namespace && of.1 == service) {
        sums.entry(caller).or_default().add(calls);
    }
    sums
}

/// The responses of a node's pods of one namespace, by pod uid.
#[derive(Debug, Default)]
pub(super) struct Responses(HashMap<String, PodResponses>);

impl Responses {
    /// Reads a kubelet's response; invalid parts are skipped. A summary is read alike: it has rates alone.
    pub(super) fn read(stats: &Value) -> Self {
        // A kubelet of another version may count by other bounds.
        let same_bounds = stats["boundsMicroseconds"] == json!(BOUNDS_MICROS);
        let of_pod = |pod: &Value| {
            let containers = pod["containers"].as_array()?;
            let mut read = PodResponses {
                time: stats["time"].clone(),
                rates: custom_metrics(containers),
                ..PodResponses::default()
            };
            for container in containers.iter().filter(|_| same_bounds) {
                read.read_container(container);
            }
            Some((pod["podRef"]["uid"].as_str()?.to_owned(), read))
        };
        Self(stats["pods"].as_array().into_iter().flatten().filter_map(of_pod).collect())
    }

    pub(super) fn of(&self, pod: &Value) -> Option<&PodResponses> {
        self.0.get(pod["metadata"]["uid"].as_str()?)
    }
}

impl PodResponses {
    fn read_container(&mut self, container: &Value) {
        let responses = &container["responses"];
        let (Some(durations), Some(window_seconds)) = (counts(responses), responses["windowSeconds"].as_f64()) else {
            return;
        };
        self.recent.get_or_insert_default().add(&Recent { durations, window_seconds });
        let named = |of: &Value| Some((of["namespace"].as_str()?.to_owned(), of["name"].as_str()?.to_owned()));
        let calls = container["calls"].as_array().into_iter().flatten().filter_map(|one| {
            let caller = match (named(&one["pod"]), one["others"] == true) {
                (Some((namespace, name)), _) => Caller::Pod(namespace, name),
                (None, true) => Caller::Others,
                (None, false) => Caller::Outside,
            };
            let recent = Recent { durations: counts(one)?, window_seconds };
            Some((named(&one["service"])?, caller, Calls::of(recent, one["errors"].as_u64()?)))
        });
        self.calls.extend(calls);
    }
}

fn counts(of: &Value) -> Option<Counts> {
    let all = of["durations"].as_array().filter(|all| all.len() == BUCKETS)?;
    let mut counts = [0; BUCKETS];
    for (count, value) in counts.iter_mut().zip(all) {
        *count = value.as_u64()?;
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durations(of: &[(usize, u64)]) -> Value {
        let mut counts = [0; BUCKETS];
        of.iter().for_each(|(at, count)| counts[*at] = *count);
        json!(counts)
    }

    fn named(name: &str) -> Value {
        json!({"namespace": "shop", "name": name})
    }

    fn stats() -> Value {
        let calls = json!([
            {"service": named("cart"), "pod": named("web"), "durations": durations(&[(4, 30)]), "errors": 15},
            {"service": named("cart"), "durations": durations(&[(5, 3)]), "errors": 0},
            {"service": named("cart"), "others": true, "durations": durations(&[(5, 6)]), "errors": 0},
            {"pod": named("web"), "durations": durations(&[(5, 3)]), "errors": 0},
            {"service": named("broken"), "durations": [1], "errors": 0},
        ]);
        let rates = json!([{"name": "http_errors_per_second", "value": 1.5, "time": "t", "windowSeconds": 15.0}]);
        let container = |durations: Value| {
            json!({"name": "c", "userDefinedMetrics": rates, "calls": calls,
                "responses": {"windowSeconds": 15.0, "durations": durations}})
        };
        json!({"time": "now", "boundsMicroseconds": BOUNDS_MICROS, "pods": [
            {"podRef": {"uid": "u"}, "containers": [container(durations(&[(0, 42)])), {"name": "job"}]},
            {"podRef": {"uid": "v"}, "containers": [container(durations(&[(4, 42)]))]},
            {"podRef": {"uid": "job"}, "containers": [{"name": "job"}]},
            {"podRef": {}, "containers": 5},
        ]})
    }

    fn pod(uid: &str) -> Value {
        json!({"metadata": {"uid": uid}})
    }

    #[test]
    fn pods_have_rates_and_quantiles() {
        let read = Responses::read(&stats());
        let one = read.of(&pod("u")).unwrap();
        assert_eq!((&one.time, one.rates["http_errors_per_second"].milli), (&json!("now"), 1500));
        let mut both = one.recent.unwrap();
        assert_eq!(both.percentile(50), Some(Measurement { micros: 50, window_seconds: 15.0 }));
        both.add(&read.of(&pod("v")).unwrap().recent.unwrap());
        assert_eq!(both.percentile(50), Some(Measurement { micros: 100, window_seconds: 15.0 }));
        assert_eq!(both.percentile(99).map(|value| value.micros), Some(1_000 + 1_500 * 4116 / 4200));
        assert_eq!(read.of(&pod("job")).unwrap().recent, None);
        assert!(read.of(&pod("other")).is_none());
    }

    #[test]
    fn calls_are_added_up_by_caller() {
        let read = Responses::read(&stats());
        let pods: Vec<_> = ["u", "v"].iter().filter_map(|uid| read.of(&pod(uid))).collect();
        let cart = calls(pods.iter().copied(), ("shop", "cart"));
        let web = Caller::Pod("shop".into(), "web".into());
        assert_eq!(cart.keys().copied().collect::<Vec<_>>(), [&Caller::Outside, &web, &Caller::Others]);
        let of = &cart[&web];
        let (rate, errors) = (of.per_second(), of.errors_per_second());
        assert_eq!((rate.micros, errors.micros), (4_000_000, 2_000_000));
        assert_eq!(of.percentile(50).map(|value| value.micros), Some(1_750));
        assert_eq!(json!(web.labels()), json!({"caller-namespace": "shop", "caller-pod": "web"}));
        assert_eq!(json!(Caller::Others.labels()), json!({"caller-namespace": "", "caller-pod": "other"}));
        assert!(Caller::Outside.labels().is_empty());
        assert!(calls(pods.iter().copied(), ("other", "cart")).is_empty());
        assert!(calls(pods, ("shop", "broken")).is_empty());
    }

    #[test]
    fn other_bounds_are_not_misread() {
        let mut other = stats();
        other["boundsMicroseconds"] = json!([1, 2]);
        let read = Responses::read(&other);
        let one = read.of(&pod("u")).unwrap();
        assert_eq!((one.recent, one.calls.len(), one.rates.len()), (None, 0, 1));
    }
}
