//! A profile: the plugins, extension points and arguments for the pods of one scheduler name.

use std::sync::Arc;

use super::{Args, PLUGINS, Plugin, ScoringStrategy};
use crate::extender::EXTENDER;
use crate::wasm::WasmPlugin;

/// The default `spec.schedulerName`.
const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// The maximum weight of a score: the sum of the weighted scores of all plugins stays far below 2^63.
const WEIGHT_MAX: i64 = 1_000_000;

/// An extension point. `PreScore` creates the score, and is part of `Score` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before a pod is queued.
    PreEnqueue,
    /// The order of the queue.
    QueueSort,
    /// Whether any node fits, and which nodes to filter. Creates the filter.
    PreFilter,
    /// Which nodes are feasible.
    Filter,
    /// What to do if no node is feasible.
    PostFilter,
    /// Which feasible node is best.
    Score,
    /// What to reserve for the pod.
    Reserve,
    /// What to write before the binding.
    PreBind,
}

/// The plugins of each [`Point`].
#[derive(Clone, Default)]
pub struct Points {
    at: [Vec<(&'static Plugin, i64)>; 8],
    /// The plugins with `PreFilter`, in order, each with its index among the plugins with `Filter`; none if the profile
    /// doesn't enable its `Filter`.
    filtering: Vec<(&'static Plugin, Option<usize>)>,
}

impl Points {
    /// Of the plugins at each point, in the order of [`Point`].
    #[must_use]
    pub fn new(at: [Vec<(&'static Plugin, i64)>; 8]) -> Self {
        let (before, nodes) = (&at[Point::PreFilter as usize], &at[Point::Filter as usize]);
        let place = |plugin: &Plugin| nodes.iter().position(|(other, _)| other.name == plugin.name);
        // Some plugins have a `Filter` and no `PreFilter`.
        let alone = nodes.iter().filter(|(plugin, _)| before.iter().all(|(other, _)| other.name != plugin.name));
        let filtering = before.iter().chain(alone).map(|(plugin, _)| (*plugin, place(plugin))).collect();
        Self { at, filtering }
    }

    /// Whether a plugin is enabled at any point.
    #[must_use]
    pub fn has(&self, plugin: &str) -> bool {
        self.at.iter().flatten().any(|(other, _)| other.name == plugin)
    }
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.at.iter().map(|at| at.iter().map(|(plugin, _)| plugin.name).collect::<Vec<_>>()))
            .finish()
    }
}

/// A profile of the scheduler.
#[derive(Clone)]
pub struct Profile {
    /// The profile decides for pods with this `spec.schedulerName`.
    pub scheduler_name: String,
    /// The plugins, in order, with the weights of their scores.
    pub plugins: Vec<(&'static Plugin, i64)>,
    /// The plugins' arguments.
    pub args: Arc<Args>,
    /// The plugins by extension point, if some are enabled at some points only, or in another order.
    pub points: Option<Arc<Points>>,
    /// The percentage of nodes to find feasible; none: by the number of nodes.
    pub feasible_percent: Option<usize>,
    /// WebAssembly plugins, in order.
    pub wasm: Vec<Arc<WasmPlugin>>,
}

/// An invalid profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// There is no profile.
    #[error("no profile is given")]
    None,
    /// Pods could not select the profile.
    #[error("a profile has no scheduler name")]
    NoName,
    /// Two profiles have the same name.
    #[error("two profiles are named {0:?}")]
    Duplicate(String),
    /// No plugin has the name.
    #[error("profile {profile:?}: no plugin is named {plugin:?}")]
    UnknownPlugin {
        /// The profile's scheduler name.
        profile: String,
        plugin: String,
    },
    /// The plugin has no score, or the weight is out of range.
    #[error(
        "profile {profile:?}: plugin {plugin:?} can't have the weight {weight}: it scores nodes with 1 to {WEIGHT_MAX}, or not at all"
    )]
    Weight {
        /// The profile's scheduler name.
        profile: String,
        plugin: String,
        weight: i64,
    },
    /// There is one queue, so all profiles need the same order.
    #[error("profile {0:?}: the queue is ordered by exactly one plugin, the same in all profiles")]
    QueueSort(String),
}

impl Default for Profile {
    /// Upstream's default profile.
    fn default() -> Self {
        Self::named(DEFAULT_SCHEDULER)
    }
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plugins: Vec<_> = self.plugins.iter().map(|(plugin, weight)| (plugin.name, weight)).collect();
        let Self { scheduler_name, args, .. } = self;
        f.debug_struct("Profile").field("name", scheduler_name).field("plugins", &plugins).field("args", args).finish()
    }
}

impl Profile {
    /// Upstream's default plugins and weights, for another scheduler name.
    #[must_use]
    pub fn named(scheduler_name: &str) -> Self {
        let plugins = PLUGINS.iter().map(|plugin| (plugin, plugin.weight)).collect();
        Self {
            scheduler_name: scheduler_name.to_owned(),
            plugins,
            args: Arc::default(),
            points: None,
            feasible_percent: None,
            wasm: Vec::new(),
        }
    }

    /// The profile with another scoring strategy.
    #[must_use]
    pub fn scored_by(mut self, strategy: ScoringStrategy) -> Self {
        Arc::make_mut(&mut self.args).scoring_strategy = strategy;
        self
    }

    /// The profile without a plugin.
    ///
    /// # Errors
    /// The profile has no plugin of that name.
    pub fn without(mut self, plugin: &str) -> Result<Self, ProfileError> {
        let at = self.position(plugin)?;
        self.plugins.remove(at);
        Ok(self)
    }

    /// The profile with another weight of a plugin's score.
    ///
    /// # Errors
    /// The profile has no plugin of that name, the plugin has no score, or the weight is out of range.
    pub fn weighted(mut self, plugin: &str, weight: i64) -> Result<Self, ProfileError> {
        let at = self.position(plugin)?;
        if self.plugins[at].0.pre_score.is_none() || !(1..=WEIGHT_MAX).contains(&weight) {
            return Err(ProfileError::Weight { profile: self.scheduler_name, plugin: plugin.to_owned(), weight });
        }
        self.plugins[at].1 = weight;
        Ok(self)
    }

    fn position(&self, plugin: &str) -> Result<usize, ProfileError> {
        self.plugins.iter().position(|(known, _)| known.name == plugin).ok_or_else(|| ProfileError::UnknownPlugin {
            profile: self.scheduler_name.clone(),
            plugin: plugin.to_owned(),
        })
    }

    /// Validates the profiles of one scheduler, and returns the plugin that orders the queue.
    pub(crate) fn queue_sort(profiles: &[Self]) -> Result<&'static Plugin, ProfileError> {
        let mut order: Option<&'static Plugin> = None;
        for (at, profile) in profiles.iter().enumerate() {
            let name = &profile.scheduler_name;
            if name.is_empty() {
                return Err(ProfileError::NoName);
            }
            if profiles[..at].iter().any(|other| other.scheduler_name == *name) {
                return Err(ProfileError::Duplicate(name.clone()));
            }
            let mut sorts = profile.at(Point::QueueSort).map(|(plugin, _)| plugin).filter(|p| p.queue_sort.is_some());
            match (sorts.next(), sorts.next()) {
                (Some(only), None) if order.is_none_or(|known| known.name == only.name) => order = Some(only),
                _ => return Err(ProfileError::QueueSort(name.clone())),
            }
        }
        order.ok_or(ProfileError::None)
    }

    /// The plugins at an extension point, in order, with the weights of their scores.
    pub fn at(&self, point: Point) -> impl Iterator<Item = (&'static Plugin, i64)> {
        let of = self.points.as_ref().map(|points| &points.at[point as usize]);
        let all = if of.is_none() { &self.plugins[..] } else { &[] };
        of.into_iter().flatten().chain(all).map(|(plugin, weight)| (*plugin, *weight))
    }

    /// The plugins with `PreFilter`, in order, each with its index among the plugins with `Filter`; none if the profile
    /// doesn't enable its `Filter`.
    pub(crate) fn filtering(&self) -> impl Iterator<Item = (&'static Plugin, Option<usize>)> {
        let of_points = self.points.as_ref().map_or(&[][..], |points| &points.filtering);
        let all = if self.points.is_none() { &self.plugins[..] } else { &[] };
        of_points.iter().copied().chain(all.iter().enumerate().map(|(at, (plugin, _))| (*plugin, Some(at))))
    }

    /// Whether a pod may be queued.
    #[must_use]
    pub fn admits_to_queue(&self, pod: &crate::pod::PodInfo) -> bool {
        self.at(Point::PreEnqueue).filter_map(|(plugin, _)| plugin.pre_enqueue).all(|admits| admits(pod))
    }

    /// Whether a pod that these plugins rejected might fit after an event.
    #[must_use]
    pub fn may_fit_after(
        &self,
        event: &super::Event<'_>,
        pod: &crate::pod::PodInfo,
        refused_by: &std::collections::BTreeSet<&'static str>,
    ) -> bool {
        if refused_by.is_empty() {
            // The pod was rejected because there was no node.
            return matches!(event, super::Event::Node(_, change) if change.added);
        }
        // Extenders and WebAssembly plugins have no queueing hints.
        let elsewhere = |name: &&str| *name == EXTENDER || self.wasm.iter().any(|plugin| plugin.name == *name);
        if refused_by.iter().any(elsewhere) {
            return true;
        }
        let mut refused = self.plugins.iter().filter(|(plugin, _)| refused_by.contains(plugin.name));
        refused.any(|(plugin, _)| (plugin.queueing_hint)(event, pod))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_only_plugins_and_weights_that_exist() {
        let mine = || Profile::named("mine");
        let made = mine().without("PodTopologySpread").unwrap().weighted("NodeAffinity", 7).unwrap();
        assert!(made.plugins.iter().all(|(plugin, _)| plugin.name != "PodTopologySpread"));
        assert!(made.plugins.iter().any(|(plugin, weight)| plugin.name == "NodeAffinity" && *weight == 7));
        let message = |result: Result<Profile, ProfileError>| result.unwrap_err().to_string();
        assert_eq!(message(mine().without("Nonsense")), r#"profile "mine": no plugin is named "Nonsense""#);
        for (plugin, weight) in [("NodeName", 1), ("NodeAffinity", 0), ("NodeAffinity", WEIGHT_MAX + 1)] {
            assert!(matches!(mine().weighted(plugin, weight), Err(ProfileError::Weight { .. })), "{plugin} {weight}");
        }
    }

    #[test]
    fn profiles_have_names_of_their_own_and_one_order() {
        let check = |profiles: &[Profile]| Profile::queue_sort(profiles).map(|plugin| plugin.name);
        let unsorted = || Profile::named("b").without("PrioritySort").unwrap();
        assert_eq!(check(&[Profile::default(), Profile::named("b")]), Ok("PrioritySort"));
        assert_eq!(check(&[]), Err(ProfileError::None));
        assert_eq!(check(&[Profile::named("")]), Err(ProfileError::NoName));
        assert_eq!(check(&[Profile::named("b"), Profile::named("b")]), Err(ProfileError::Duplicate("b".into())));
        assert_eq!(check(&[Profile::default(), unsorted()]), Err(ProfileError::QueueSort("b".into())));
    }
}
