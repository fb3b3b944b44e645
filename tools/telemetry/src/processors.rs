//! Ends of the SDK's pipelines: records go into the queue of their signal, and its batches to OTLP's exporters.

use std::time::Duration;

use opentelemetry::logs::AnyValue;
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_otlp::{LogExporter, SpanExporter};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _, LogProcessor, SdkLogRecord};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};

use crate::batch::{Export, Queue};

/// Maximum bytes of a log record's texts. A larger one is dropped and counted.
const LOG_BYTES_MAX: usize = 16 << 10;

/// Queues ended spans.
#[derive(Debug)]
pub(crate) struct QueueSpans(pub(crate) Queue<SpanData>);

impl SpanProcessor for QueueSpans {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.push(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// The queue's thread is stopped by its owner.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// A log record with the library that made it.
pub(crate) type LogRecord = (SdkLogRecord, InstrumentationScope);

/// Queues log records.
#[derive(Debug)]
pub(crate) struct QueueLogs(pub(crate) Queue<LogRecord>);

impl LogProcessor for QueueLogs {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if text_bytes(record) > LOG_BYTES_MAX {
            self.0.reject();
        } else {
            self.0.push((record.clone(), scope.clone()));
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn text_bytes(record: &SdkLogRecord) -> usize {
    let bytes = |value: &AnyValue| match value {
        AnyValue::String(text) => text.as_str().len(),
        AnyValue::Bytes(bytes) => bytes.len(),
        _ => 0,
    };
    record.body().map_or(0, bytes) + record.attributes_iter().map(|(_, value)| bytes(value)).sum::<usize>()
}

/// Sends spans.
pub(crate) struct Spans(pub(crate) SpanExporter);

impl Export for Spans {
    type Record = SpanData;

    async fn export(&self, batch: Vec<SpanData>) -> Result<(), String> {
        self.0.export(batch).await.map_err(|error| error.to_string())
    }
}

/// Sends log records.
pub(crate) struct Logs(pub(crate) LogExporter);

impl Export for Logs {
    type Record = LogRecord;

    async fn export(&self, batch: Vec<LogRecord>) -> Result<(), String> {
        let records: Vec<_> = batch.iter().map(|(record, scope)| (record, scope)).collect();
        self.0.export(LogBatch::new(&records)).await.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
    use opentelemetry_sdk::logs::SdkLoggerProvider;

    use super::*;

    #[test]
    fn texts_of_a_record_are_counted() {
        let logger = SdkLoggerProvider::builder().build().logger("test");
        let mut record = logger.create_log_record();
        record.set_body("five5".into());
        record.add_attribute("name", "seven77");
        record.add_attribute("number", 5);
        assert_eq!(text_bytes(&record), 12);
    }
}
