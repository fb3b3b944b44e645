//! A build without the feature `otlp`: it exports nothing, and variables that ask for an export are an error.

use anyhow::ensure;
use tools_command::environment;
use tracing_subscriber::layer::Identity;

use crate::settings::Settings;

/// No export. Like that of other builds it is made by a function.
#[derive(Default)]
pub struct Telemetry(());

impl Telemetry {
    /// Starts nothing.
    ///
    /// # Errors
    /// If variables ask for an export, or one of their values is invalid.
    pub fn start(_component: &'static str) -> anyhow::Result<Self> {
        let settings = Settings::read(&|name| environment::otel_variable(name))?;
        ensure!(
            settings.is_none(),
            "OTEL_EXPORTER_OTLP_ENDPOINT or a signal's own endpoint is set, but this build exports nothing: build with \
             --features telemetry, or unset it"
        );
        Ok(Self(()))
    }

    /// The layer of log events that are exported: none.
    pub(crate) fn layer(&self) -> Option<Identity> {
        None
    }

    /// Nothing is queued.
    pub fn stop(&self) {}
}
