//! Replicas and status of each metric of an autoscaler. Pure.

use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, MetricIdentifier, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricSource,
    PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery_api::quantity::{Format, Quantity};
use machinery_client::Pass;

use super::metrics::{self, MetricScope};
use super::replicas::{Calculator, Proposal, milli};
use crate::scale::{Mapping, Stop};

/// The proposal of a metric.
#[derive(Debug)]
pub(super) struct Proposed {
    pub(super) replicas: i32,
    /// The name of the metric in conditions and events.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// The failure of a metric.
#[derive(Debug)]
pub(super) struct MetricFailure {
    /// The reason of the condition and the event.
    pub(super) reason: &'static str,
    pub(super) why: String,
    /// The message for the error over all metrics.
    pub(super) error: String,
}

/// The result of a metric, or the effects to answer first.
pub(super) type MetricOutcome = Result<Result<Proposed, MetricFailure>, Stop>;

/// The inputs of a metric's computation.
pub(super) struct MetricInputs<'a> {
    pub(super) pass: &'a Pass,
    pub(super) known: &'a mut Vec<Mapping>,
    pub(super) scope: MetricScope<'a>,
    pub(super) calculator: &'a Calculator<'a>,
}

fn text(value: i64, format: Format) -> Text {
    Text(Quantity::from_milli(value, format).to_string())
}

fn plain(value: i64) -> Option<Text> {
    Some(text(value, Format::DecimalSi))
}

fn identifier(metric: &MetricIdentifier) -> MetricIdentifier {
    metric.clone()
}

/// Prefixes a failure's message; effects stay unchanged.
fn prefixed(stop: Stop, before: &str) -> Stop {
    match stop {
        Stop::Failed(why) => Stop::Failed(format!("{before}: {why}")),
        ask @ Stop::Ask(_) => ask,
    }
}

/// The name of the metric in the error over all metrics; the condition and the event have the reason alone.
fn of_object(source: &ObjectMetricSource) -> String {
    let name = &source.metric.name;
    match &*source.target.type_ {
        "AverageValue" => format!("object metric value: failed to get {name} object metric"),
        _ => "object metric value".to_owned(),
    }
}

fn of_external(source: &ExternalMetricSource) -> String {
    let name = &source.metric.name;
    let whole = format!("{name} external metric value");
    match (&source.target.average_value, &source.target.value) {
        (Some(_), _) => format!("{whole}: failed to get {name} external metric"),
        (None, Some(_)) => format!("{whole}: failed to get external metric {name}"),
        (None, None) => whole,
    }
}

impl MetricInputs<'_> {
    pub(super) fn propose(&mut self, spec: &MetricSpec) -> MetricOutcome {
        let (found, reason, what) = match (&*spec.type_, spec) {
            ("Object", MetricSpec { object: Some(source), .. }) => {
                (self.object(source), "FailedGetObjectMetric", of_object(source))
            }
            ("Pods", MetricSpec { pods: Some(source), .. }) => {
                (self.pods(source), "FailedGetPodsMetric", "pods metric value".to_owned())
            }
            ("Resource", MetricSpec { resource: Some(source), .. }) => (
                self.resource(&source.name, None, &source.target).map(|(proposal, name, current)| Proposed {
                    replicas: proposal.replicas,
                    name,
                    status: MetricStatus {
                        type_: "Resource".into(),
                        resource: Some(ResourceMetricStatus { name: source.name.clone(), current }),
                        ..MetricStatus::default()
                    },
                }),
                "FailedGetResourceMetric",
                format!("{} resource metric value", source.name),
            ),
            ("ContainerResource", MetricSpec { container_resource: Some(source), .. }) => (
                self.resource(&source.name, Some(&source.container), &source.target).map(
                    |(proposal, name, current)| Proposed {
                        replicas: proposal.replicas,
                        name,
                        status: MetricStatus {
                            type_: "ContainerResource".into(),
                            container_resource: Some(ContainerResourceMetricStatus {
                                name: source.name.clone(),
                                container: source.container.clone(),
                                current,
                            }),
                            ..MetricStatus::default()
                        },
                    },
                ),
                "FailedGetContainerResourceMetric",
                format!("{} container metric value", source.container),
            ),
            ("External", MetricSpec { external: Some(source), .. }) => {
                (self.external(source), "FailedGetExternalMetric", of_external(source))
            }
            _ => {
                let why = format!("unknown metric source type {:?}", spec.type_);
                return Ok(Err(MetricFailure { reason: "InvalidMetricSourceType", error: why.clone(), why }));
            }
        };
        match found {
            Ok(proposed) => Ok(Ok(proposed)),
            Err(Stop::Failed(why)) => {
                Ok(Err(MetricFailure { reason, error: format!("failed to get {what}: {why}"), why }))
            }
            Err(ask @ Stop::Ask(_)) => Err(ask),
        }
    }

    fn resource(
        &mut self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(Proposal, String, MetricValueStatus), Stop> {
        let fetch_usage = |before: &str, source: &Self| {
            let found = metrics::resource(source.pass, source.scope, resource, container);
            found.map_err(|stop| {
                prefixed(prefixed(stop, &format!("unable to get metrics for resource {resource}")), before)
            })
        };
        let format = if resource == "memory" { Format::BinarySi } else { Format::DecimalSi };
        if let Some(average) = &target.average_value {
            let before = format!("failed to get {resource} usage");
            let found = fetch_usage(&before, self)?;
            let proposal = self.calculator.per_pod(found, milli(average), resource);
            let proposal = proposal.map_err(|why| prefixed(why.into(), &before))?;
            let current =
                MetricValueStatus { average_value: Some(text(proposal.usage, format)), ..MetricValueStatus::default() };
            return Ok((proposal, format!("{resource} resource"), current));
        }
        let Some(percent) = target.average_utilization else {
            let why = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
            return Err(why.to_owned().into());
        };
        let before = format!("failed to get {resource} utilization");
        let found = fetch_usage(&before, self)?;
        let proposal = self.calculator.utilization(found, percent, resource, container);
        let proposal = proposal.map_err(|why| prefixed(why.into(), &before))?;
        let current = MetricValueStatus {
            average_utilization: Some(proposal.percent),
            average_value: Some(text(proposal.usage, format)),
            value: None,
        };
        let of = if container.is_some() { "container resource" } else { "resource" };
        Ok((proposal, format!("{resource} {of} utilization (percentage of request)"), current))
    }

    fn pods(&mut self, source: &PodsMetricSource) -> Result<Proposed, Stop> {
        let name = &source.metric.name;
        let found = metrics::pods(self.pass, self.scope, &source.metric);
        let found = found.map_err(|stop| prefixed(stop, &format!("unable to get metric {name}")))?;
        let target = source.target.average_value.as_ref().map_or(0, milli);
        let proposal = self.calculator.per_pod(found, target, "")?;
        let current = MetricValueStatus { average_value: plain(proposal.usage), ..MetricValueStatus::default() };
        Ok(Proposed {
            replicas: proposal.replicas,
            name: format!("pods metric {name}"),
            status: MetricStatus {
                type_: "Pods".into(),
                pods: Some(PodsMetricStatus { metric: identifier(&source.metric), current }),
                ..MetricStatus::default()
            },
        })
    }

    fn object(&mut self, source: &ObjectMetricSource) -> Result<Proposed, Stop> {
        let (metric, of, target) = (&source.metric, &source.described_object, &source.target);
        let namespace = self.scope.namespace;
        let found = |source: &mut Self| {
            let found = metrics::object(source.pass, source.known, namespace, metric, of);
            found.map_err(|stop| match stop {
                Stop::Failed(why) => Stop::Failed(format!(
                    // Upstream's argument order differs from its format string.
                    "unable to get metric {}: {} on {namespace} {}/{why}",
                    metric.name, of.kind, of.name
                )),
                ask @ Stop::Ask(_) => ask,
            })
        };
        let status = |current| MetricStatus {
            type_: "Object".into(),
            object: Some(ObjectMetricStatus { current, described_object: of.clone(), metric: identifier(metric) }),
            ..MetricStatus::default()
        };
        match (&*target.type_, &target.value, &target.average_value) {
            ("Value", Some(value), _) => {
                let usage = found(self)?;
                let proposal = self.calculator.of_all(usage, milli(value))?;
                let current = MetricValueStatus { value: plain(proposal.usage), ..MetricValueStatus::default() };
                let name = format!("{} metric {}", of.kind, metric.name);
                Ok(Proposed { replicas: proposal.replicas, name, status: status(current) })
            }
            ("AverageValue", _, Some(average)) => {
                let usage = found(self)?;
                let proposal = self.calculator.of_each(usage, milli(average));
                let current =
                    MetricValueStatus { average_value: plain(proposal.usage), ..MetricValueStatus::default() };
                // Upstream's name.
                let name = format!("external metric {}({})", metric.name, metrics::printed(metric.selector.as_ref()));
                Ok(Proposed { replicas: proposal.replicas, name, status: status(current) })
            }
            _ => {
                let why = "invalid object metric source: neither a value target nor an average value target was set";
                Err(why.to_owned().into())
            }
        }
    }

    fn external(&mut self, source: &ExternalMetricSource) -> Result<Proposed, Stop> {
        let (metric, target) = (&source.metric, &source.target);
        let printed = metrics::printed(metric.selector.as_ref());
        let namespace = self.scope.namespace;
        let before = format!("unable to get external metric {namespace}/{}/{printed}", metric.name);
        let (proposal, current) = if let Some(average) = &target.average_value {
            let usage = metrics::external(self.pass, namespace, metric).map_err(|stop| prefixed(stop, &before))?;
            let proposal = self.calculator.of_each(usage, milli(average));
            (proposal, MetricValueStatus { average_value: plain(proposal.usage), ..MetricValueStatus::default() })
        } else if let Some(value) = &target.value {
            let usage = metrics::external(self.pass, namespace, metric).map_err(|stop| prefixed(stop, &before))?;
            let proposal = self.calculator.of_all(usage, milli(value))?;
            (proposal, MetricValueStatus { value: plain(proposal.usage), ..MetricValueStatus::default() })
        } else {
            let why = "invalid external metric source: neither a value target nor an average value target was set";
            return Err(why.to_owned().into());
        };
        Ok(Proposed {
            replicas: proposal.replicas,
            name: format!("external metric {}({printed})", metric.name),
            status: MetricStatus {
                type_: "External".into(),
                external: Some(ExternalMetricStatus { current, metric: identifier(metric) }),
                ..MetricStatus::default()
            },
        })
    }
}
