//! How a verb finds its cluster and sends requests to its API server.
//!
//! - [`api_error`]: errors of the API server for people.
//! - [`kubeconfig`]: the kubeconfig of a flag, of the data folder, or kubectl's.
//! - [`probe`]: requests with a deadline and a maximum size of the response.
//! - [`local`]: the client of the cluster in `--data-dir`.
//!
//! Absent on purpose: components, and what a verb does with a response.

pub mod api_error;
pub mod kubeconfig;
pub mod local;
pub mod probe;
