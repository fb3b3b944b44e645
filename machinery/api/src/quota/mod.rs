//! What objects use of a ResourceQuota: which quotas concern an object, what it counts as, and what is charged or refused.
//! Pure: admission charges by it, the controller recalculates by it.

mod amounts;
mod charge;
mod claims;
mod limited;
mod pods;

use jiff::Timestamp;
use serde_json::Value;

pub use amounts::{Amounts, add, pretty};
pub use charge::{Asked, Charge, Refusal, charge};
pub use limited::LimitedResource;
pub use pods::{limits, requests};

use crate::quantity::{Format, Quantity};

/// What an object is to quotas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluator {
    /// Counts, and what its containers ask for.
    Pods,
    /// Counts, node ports and load balancers.
    Services,
    /// Counts and storage, by class too.
    PersistentVolumeClaims,
    /// Counts and devices by class.
    ResourceClaims,
    /// Each is one, by these names.
    Count(Vec<String>),
}

/// What is done to an object, as far as quotas care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is new.
    Create,
    /// It changes.
    Update,
}

/// The resources that no quota counts.
const IGNORED: &[(&str, &str)] = &[
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("events.k8s.io", "events"),
];
/// Those that are counted by their bare name, too.
const ALIASES: &[&str] = &["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
const SERVICE_NAMES: &[&str] = &["count/services", "services", "services.nodeports", "services.loadbalancers"];

/// `count/deployments.apps`
fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

impl Evaluator {
    /// Of a resource; `None`: it is never counted.
    #[must_use]
    pub fn of(group: &str, resource: &str) -> Option<Self> {
        Some(match (group, resource) {
            ("", "pods") => Self::Pods,
            ("", "services") => Self::Services,
            ("", "persistentvolumeclaims") => Self::PersistentVolumeClaims,
            ("resource.k8s.io", "resourceclaims") => Self::ResourceClaims,
            _ if IGNORED.contains(&(group, resource)) => return None,
            _ => {
                let mut names = vec![count_name(group, resource)];
                if group.is_empty() && ALIASES.contains(&resource) {
                    names.push(resource.to_owned());
                }
                Self::Count(names)
            }
        })
    }

    /// Whether a write may change what is used.
    #[must_use]
    pub fn handles(&self, write: Write, subresource: &str, new: &Value, old: Option<&Value>) -> bool {
        match (self, subresource, write) {
            (Self::Pods, "", Write::Create) => true,
            (Self::Pods, "", Write::Update) => {
                old.is_some_and(|old| pods::is_terminating(old) != pods::is_terminating(new))
            }
            (Self::Pods, "resize", write) => write == Write::Update,
            (Self::Services | Self::PersistentVolumeClaims | Self::ResourceClaims, "", _) => true,
            (Self::PersistentVolumeClaims, "status", _) => old.is_some_and(|old| claims::replenishes(new, old)),
            (Self::Count(_), "", Write::Create) => true,
            _ => false,
        }
    }

    /// Whether it counts as a resource that a quota names.
    #[must_use]
    pub fn counts(&self, name: &str) -> bool {
        match self {
            Self::Pods => pods::counts(name),
            Self::Services => SERVICE_NAMES.contains(&name),
            Self::PersistentVolumeClaims => claims::counts(name),
            Self::ResourceClaims => claims::counts_devices(name),
            Self::Count(names) => names.iter().any(|own| own == name),
        }
    }

    /// Whether an object is in all scopes of a quota.
    #[must_use]
    pub fn in_scopes(&self, quota: &Value, object: &Value) -> bool {
        scopes(quota).all(|scope| self.in_scope(scope, object))
    }

    fn in_scope(&self, scope: Scope<'_>, object: &Value) -> bool {
        match self {
            Self::Pods => pods::in_scope(scope, object),
            Self::PersistentVolumeClaims => claims::in_scope(scope, object),
            _ => false,
        }
    }

    /// What an object uses. A pod that has ended is only counted as an object.
    #[must_use]
    pub fn usage(&self, object: &Value, now: Timestamp) -> Amounts {
        match self {
            Self::Pods => pods::usage(object, now),
            Self::Services => services(object),
            Self::PersistentVolumeClaims => claims::usage(object),
            Self::ResourceClaims => claims::devices(object),
            Self::Count(names) => names.iter().map(|name| (name.clone(), whole(1))).collect(),
        }
    }

    /// What an object must say where a quota limits these resources.
    fn missing(&self, limited: &[&str], object: &Value) -> Option<String> {
        if *self == Self::Pods { pods::missing(limited, object) } else { None }
    }
}

/// One scope of a quota.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) name: &'a str,
    pub(crate) operator: &'a str,
    pub(crate) values: &'a [Value],
}

impl<'a> Scope<'a> {
    fn named(name: &'a str) -> Self {
        Self { name, operator: "Exists", values: &[] }
    }

    fn of(expression: &'a Value) -> Self {
        let text = |field: &str| expression[field].as_str().unwrap_or_default();
        let values = expression["values"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self { name: text("scopeName"), operator: text("operator"), values }
    }

    /// Whether a value of what the scope names is selected; `None`: there is none.
    fn selects(&self, value: Option<&str>) -> bool {
        let listed = || self.values.iter().any(|listed| listed.as_str() == value);
        match self.operator {
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "In" => value.is_some() && listed(),
            "NotIn" => value.is_none() || !listed(),
            _ => false,
        }
    }
}

impl std::fmt::Display for Scope<'_> {
    /// As Go prints a requirement.
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values: Vec<&str> = self.values.iter().filter_map(Value::as_str).collect();
        write!(to, "{{{} {} [{}]}}", self.name, self.operator, values.join(" "))
    }
}

/// All scopes of a quota.
fn scopes(quota: &Value) -> impl Iterator<Item = Scope<'_>> {
    let spec = &quota["spec"];
    let named = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let expressions = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    named.map(Scope::named).chain(expressions.map(Scope::of))
}

fn whole(count: i64) -> Quantity {
    Quantity::from_int(count, Format::DecimalSi)
}

fn services(service: &Value) -> Amounts {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let with_node_port = ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let (node_ports, balancers) = match spec["type"].as_str() {
        Some("NodePort") => (ports.len(), 0),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => (with_node_port, 1),
        Some("LoadBalancer") => (ports.len(), 1),
        _ => (0, 0),
    };
    let counts = [1, 1, i64::try_from(node_ports).unwrap_or(i64::MAX), balancers];
    SERVICE_NAMES.iter().map(|name| (*name).to_owned()).zip(counts.map(whole)).collect()
}

#[cfg(test)]
mod tests;
