//! The dashboard: its files, and `coracle dashboard`, a proxy on this machine that adds the credentials of a kubeconfig.
//!
//! The files hold no secret. The API server serves them to authenticated users, the proxy to every program of this machine;
//! requests to the API need the secret of the run, which only the opened page has (docs/security.md, "Dashboard").
//!
//! - [`files`]: the files of `dashboard/dist/`.
//! - [`access`]: who may use the API server's files.
//! - [`gate`]: which requests the proxy accepts. Pure.
//! - [`forwarding`]: the headers of forwarded requests and responses. Pure.
//! - [`secret`]: the secret of a run.
//! - [`server`]: the proxy's server.
//! - [`browser`]: opens the page.

pub mod access;
pub mod browser;
pub mod files;
mod forwarding;
mod gate;
pub mod secret;
pub mod server;
