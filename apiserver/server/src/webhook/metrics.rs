//! What webhooks cost and answer, under upstream's names.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upstream's buckets in seconds, of admission.
const ADMISSION_BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Of a conversion's requests.
const CONVERSION_BUCKETS: [f64; 15] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// A hook may say any code; all larger ones count as this one.
const CODE_MAX: u16 = 600;
/// Names that are counted apart; those of more hooks than this count as one, for they come from clients.
const NAMES_MAX: usize = 1000;

/// Which half of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Admit,
    Validating,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Validating => "validating",
        }
    }
}

/// How a webhook of admission was asked, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It let the request pass.
    Passed,
    /// It refused with this code.
    Refused(u16),
    /// It could not be asked, which this code stands for, and the request goes on.
    FailedOpen(u16),
    /// It could not be asked, and the request ends.
    Failed(u16),
    /// The server itself could not go on with what it said.
    OwnError,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Admission {
    name: Arc<str>,
    r#type: &'static str,
    operation: &'static str,
    rejected: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Coded {
    name: Arc<str>,
    r#type: &'static str,
    operation: &'static str,
    code: u16,
    rejected: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    name: Arc<str>,
    r#type: &'static str,
    operation: &'static str,
    error_type: &'static str,
    rejection_code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailOpen {
    name: Arc<str>,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Conversion {
    result: &'static str,
    failure_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDefinition {
    crd_name: Arc<str>,
    from_version: Arc<str>,
    to_version: Arc<str>,
    succeeded: &'static str,
}

type Durations<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

/// All metrics of webhooks.
#[derive(Clone)]
pub(crate) struct Metrics {
    names: Arc<Mutex<std::collections::BTreeSet<Arc<str>>>>,
    admission: Durations<Admission>,
    requests: Family<Coded, Counter>,
    rejections: Family<Rejection, Counter>,
    fail_open: Family<FailOpen, Counter>,
    conversions: Family<Conversion, Counter>,
    conversion: Durations<Conversion>,
    definitions: Durations<OfDefinition>,
}

impl Metrics {
    /// Registers with the process's registry.
    pub(crate) fn new(registry: &Mutex<Registry>) -> Self {
        let definitions = || Histogram::new((0..15).map(|power| 0.001 * f64::from(1 << power)));
        let metrics = Self {
            names: Arc::default(),
            admission: Family::new_with_constructor(|| Histogram::new(ADMISSION_BUCKETS)),
            requests: Family::default(),
            rejections: Family::default(),
            fail_open: Family::default(),
            conversions: Family::default(),
            conversion: Family::new_with_constructor(|| Histogram::new(CONVERSION_BUCKETS)),
            definitions: Family::new_with_constructor(definitions),
        };
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = registry.sub_registry_with_prefix("apiserver_admission_webhook");
        admission.register("admission_duration_seconds", "Time to ask a webhook", metrics.admission.clone());
        admission.register("request", "Requests to webhooks", metrics.requests.clone());
        admission.register("rejection_count", "Requests that webhooks did not let pass", metrics.rejections.clone());
        admission.register("fail_open_count", "Webhooks that failed and need not pass", metrics.fail_open.clone());
        let conversions = metrics.conversions.clone();
        registry.register("apiserver_conversion_webhook_request", "Requests to conversion webhooks", conversions);
        registry.register(
            "apiserver_conversion_webhook_duration_seconds",
            "Time to ask a conversion webhook",
            metrics.conversion.clone(),
        );
        registry.register(
            "apiserver_crd_conversion_webhook_duration_seconds",
            "Time to ask a definition's conversion webhook",
            metrics.definitions.clone(),
        );
        drop(registry);
        metrics
    }

    /// The name as it is counted.
    fn name(&self, name: &str) -> Arc<str> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = if names.len() < NAMES_MAX { name.into() } else { "other".into() };
        names.insert(name.clone());
        name
    }

    /// A webhook of admission was asked.
    pub(crate) fn admission(&self, name: &str, step: Step, operation: &'static str, asked: Asked, took: Duration) {
        let (name, r#type) = (self.name(name), step.name());
        let (code, error_type, is_rejected) = match asked {
            Asked::Passed => (200, "", false),
            Asked::Refused(code) => (code, "no_error", true),
            Asked::FailedOpen(code) => (code, "", false),
            Asked::Failed(code) => (code, "calling_webhook_error", true),
            Asked::OwnError => (0, "apiserver_internal_error", true),
        };
        let (code, rejected) = (code.min(CODE_MAX), if is_rejected { "true" } else { "false" });
        let labels = Admission { name: name.clone(), r#type, operation, rejected };
        self.admission.get_or_create(&labels).observe(took.as_secs_f64());
        self.requests.get_or_create(&Coded { name: name.clone(), r#type, operation, code, rejected }).inc();
        if is_rejected {
            let rejection = Rejection { name, r#type, operation, error_type, rejection_code: code };
            self.rejections.get_or_create(&rejection).inc();
        } else if matches!(asked, Asked::FailedOpen(_)) {
            self.fail_open.get_or_create(&FailOpen { name, r#type }).inc();
        }
    }

    /// A conversion webhook was asked; `failure` is upstream's name for what went wrong.
    pub(crate) fn conversion(
        &self,
        (crd_name, from, to): (&Arc<str>, &str, &str),
        failure: Option<&'static str>,
        took: Duration,
    ) {
        let result = if failure.is_none() { "success" } else { "failure" };
        let labels = Conversion { result, failure_type: failure.unwrap_or_default() };
        self.conversions.get_or_create(&labels).inc();
        self.conversion.get_or_create(&labels).observe(took.as_secs_f64());
        let labels = OfDefinition {
            crd_name: self.name(crd_name),
            from_version: from.into(),
            to_version: to.into(),
            succeeded: if failure.is_none() { "true" } else { "false" },
        };
        self.definitions.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
