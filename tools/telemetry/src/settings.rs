//! What is exported by OTLP, from OpenTelemetry's standard variables. Input: a reader of variables; output: settings, or an
//! error that names the variable.
//!
//! The SDK reads `OTEL_EXPORTER_OTLP_*HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SPAN_*_LIMIT` and, after the checks here,
//! endpoints and samplers by itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// Reads a variable.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Maximum of `OTEL_BSP_MAX_QUEUE_SIZE`: with records of at most 16 KiB, 512 MiB.
const QUEUE_MAX: u64 = 32_768;
/// Maximum of each time: a day, in milliseconds.
const TIME_MS_MAX: u64 = 86_400_000;
/// Default timeout of one request to the collector (OTLP's), in milliseconds.
const REQUEST_TIMEOUT_MS: u64 = 10_000;

/// The samplers of the SDK; `*_ratio` ones take a number from 0 to 1.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Settings of the whole export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) traces: Option<SignalSettings>,
    pub(crate) logs: Option<SignalSettings>,
    /// Whether the user has named the service.
    pub(crate) names_service: bool,
}

/// Settings of traces or logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignalSettings {
    pub(crate) endpoint: http::Uri,
    /// PEM file with the collector's CA, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// PEM files of the client's certificate and key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// Timeout of one request.
    pub(crate) request_timeout: Duration,
    pub(crate) batches: BatchSettings,
}

/// Queue and batches of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchSettings {
    /// Maximum queued records.
    pub(crate) queue_max: usize,
    /// Maximum records of a request.
    pub(crate) batch_max: usize,
    /// Maximum time from a record to its request.
    pub(crate) delay: Duration,
    /// Timeout of a batch with its retries.
    pub(crate) timeout: Duration,
}

/// Names of a signal's variables.
struct Signal {
    /// As in `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    name: &'static str,
    /// As in `OTEL_BSP_SCHEDULE_DELAY`.
    batches: &'static str,
    /// Default delay in milliseconds.
    delay_ms: u64,
    path: &'static str,
}

const TRACES: Signal = Signal { name: "TRACES", batches: "OTEL_BSP", delay_ms: 5_000, path: "v1/traces" };
const LOGS: Signal = Signal { name: "LOGS", batches: "OTEL_BLRP", delay_ms: 1_000, path: "v1/logs" };

impl Settings {
    /// Reads the variables; `None` if nothing is exported.
    ///
    /// # Errors
    /// If a value is invalid or not supported.
    pub(crate) fn read(variables: Variables<'_>) -> anyhow::Result<Option<Self>> {
        let set = |name: &str| variables(name).filter(|value| !value.trim().is_empty());
        if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let (traces, logs) = (TRACES.read(&set)?, LOGS.read(&set)?);
        if traces.is_none() && logs.is_none() {
            return Ok(None);
        }
        check_sampler(&set)?;
        let in_attributes = |text: String| text.split(',').any(|pair| pair.trim_start().starts_with("service.name="));
        let names_service =
            set("OTEL_SERVICE_NAME").is_some() || set("OTEL_RESOURCE_ATTRIBUTES").is_some_and(in_attributes);
        Ok(Some(Self { traces, logs, names_service }))
    }
}

impl Signal {
    /// A value for this signal, else for all.
    fn value(&self, set: Variables<'_>, end: &str) -> Option<(String, String)> {
        let names = [format!("OTEL_EXPORTER_OTLP_{}_{end}", self.name), format!("OTEL_EXPORTER_OTLP_{end}")];
        names.into_iter().find_map(|name| set(&name).map(|value| (name, value)))
    }

    fn read(&self, set: Variables<'_>) -> anyhow::Result<Option<SignalSettings>> {
        let exporter = format!("OTEL_{}_EXPORTER", self.name);
        match set(&exporter).as_deref() {
            Some("none") => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => anyhow::bail!("{exporter}={other} is not supported: set otlp or none"),
        }
        let Some((name, endpoint)) = self.value(set, "ENDPOINT") else { return Ok(None) };
        if let Some((name, protocol)) = self.value(set, "PROTOCOL") {
            ensure!(
                protocol == "http/protobuf",
                "{name}={protocol} is not supported: set http/protobuf, and the collector's HTTP port (4318)"
            );
        }
        if let Some((name, compression)) = self.value(set, "COMPRESSION") {
            ensure!(compression == "none", "{name}={compression} is not supported: unset it, or set none");
        }
        let endpoint = endpoint_uri(&endpoint, if name.contains(self.name) { "" } else { self.path })
            .with_context(|| format!("{name}={endpoint} is no address such as http://127.0.0.1:4318"))?;
        let path = |end| self.value(set, end).map(|(_, path)| PathBuf::from(path));
        let identity = match (path("CLIENT_CERTIFICATE"), path("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => anyhow::bail!(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY are only used together"
            ),
        };
        let timeout = match self.value(set, "TIMEOUT") {
            Some((name, value)) => number(&name, &value, TIME_MS_MAX)?,
            None => REQUEST_TIMEOUT_MS,
        };
        Ok(Some(SignalSettings {
            endpoint,
            ca: path("CERTIFICATE"),
            identity,
            request_timeout: Duration::from_millis(timeout),
            batches: self.batches(set)?,
        }))
    }

    fn batches(&self, set: Variables<'_>) -> anyhow::Result<BatchSettings> {
        let value = |end: &str, default: u64, max: u64| {
            let name = format!("{}_{end}", self.batches);
            set(&name).map_or(Ok(default), |value| number(&name, &value, max))
        };
        let queue_max = value("MAX_QUEUE_SIZE", 2_048, QUEUE_MAX)?;
        let batch_max = value("MAX_EXPORT_BATCH_SIZE", queue_max.min(512), queue_max)?;
        Ok(BatchSettings {
            queue_max: queue_max as usize,
            batch_max: batch_max as usize,
            delay: Duration::from_millis(value("SCHEDULE_DELAY", self.delay_ms, TIME_MS_MAX)?),
            timeout: Duration::from_millis(value("EXPORT_TIMEOUT", 30_000, TIME_MS_MAX)?),
        })
    }
}

/// The address for a signal: an endpoint of all signals gets the signal's path.
fn endpoint_uri(endpoint: &str, path: &str) -> anyhow::Result<http::Uri> {
    let whole = match path {
        "" => endpoint.to_owned(),
        path => format!("{}/{path}", endpoint.trim_end_matches('/')),
    };
    let uri: http::Uri = whole.parse()?;
    ensure!(matches!(uri.scheme_str(), Some("http" | "https")), "it doesn't begin with http:// or https://");
    Ok(uri)
}

fn check_sampler(set: Variables<'_>) -> anyhow::Result<()> {
    let Some(sampler) = set("OTEL_TRACES_SAMPLER") else { return Ok(()) };
    ensure!(
        SAMPLERS.contains(&sampler.as_str()),
        "OTEL_TRACES_SAMPLER={sampler} is not supported: set one of {}",
        SAMPLERS.join(", ")
    );
    if sampler.ends_with("ratio") {
        let ratio = set("OTEL_TRACES_SAMPLER_ARG").unwrap_or_default();
        let is_ratio = ratio.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio));
        ensure!(is_ratio, "OTEL_TRACES_SAMPLER={sampler} wants a number from 0 to 1 in OTEL_TRACES_SAMPLER_ARG");
    }
    Ok(())
}

fn number(name: &str, value: &str, max: u64) -> anyhow::Result<u64> {
    let number = value.trim().parse::<u64>().ok().filter(|number| (1..=max).contains(number));
    number.with_context(|| format!("{name}={value} is no number from 1 to {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Option<Settings>> {
        Settings::read(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");

    #[test]
    fn nothing_is_exported_by_default() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("OTEL_SERVICE_NAME", "a"), ("OTEL_TRACES_SAMPLER", "typo")]).unwrap(), None);
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap(), None);
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap(), None);
        assert_eq!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_LOGS_EXPORTER", "none")]).unwrap(), None);
    }

    #[test]
    fn one_endpoint_serves_both_signals() {
        let settings = read(&[ENDPOINT]).unwrap().unwrap();
        let (traces, logs) = (settings.traces.unwrap(), settings.logs.unwrap());
        assert_eq!(traces.endpoint, "http://127.0.0.1:4318/v1/traces");
        assert_eq!(logs.endpoint, "http://127.0.0.1:4318/v1/logs");
        assert_eq!((traces.batches.queue_max, traces.batches.batch_max), (2_048, 512));
        assert_eq!((traces.batches.delay, logs.batches.delay), (Duration::from_secs(5), Duration::from_secs(1)));
        assert!(!settings.names_service);
    }

    #[test]
    fn a_signal_has_its_own_values() {
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector.example/spans");
        let settings = read(&[
            own,
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "9"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=shop"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert!(settings.logs.is_none() && settings.names_service);
        let traces = settings.traces.unwrap();
        assert_eq!(traces.endpoint, own.1);
        assert_eq!((traces.batches.queue_max, traces.batches.batch_max), (100, 100));
        assert_eq!(traces.request_timeout, Duration::from_millis(9));
    }

    #[test]
    fn wrong_values_are_named() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://127.0.0.1"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "key.pem"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "-1"),
        ] {
            let error = format!("{:#}", read(&[(name, value), ENDPOINT]).unwrap_err());
            assert!(error.contains(name), "{name}={value}: {error}");
        }
        let ratio = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        assert!(read(&ratio).is_ok());
    }
}
