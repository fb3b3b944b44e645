//! What a process reports of itself: log lines on stderr, traces and logs by OTLP, and the metrics of both and of its feature
//! gates.
//!
//! Input: the common flags, OpenTelemetry's variables, spans and log events. No component is known here; they use `tracing`,
//! `machinery_serve::trace` and registries of their own. Page: docs/observability.md.
//!
//! - [`export`]: the export of traces and logs; without the feature `otlp` an error for those who ask for it.
//! - [`logging`]: log lines.
//! - [`metrics`]: the metrics of feature gates and of the export.

#[cfg(feature = "otlp")]
mod batch;
#[cfg(feature = "otlp")]
mod client;
#[cfg_attr(not(feature = "otlp"), path = "no_export.rs")]
pub mod export;
pub mod logging;
pub mod metrics;
#[cfg(feature = "otlp")]
mod processors;
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "only what the error needs is read"))]
mod settings;
