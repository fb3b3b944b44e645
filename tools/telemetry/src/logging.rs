//! Structured log lines on stderr; stdout belongs to a verb's result. Where logs are exported, the same events are.

use std::fmt;

use anyhow::Context as _;
use machinery_serve::trace;
use tools_command::flags::{Common, LogFormat};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::export::Telemetry;

/// Filters of targets that warn of each act of a guest, a registry or a name server: none must be able to flood the node's
/// log. The last one logs each error response without its origin; the caller logs the error with it.
const OTHERS: &str = "wasmtime_wasi=error,wasmtime_wasi_http=error,hickory_net=error,rustls_platform_verifier=off,kube_client::client::builder=off";

/// Starts logging for the process, and the export of its events.
///
/// # Errors
/// If the level is no valid filter (`info`, or `warn,kubelet=debug`).
pub fn start(common: &Common, telemetry: &Telemetry) -> anyhow::Result<()> {
    let directives = format!("{OTHERS},{}", common.log_level);
    let unknown =
        || format!("--log-level {:?} is neither a level nor a filter such as warn,proxy=debug", common.log_level);
    anyhow::ensure!(levels_are_known(&common.log_level), unknown());
    let filter = EnvFilter::builder().parse(&directives).with_context(unknown)?;
    // The reader of stderr may be gone: reporting that there would panic in the logging thread.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = match common.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => {
            lines.fmt_fields(JsonFields::new()).event_format(WithTraceIds(Format::default().json())).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(lines).with(telemetry.layer()).init();
    Ok(())
}

/// JSON lines; within a span they have its ids as `trace_id` and `span_id`.
struct WithTraceIds(Format<Json>);

impl<S, N> FormatEvent<S, N> for WithTraceIds
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(span) = trace::current() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with_ids(&line, &span))
    }
}

/// A line that is one JSON object, with the ids as its last fields.
fn with_ids(line: &str, span: &trace::SpanContext) -> String {
    match line.trim_end().strip_suffix('}') {
        Some(fields) => {
            format!("{fields},\"trace_id\":\"{}\",\"span_id\":\"{}\"}}\n", span.trace_id(), span.span_id())
        }
        None => line.to_owned(),
    }
}

/// A bare word would be parsed as a module's name, so that a typo in a level (`inof`) would disable all logging.
fn levels_are_known(filter: &str) -> bool {
    filter
        .split(',')
        .filter(|part| !part.contains(['=', '[', ']', '{', '}']))
        .all(|part| part.trim().parse::<LevelFilter>().is_ok())
}

#[cfg(test)]
mod tests {
    use machinery_serve::trace::SpanContext;

    use super::{levels_are_known, with_ids};

    #[test]
    fn ids_are_the_last_fields_of_a_line() {
        let line = with_ids("{\"level\":\"WARN\"}\n", &SpanContext::empty_context());
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["level"].as_str(), value["trace_id"].as_str()), (Some("WARN"), Some(&*"0".repeat(32))));
        assert!(line.ends_with("\"span_id\":\"0000000000000000\"}\n"));
    }

    #[test]
    fn a_bare_word_is_a_level() {
        for known in ["warn", "WARN", "off", "warn,proxy=debug", "kubelet[pod{name=a,uid=b}]=trace,info", ""] {
            assert!(levels_are_known(known), "{known}");
        }
        for typo in ["inof", "warn,proxy", "warn,debgu,kubelet=info"] {
            assert!(!levels_are_known(typo), "{typo}");
        }
    }
}
