//! Metrics of webhook calls, under upstream's names. The number of distinct names is bounded, as clients choose them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upstream's buckets of admission, in seconds.
const ADMISSION_BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Upstream's buckets of conversion, in seconds.
const CONVERSION_BUCKETS: [f64; 15] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// Webhooks may return any code; larger ones are counted as this one.
const CODE_MAX: u16 = 600;
/// The maximum number of distinct name labels. Names come from clients, so further ones are counted together.
const NAMES_MAX: usize = 1000;

/// The phase of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdmissionPhase {
    /// The mutating phase.
    Admit,
    /// The validating phase.
    Validating,
}

impl AdmissionPhase {
    fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Validating => "validating",
        }
    }
}

/// The outcome of an admission webhook call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// The webhook allowed the request.
    Allowed,
    /// The webhook rejected the request with this code.
    Rejected(u16),
    /// The call failed with this code, and the failure was ignored.
    FailedOpen(u16),
    /// The call failed with this code, and the request failed.
    Failed(u16),
    /// The server could not process the webhook's response.
    ServerError,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    name: Arc<str>,
    r#type: &'static str,
    operation: &'static str,
    rejected: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    name: Arc<str>,
    r#type: &'static str,
    operation: &'static str,
    code: u16,
    rejected: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    name: Arc<str>,
    r#type: &'static str,
    operation: &'static str,
    error_type: &'static str,
    rejection_code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailOpenLabels {
    name: Arc<str>,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConversionLabels {
    result: &'static str,
    failure_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DefinitionLabels {
    crd_name: Arc<str>,
    from_version: Arc<str>,
    to_version: Arc<str>,
    succeeded: &'static str,
}

type Durations<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

/// All metrics of webhooks.
#[derive(Clone)]
pub struct Metrics {
    names: Arc<Mutex<std::collections::BTreeSet<Arc<str>>>>,
    admission: Durations<AdmissionLabels>,
    requests: Family<RequestLabels, Counter>,
    rejections: Family<RejectionLabels, Counter>,
    fail_open: Family<FailOpenLabels, Counter>,
    conversions: Family<ConversionLabels, Counter>,
    conversion: Durations<ConversionLabels>,
    definitions: Durations<DefinitionLabels>,
}

impl Metrics {
    /// Registers with the process's registry.
    pub fn new(registry: &Mutex<Registry>) -> Self {
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
        admission.register("admission_duration_seconds", "Duration of webhook calls", metrics.admission.clone());
        admission.register("request", "Requests to webhooks", metrics.requests.clone());
        admission.register(
            "rejection_count",
            "Requests rejected by webhooks or by their failures",
            metrics.rejections.clone(),
        );
        admission.register("fail_open_count", "Webhook failures that were ignored", metrics.fail_open.clone());
        let conversions = metrics.conversions.clone();
        registry.register("apiserver_conversion_webhook_request", "Requests to conversion webhooks", conversions);
        registry.register(
            "apiserver_conversion_webhook_duration_seconds",
            "Duration of conversion webhook calls",
            metrics.conversion.clone(),
        );
        registry.register(
            "apiserver_crd_conversion_webhook_duration_seconds",
            "Duration of conversion webhook calls by definition",
            metrics.definitions.clone(),
        );
        drop(registry);
        metrics
    }

    /// The name label, limited in number.
    fn name(&self, name: &str) -> Arc<str> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = if names.len() < NAMES_MAX { name.into() } else { "other".into() };
        names.insert(name.clone());
        name
    }

    /// Records a call of an admission webhook.
    pub fn admission(
        &self,
        name: &str,
        phase: AdmissionPhase,
        operation: &'static str,
        outcome: CallOutcome,
        duration: Duration,
    ) {
        let (name, r#type) = (self.name(name), phase.name());
        let (code, error_type, is_rejected) = match outcome {
            CallOutcome::Allowed => (200, "", false),
            CallOutcome::Rejected(code) => (code, "no_error", true),
            CallOutcome::FailedOpen(code) => (code, "", false),
            CallOutcome::Failed(code) => (code, "calling_webhook_error", true),
            CallOutcome::ServerError => (0, "apiserver_internal_error", true),
        };
        let (code, rejected) = (code.min(CODE_MAX), if is_rejected { "true" } else { "false" });
        let labels = AdmissionLabels { name: name.clone(), r#type, operation, rejected };
        self.admission.get_or_create(&labels).observe(duration.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { name: name.clone(), r#type, operation, code, rejected }).inc();
        if is_rejected {
            let rejection = RejectionLabels { name, r#type, operation, error_type, rejection_code: code };
            self.rejections.get_or_create(&rejection).inc();
        } else if matches!(outcome, CallOutcome::FailedOpen(_)) {
            self.fail_open.get_or_create(&FailOpenLabels { name, r#type }).inc();
        }
    }

    /// Records a call of a conversion webhook; `failure` is upstream's failure type.
    pub fn conversion(
        &self,
        (crd_name, from, to): (&Arc<str>, &str, &str),
        failure: Option<&'static str>,
        duration: Duration,
    ) {
        let result = if failure.is_none() { "success" } else { "failure" };
        let labels = ConversionLabels { result, failure_type: failure.unwrap_or_default() };
        self.conversions.get_or_create(&labels).inc();
        self.conversion.get_or_create(&labels).observe(duration.as_secs_f64());
        let labels = DefinitionLabels {
            crd_name: self.name(crd_name),
            from_version: from.into(),
            to_version: to.into(),
            succeeded: if failure.is_none() { "true" } else { "false" },
        };
        self.definitions.get_or_create(&labels).observe(duration.as_secs_f64());
    }
}
