//! SchedulingGates: a pod with gates isn't queued. The API server sets its condition.

use super::{Plugin, plugin};

pub(super) const PLUGIN: Plugin = Plugin { pre_enqueue: Some(|pod| !pod.gated), ..plugin("SchedulingGates") };
