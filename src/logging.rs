//! Structured log lines on stderr; stdout belongs to a verb's result.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Common, LogFormat};

/// These warn of what a guest or a registry does, as often as it does it: neither must be able to flood the node's log.
/// The last one tells of each answer that is an error, without whose it is: whoever has asked says that.
const OTHERS: &str =
    "wasmtime_wasi=error,wasmtime_wasi_http=error,rustls_platform_verifier=off,kube_client::client::builder=off";

/// Starts logging for the whole process.
///
/// # Errors
/// The level is no filter (`info`, or `warn,kubelet=debug`).
pub(crate) fn start(common: &Common) -> anyhow::Result<()> {
    let directives = format!("{OTHERS},{}", common.log_level);
    let unknown =
        || format!("--log-level {:?} is neither a level nor a filter such as warn,proxy=debug", common.log_level);
    anyhow::ensure!(levels_are_known(&common.log_level), unknown());
    let filter = EnvFilter::builder().parse(&directives).with_context(unknown)?;
    // Whoever read the lines may have gone: saying so where nobody reads would be the end of the thread that logs.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match common.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A bare word would be taken for a module's name, so that a level with a typo (`inof`) would silence everything.
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
