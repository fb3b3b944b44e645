//! Computes a pod's requests from its containers' (KEP-753), for scheduler and kubelet alike. Pure.

/// A container's contribution to its pod's sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Runs beside all others (`containers`).
    Own,
    /// Runs to completion before its successors (`initContainers`).
    Init,
    /// Keeps running beside its successors (`initContainers` with `restartPolicy: Always`).
    Sidecar,
}

impl Share {
    /// The share of an init container with that `restartPolicy`.
    #[must_use]
    pub fn of_init(restart_policy: Option<&str>) -> Self {
        if restart_policy == Some("Always") { Self::Sidecar } else { Self::Init }
    }
}

/// Amounts of one resource or of several.
pub trait Amounts: Default + Clone {
    /// Adds, saturating.
    fn add(&mut self, other: &Self);

    /// Raises each amount to the larger one.
    fn raise_to(&mut self, other: &Self);
}

impl Amounts for i64 {
    fn add(&mut self, other: &Self) {
        *self = self.saturating_add(*other);
    }

    fn raise_to(&mut self, other: &Self) {
        *self = (*self).max(*other);
    }
}

/// The maximum requested at any time. Init containers and sidecars must be in the spec's order.
pub fn pod_total<A: Amounts>(containers: impl Iterator<Item = (Share, A)>) -> A {
    let (mut own, mut sidecars, mut starting) = (A::default(), A::default(), A::default());
    for (share, mut request) in containers {
        match share {
            Share::Own => own.add(&request),
            Share::Sidecar => {
                sidecars.add(&request);
                starting.raise_to(&sidecars);
            }
            // An init container runs beside the earlier sidecars only.
            Share::Init => {
                request.add(&sidecars);
                starting.raise_to(&request);
            }
        }
    }
    own.add(&sidecars);
    own.raise_to(&starting);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_at_any_time() {
        use Share::{Init, Own, Sidecar};
        for (containers, want) in [
            (&[(Own, 2), (Own, 3)][..], 5),
            (&[(Init, 4), (Own, 2)], 4),
            (&[(Init, 4), (Own, 5)], 5),
            (&[(Sidecar, 1), (Own, 2)], 3),
            (&[(Sidecar, 1), (Init, 4), (Own, 2)], 5),
            (&[(Init, 4), (Sidecar, 1), (Own, 2)], 4),
            (&[(Sidecar, 1), (Init, 3), (Sidecar, 2), (Own, 2)], 5),
            (&[(Own, i64::MAX), (Own, 1)], i64::MAX),
            (&[], 0),
        ] {
            assert_eq!(pod_total(containers.iter().copied()), want, "{containers:?}");
        }
    }
}
