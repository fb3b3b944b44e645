//! `metrics.k8s.io/v1beta1`: resource usage of nodes and pods, for `kubectl top` and autoscalers
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/>). Nothing is stored or polled: a
//! request fetches the kubelets' summaries, which are cached for some seconds.

mod custom;
mod resources;
mod responses;
mod selected;
mod source;
mod summary;

pub use resources::resources;
pub use source::NodeMetrics;
