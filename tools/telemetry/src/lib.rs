//! What a process reports of itself: log lines on stderr, traces and logs by OTLP, and the metrics of both and of its feature
//! gates.
//!
//! Input: the common flags, OpenTelemetry's variables, spans and log events. No component is known here; they use `tracing`,
//! `machinery_serve::trace` and registries of their own. Page: docs/observability.md.
//!
//! - [`export`]: the export of traces and logs.
//! - [`logging`]: log lines.
//! - [`metrics`]: the metrics of feature gates and of the export.

mod batch;
mod client;
pub mod export;
pub mod logging;
pub mod metrics;
mod processors;
mod settings;
