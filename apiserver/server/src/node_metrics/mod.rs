//! `metrics.k8s.io/v1beta1`: what nodes and pods use, for `kubectl top` and for autoscalers
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/>). Nothing is stored and nothing is polled:
//! who asks is answered from what kubelets measure, which is kept for some seconds.

mod custom;
mod figures;
mod resources;
mod source;

pub use resources::resources;
pub use source::NodeMetrics;
