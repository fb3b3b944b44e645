//! Export of traces and logs by OTLP, where `OTEL_EXPORTER_OTLP_ENDPOINT` or a signal's own endpoint is set
//! (docs/decisions/0119-traces.md).
//!
//! Input: variables, ended spans and log events; output: requests to the collector. Each signal has one thread with a
//! bounded queue. Without the variables nothing is started.

use std::time::Duration;

use machinery_env::Env;
use opentelemetry::{KeyValue, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{LogExporter, SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogExporter as _, SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanExporter as _};
use tools_command::environment;

use crate::batch::{self, BatchThread};
use crate::client::CollectorClient;
use crate::metrics::{LOGS, TRACES, dropped};
use crate::processors;
use crate::settings::{Settings, SignalSettings};

/// Maximum time of the last batches after the components have stopped, which may take 4 s of the 5 s of a stop.
const FLUSH_MAX: Duration = Duration::from_millis(500);

/// The running export.
#[derive(Default)]
pub struct Telemetry {
    threads: Vec<BatchThread>,
    /// Takes the events of log lines.
    logs: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Starts the export for a component, if variables ask for one.
    ///
    /// # Errors
    /// If a variable's value is invalid.
    pub fn start(component: &'static str) -> anyhow::Result<Self> {
        let mut telemetry = Self::default();
        let Some(settings) = Settings::read(&|name| environment::otel_variable(name))? else { return Ok(telemetry) };
        let resource = resource(component, settings.names_service);
        // reqwest uses the process's TLS provider. A second call fails harmlessly: the provider is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if let Some(traces) = &settings.traces {
            telemetry.start_traces(traces, &resource)?;
        }
        if let Some(logs) = &settings.logs {
            telemetry.start_logs(logs, &resource)?;
        }
        Ok(telemetry)
    }

    fn start_traces(&mut self, settings: &SignalSettings, resource: &Resource) -> anyhow::Result<()> {
        let client = CollectorClient::new(settings)?;
        let mut exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
        exporter.set_resource(resource);
        let exporter = processors::Spans(exporter);
        let (queue, thread) = batch::start(Env::real(), TRACES, settings.batches, dropped(TRACES), exporter)?;
        self.threads.push(thread);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_span_processor(processors::QueueSpans(queue))
            .build();
        global::set_tracer_provider(provider);
        machinery_serve::trace::install(global::tracer("coracle"));
        Ok(())
    }

    fn start_logs(&mut self, settings: &SignalSettings, resource: &Resource) -> anyhow::Result<()> {
        let client = CollectorClient::new(settings)?;
        let mut exporter = LogExporter::builder().with_http().with_http_client(client).build()?;
        exporter.set_resource(resource);
        let exporter = processors::Logs(exporter);
        let (queue, thread) = batch::start(Env::real(), LOGS, settings.batches, dropped(LOGS), exporter)?;
        self.threads.push(thread);
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource.clone())
            .with_log_processor(processors::QueueLogs(queue))
            .build();
        self.logs = Some(provider);
        Ok(())
    }

    /// The layer of log events that are exported.
    pub(crate) fn layer(&self) -> Option<OpenTelemetryTracingBridge<SdkLoggerProvider, SdkLogger>> {
        self.logs.as_ref().map(OpenTelemetryTracingBridge::new)
    }

    /// Sends what is queued, within [`FLUSH_MAX`].
    pub fn stop(&self) {
        let env = Env::real();
        let until = env.elapsed() + FLUSH_MAX;
        self.threads.iter().for_each(BatchThread::stop);
        for thread in &self.threads {
            thread.wait(until.saturating_sub(env.elapsed()));
        }
    }
}

/// What describes this process. The SDK adds the attributes of `OTEL_RESOURCE_ATTRIBUTES`.
fn resource(component: &'static str, names_service: bool) -> Resource {
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("host.name", environment::host_name()),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ]);
    if !names_service {
        resource = resource.with_service_name(component);
    }
    resource.build()
}
