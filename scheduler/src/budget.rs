//! PodDisruptionBudgets in the form that preemption reads: finds the pods whose deletion violates a budget. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use machinery_api::ObjectKey;
use machinery_api::selector::LabelSelector;

use crate::pod::{Labels, PodInfo};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Selects the pods of the budget.
    selector: LabelSelector,
    /// The number of pods that may be disrupted.
    allowed: i64,
    /// Pods whose eviction the API server has accepted: `allowed` counts them already.
    disrupted: BTreeSet<String>,
}

/// All budgets, by namespace and name.
pub type Budgets = BTreeMap<ObjectKey, Budget>;

impl Budget {
    /// Extracts the fields that preemption needs; none if the budget selects no pod.
    #[must_use]
    pub fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let selector = serde_json::to_value(budget.spec.as_ref()?.selector.as_ref()?).ok()?;
        let selector = LabelSelector::from_value(Some(&selector)).ok()?;
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        // As upstream: an empty selector selects nothing here, though for the disruption controller it selects
        // everything.
        (!selector.requirements().is_empty()).then(|| Self {
            selector,
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0).into(),
            disrupted: disrupted.into_iter().flatten().map(|(pod, _)| pod.clone()).collect(),
        })
    }
}

/// The budgets of one namespace that select pods with certain labels.
type NamespaceBudgets<'a> = Vec<(&'a ObjectKey, &'a Budget)>;

/// Finds the pods whose deletion violates a budget. The budgets of pods with the same labels are looked up once.
#[derive(Debug)]
pub struct Violations<'a> {
    budgets: &'a Budgets,
    /// By namespace and address of the labels: pods of one template share the labels.
    about: HashMap<(String, *const Labels), NamespaceBudgets<'a>>,
}

impl<'a> Violations<'a> {
    #[must_use]
    pub fn new(budgets: &'a Budgets) -> Self {
        Self { budgets, about: HashMap::new() }
    }

    /// Whether the deletion of each pod violates a budget, if they are deleted in this order. The pods must outlive
    /// `self`.
    pub fn of(&mut self, pods: &[Arc<PodInfo>]) -> Vec<bool> {
        if self.budgets.is_empty() {
            return vec![false; pods.len()];
        }
        let mut used: HashMap<&ObjectKey, i64> = HashMap::new();
        let mut violates = |pod: &Arc<PodInfo>| {
            let mut violated = false;
            for (key, budget) in self.about(pod).iter().filter(|(_, budget)| !budget.disrupted.contains(&pod.key.name))
            {
                let used = used.entry(*key).or_default();
                *used += 1;
                violated |= *used > budget.allowed;
            }
            violated
        };
        pods.iter().map(&mut violates).collect()
    }

    fn about(&mut self, pod: &PodInfo) -> &NamespaceBudgets<'a> {
        let namespace = &pod.key.namespace;
        self.about.entry((namespace.clone(), Arc::as_ptr(&pod.labels))).or_insert_with(|| {
            let from = ObjectKey::new(namespace.clone(), "");
            let own = self.budgets.range(from..).take_while(|(key, _)| key.namespace == *namespace);
            own.filter(|(_, budget)| !pod.labels.is_empty() && budget.selector.matches(&*pod.labels)).collect()
        })
    }
}
