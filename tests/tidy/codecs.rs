//! Codecs of Kubernetes types are compiled once, in `machinery/client/src/wire.rs` (docs/decisions/0096-wire-codecs.md):
//! no other crate uses a client that compiles them again.

use crate::check;
use crate::shipped::shipped_files;

/// Generic clients of kube, which read answers by serde in the crate that uses them.
const GENERIC: &[&str] = &["kube::Api", "kube::api", "kube::runtime", "kube::{Api", "kube::core::ObjectList"];

#[test]
fn only_the_client_kit_reads_kubernetes_types() {
    let mut problems = Vec::new();
    for (path, text) in shipped_files() {
        if path.starts_with("machinery/client/") {
            continue;
        }
        for line in text.lines().filter(|line| GENERIC.iter().any(|sign| line.contains(sign))) {
            problems.push(format!("{path}: {}; use machinery_client::Api", line.trim()));
        }
    }
    check(&problems);
}
