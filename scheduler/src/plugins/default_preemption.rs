//! DefaultPreemption: says of a pod that fits nowhere whether the going of others would help. It lets nobody go yet, and
//! so finds no victims.

use super::{Cycle, Filters, Plugin, PostFilterResult, plugin};
use crate::diagnosis::{Diagnosis, not_available};

pub(super) const PLUGIN: Plugin = Plugin { post_filter: Some(post_filter), ..plugin("DefaultPreemption") };

fn post_filter<'a>(cycle: Cycle<'a>, _: &mut Filters<'a>, diagnosis: &Diagnosis) -> PostFilterResult {
    if cycle.pod.wants.never_preempts {
        let why = "preemption: not eligible due to preemptionPolicy=Never.";
        return PostFilterResult::Unschedulable(why.into());
    }
    let counts = [
        (diagnosis.resolvable.len(), "No preemption victims found for incoming pod"),
        (diagnosis.unresolvable, "Preemption is not helpful for scheduling"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let why = not_available(cycle.snapshot.node_count(), counts.collect());
    PostFilterResult::Unschedulable(format!("preemption: {why}"))
}
