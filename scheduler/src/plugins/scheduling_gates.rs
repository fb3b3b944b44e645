//! SchedulingGates: a pod with gates isn't queued. The API server says so in its conditions.

use super::{Plugin, plugin};

pub(super) const PLUGIN: Plugin = Plugin { pre_enqueue: Some(|pod| !pod.gated), ..plugin("SchedulingGates") };
