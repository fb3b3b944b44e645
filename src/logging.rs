//! Structured log lines on stderr; stdout belongs to a verb's result.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Common, LogFormat};

/// Filters of targets that warn of each act of a guest, a registry or a name server: none must be able to flood the node's
/// log. The last one logs each error response without its origin; the caller logs the error with it.
const OTHERS: &str = "wasmtime_wasi=error,wasmtime_wasi_http=error,hickory_net=error,rustls_platform_verifier=off,kube_client::client::builder=off";

/// Starts logging for the process.
///
/// # Errors
/// If the level is no valid filter (`info`, or `warn,kubelet=debug`).
pub(crate) fn start(common: &Common) -> anyhow::Result<()> {
    let directives = format!("{OTHERS},{}", common.log_level);
    let unknown =
        || format!("--log-level {:?} is neither a level nor a filter such as warn,proxy=debug", common.log_level);
    anyhow::ensure!(levels_are_known(&common.log_level), unknown());
    let filter = EnvFilter::builder().parse(&directives).with_context(unknown)?;
    // The reader of stderr may be gone: reporting that there would panic in the logging thread.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match common.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
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
    use super::levels_are_known;

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
