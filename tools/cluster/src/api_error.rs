//! Errors of the API server for people.

use anyhow::anyhow;

/// The server's message alone, without what a client adds; another error as it is.
pub fn api_message(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        other => anyhow::Error::new(other),
    }
}
