//! The environment of this process: variables of other programs. clap alone reads ours: each flag can be set by
//! `CORACLE_<FLAG>`.

use std::path::PathBuf;

/// This machine's name, for events and leases.
pub fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_| "coracle".to_owned())
}

/// Proxy variables (curl's and Go's) that apply to registries.
const PROXY_VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The hosts of the proxies in the environment.
pub fn proxies() -> Vec<String> {
    let values = PROXY_VARIABLES.iter().filter_map(|name| variable(name));
    values.filter_map(|value| value.parse::<http::Uri>().ok()?.host().map(str::to_owned)).collect()
}

/// A variable that is set and not empty, as a path.
pub fn variable_path(name: &str) -> Option<PathBuf> {
    variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The paths in a variable such as PATH; empty if it isn't set.
pub fn paths_of(name: &str) -> Vec<PathBuf> {
    let paths = variable(name).map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
    paths.into_iter().filter(|path| !path.as_os_str().is_empty()).collect()
}

/// The folder of `docker login` and similar tools, if it isn't the default one.
pub fn docker_config() -> Option<PathBuf> {
    variable_path("DOCKER_CONFIG")
}

/// A variable of OpenTelemetry (`OTEL_…`), for the export of telemetry. Its SDK also reads some by itself.
pub fn otel_variable(name: &str) -> Option<String> {
    variable(name)
}

#[expect(clippy::disallowed_methods, reason = "the one reader of other programs' variables; clap reads ours")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
