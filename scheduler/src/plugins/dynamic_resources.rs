//! DynamicResources: pods with resource claims are rejected before any plugin runs (see `PodInfo::requirements`), so it
//! only reports that deallocating claims wouldn't help.

use super::{Plugin, PostFilterResult, plugin};

pub(super) const PLUGIN: Plugin = Plugin {
    post_filter: Some(|_, _, _| PostFilterResult::Unschedulable("no new claims to deallocate".into())),
    ..plugin("DynamicResources")
};
