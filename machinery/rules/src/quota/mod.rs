//! ResourceQuota evaluation: which quotas match an object, its usage, and the charge or rejection of a write. Pure:
//! shared by admission (charging) and the controller (recalculation).

mod amounts;
mod charge;
mod claims;
mod limited;
mod pods;

use jiff::Timestamp;
use serde_json::Value;

pub use amounts::{Amounts, add, pretty};
pub use charge::{Charge, QuotaCheck, Refusal, charge};
pub use limited::LimitedResource;
pub use pods::{limits, requests};

use machinery_api::quantity::{Format, Quantity};

/// The usage rules of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluator {
    /// Object count, and the containers' requests and limits.
    Pods,
    /// Object count, node ports and load balancers.
    Services,
    /// Object count and storage, also by class.
    PersistentVolumeClaims,
    /// Object count and devices by class.
    ResourceClaims,
    /// Object count only, under these names.
    Count(Vec<String>),
}

/// The operations that affect quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// A create.
    Create,
    /// An update.
    Update,
}

/// Resources that are never counted.
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
/// Resources that are also counted by their plain name.
const ALIASES: &[&str] = &["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
const SERVICE_NAMES: &[&str] = &["count/services", "services", "services.nodeports", "services.loadbalancers"];

/// `count/deployments.apps`
fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

impl Evaluator {
    /// The rules of a resource; `None` if it is never counted.
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

    /// Whether a write may change usage.
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

    /// Whether it counts a quota's resource name.
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

    /// Whether an object matches all scopes of a quota.
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

    /// An object's usage. A terminated pod counts as an object only.
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

    /// The fields that an object must set because a quota limits these resources.
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

    /// Whether the scope's operator selects a value; `None` for a missing one.
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
    /// In Go's format of a requirement.
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
