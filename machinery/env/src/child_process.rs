//! The environment of child processes: without the variables that name this cluster or an account in it.
//!
//! A program of others (a build, a credential provider, a browser) has no use for a bootstrap token or a kubeconfig, and may
//! log its environment. Each place that starts a program removes [`cluster_variables`] first; `tests/tidy` finds one that
//! doesn't. Variables that the user configures for the program are set afterwards, and stay.

use std::ffi::{OsStr, OsString};

/// The prefix of this program's own variables: each flag can be set by one.
const OWN_PREFIX: &str = "CORACLE_";

/// The names of the variables in this process's environment that no child process gets.
#[must_use]
pub fn cluster_variables() -> Vec<OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| is_cluster_variable(name)).collect()
}

/// Whether a variable names a cluster or an account in it. Windows' names have no case.
fn is_cluster_variable(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    name == "KUBECONFIG" || name.starts_with(OWN_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_cluster() {
        let found = ["KUBECONFIG", "CORACLE_DATA_DIR", "coracle_token", "PATH", "MY_CORACLE_X", "KUBECONFIG_X"];
        assert_eq!(found.map(|name| is_cluster_variable(OsStr::new(name))), [true, true, true, false, false, false]);
    }
}
