//! Machines join a cluster, and the verb `coracle token`.
//!
//! Another API server gets the cluster's keys: [`offer`] makes a token at a machine that has them, and [`accept`] fetches
//! them with it at a new one. As kubeadm's `--upload-certs` and `--control-plane`. [`bootstrap`] makes tokens for nodes,
//! [`node`] joins with one, and [`serving`] gets the node's serving certificate. [`arguments`] hides a token of the command
//! line.
//!
//! The keys are encrypted with the token's third part, which the API never has. The token is good for one use and
//! [`VALID_SECONDS`]; all objects of it belong to its Secret, so they end with it.

pub mod accept;
pub mod arguments;
pub mod authority;
pub mod bootstrap;
mod kubeconfig;
pub mod node;
pub mod offer;
mod requesting;
mod rotation;
mod servers;
pub mod serving;
mod stored;
pub mod token;
pub mod verb;

/// The time in seconds within which a token can be used (kubeadm's certificate key: two hours).
pub const VALID_SECONDS: i64 = 2 * 60 * 60;

const SYSTEM: &str = "kube-system";
const RBAC: &str = "rbac.authorization.k8s.io";
/// The type of the Secret with the encrypted keys.
const KEYS_TYPE: &str = "coracle.dev/control-plane-keys";
/// The field of the encrypted keys.
const KEYS_FIELD: &str = "keys";

/// The Secret that authenticates a token (upstream's name).
fn token_secret(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// The Secret with the keys of a token, and the name of its Role.
fn keys_secret(id: &str) -> String {
    format!("control-plane-keys-{id}")
}
