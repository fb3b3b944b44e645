//! DynamicResources: pods with resource claims are refused before any plugin is asked (see `PodInfo::wants`), so all that
//! is left to say is that no claim's going would help.

use super::{Plugin, PostFilterResult, plugin};

pub(super) const PLUGIN: Plugin = Plugin {
    post_filter: Some(|_, _, _| PostFilterResult::Unschedulable("no new claims to deallocate".into())),
    ..plugin("DynamicResources")
};
