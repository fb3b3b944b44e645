//! PodDisruptionBudgets as preemption sees them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use machinery_api::ObjectKey;
use machinery_api::selector::LabelSelector;

use crate::pod::{Labels, PodInfo};

/// One budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// The pods that it is about.
    selector: LabelSelector,
    /// How many of them may go.
    allowed: i64,
    /// Those that are going by the API server's leave: they are counted already.
    disrupted: BTreeSet<String>,
}

/// All, by namespace and name.
pub type Budgets = BTreeMap<ObjectKey, Budget>;

impl Budget {
    /// Extracts what matters; none where it is about no pod at all.
    #[must_use]
    pub fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let selector = serde_json::to_value(budget.spec.as_ref()?.selector.as_ref()?).ok()?;
        let selector = LabelSelector::from_value(Some(&selector)).ok()?;
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        // Upstream: here an empty selector is about nothing, though the disruption controller takes it for everything.
        (!selector.requirements().is_empty()).then(|| Self {
            selector,
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0).into(),
            disrupted: disrupted.into_iter().flatten().map(|(pod, _)| pod.clone()).collect(),
        })
    }
}

/// The budgets of one namespace that are about pods with some labels.
type About<'a> = Vec<(&'a ObjectKey, &'a Budget)>;

/// Asks which pods would go against a budget; what is known of pods with the same labels is asked once.
#[derive(Debug)]
pub struct Violations<'a> {
    budgets: &'a Budgets,
    /// By namespace and the labels' address: pods of one template share them.
    about: HashMap<(String, *const Labels), About<'a>>,
}

impl<'a> Violations<'a> {
    /// Of these budgets.
    #[must_use]
    pub fn new(budgets: &'a Budgets) -> Self {
        Self { budgets, about: HashMap::new() }
    }

    /// Which of the pods, going in this order, would go against a budget. They have to live as long as this is asked.
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

    fn about(&mut self, pod: &PodInfo) -> &About<'a> {
        let namespace = &pod.key.namespace;
        self.about.entry((namespace.clone(), Arc::as_ptr(&pod.labels))).or_insert_with(|| {
            let from = ObjectKey::new(namespace.clone(), "");
            let own = self.budgets.range(from..).take_while(|(key, _)| key.namespace == *namespace);
            own.filter(|(_, budget)| !pod.labels.is_empty() && budget.selector.matches(&*pod.labels)).collect()
        })
    }
}
