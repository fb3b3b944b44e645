//! Plugins for volumes: reachability, binding and provisioning, and limits per node.

mod binding;
mod limits;
mod restrictions;
#[cfg(test)]
mod tests;
mod zone;

pub(super) use self::binding::PLUGIN as BINDING;
pub use self::binding::are_bound;
pub(super) use self::limits::PLUGIN as LIMITS;
pub(super) use self::restrictions::PLUGIN as RESTRICTIONS;
pub(super) use self::zone::PLUGIN as ZONE;

use super::Event;
use crate::pod::{PodClaim, PodInfo};

/// Whether a change of claims and volumes affects a pod.
fn concerns(event: &Event<'_>, pod: &PodInfo) -> bool {
    let Some(claims) = &pod.claims else { return false };
    match event {
        Event::Claim(key) => {
            key.namespace == pod.key.namespace && claims.iter().any(|PodClaim { name, .. }| *name == key.name)
        }
        Event::Volume => true,
        _ => false,
    }
}
