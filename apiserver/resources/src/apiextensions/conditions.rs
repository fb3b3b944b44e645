//! Conditions of a definition's status: accepted names, establishment, structural schema, approval, termination.
//! Pure: computed from definitions; the server writes the result.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::validate::structural_message;
use crate::field::quoted;
use crate::read::{get, items, object_mut, text, texts};

/// Finalizer that deletes a definition's instances first.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// The definition's names conflict with no other definition.
pub const NAMES_ACCEPTED: &str = "NamesAccepted";
/// The definition is served.
pub const ESTABLISHED: &str = "Established";
/// The definition's instances are being deleted.
pub const TERMINATING: &str = "Terminating";
const NON_STRUCTURAL: &str = "NonStructuralSchema";
const POLICY: &str = "KubernetesAPIApprovalPolicyConformant";
/// Annotation that definitions in groups of the Kubernetes community need.
pub(crate) const APPROVAL: &str = "api-approved.kubernetes.io";

/// A definition's condition of a type.
#[must_use]
pub fn find<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    items(get(definition, "status"), "conditions").iter().find(|condition| text(condition, "type") == kind)
}

/// Whether a condition is `True`.
#[must_use]
pub fn is_true(definition: &Value, kind: &str) -> bool {
    find(definition, kind).is_some_and(|condition| text(condition, "status") == "True")
}

/// Sets a condition; `lastTransitionTime` changes only with the status.
pub fn set(definition: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    let old = find(definition, kind);
    let same = old.filter(|old| text(old, "status") == status).map(|old| text(old, "lastTransitionTime").to_owned());
    let since = same.filter(|time| !time.is_empty());
    let since = since.unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let made =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    let status = object_mut(definition, "status");
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| text(condition, "type") == kind) {
        Some(condition) => *condition = made,
        None => conditions.push(made),
    }
}

fn remove(definition: &mut Value, kind: &str) {
    if let Some(conditions) = definition.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        conditions.retain(|condition| text(condition, "type") != kind);
    }
}

/// The definition with updated conditions on names, schema structure and approval; `None` if nothing changes.
/// `others` lists the `acceptedNames` of all other definitions of the group; it is called only if the names aren't
/// accepted yet.
#[must_use]
pub fn judged(definition: &Value, others: impl FnOnce() -> Vec<Arc<Value>>, now: Timestamp) -> Option<Value> {
    let mut new = definition.clone();
    names(&mut new, others, now);
    structure(&mut new, now);
    policy(&mut new, now);
    (new != *definition).then_some(new)
}

/// The definition with an updated condition `Established`; `None` if nothing changes.
#[must_use]
pub fn established(definition: &Value, now: Timestamp) -> Option<Value> {
    if is_true(definition, ESTABLISHED) || !is_true(definition, NAMES_ACCEPTED) {
        return None;
    }
    let mut new = definition.clone();
    let bundle = definition.pointer("/spec/conversion/webhook/clientConfig/caBundle").and_then(Value::as_str);
    if bundle.is_some_and(|bundle| !super::validate::is_ca_bundle(bundle)) {
        set(&mut new, ESTABLISHED, "False", "InvalidCABundle", "The conversion webhook CABundle is invalid", now);
    } else {
        let why = "the initial names have been accepted";
        set(&mut new, ESTABLISHED, "True", "InitialNamesAccepted", why, now);
    }
    (new != *definition).then_some(new)
}

/// Accepts the names that no other definition has, and sets `NamesAccepted`.
fn names(definition: &mut Value, others: impl FnOnce() -> Vec<Arc<Value>>, now: Timestamp) {
    let requested = get(get(definition, "spec"), "names").clone();
    let accepted = get(get(definition, "status"), "acceptedNames").clone();
    if requested == accepted {
        return;
    }
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    let others = others();
    for names in &others {
        resources
            .extend([text(names, "plural"), text(names, "singular")].into_iter().chain(texts(names, "shortNames")));
        kinds.extend([text(names, "kind"), text(names, "listKind")]);
    }
    let mut new = if accepted.is_object() { accepted.clone() } else { json!({}) };
    let mut conflict = None;
    let mut claim = |key: &str, used: &BTreeSet<&str>, reason: &'static str| {
        let name = text(&requested, key);
        if name != text(&accepted, key) && used.contains(name) {
            conflict = Some((reason, format!("{} is already in use", quoted(name))));
        } else if name.is_empty() {
            new.as_object_mut().and_then(|new| new.remove(key));
        } else {
            new[key] = json!(name);
        }
    };
    claim("plural", &resources, "PluralConflict");
    claim("singular", &resources, "SingularConflict");
    claim("kind", &kinds, "KindConflict");
    claim("listKind", &kinds, "ListKindConflict");
    let own: BTreeSet<&str> = texts(&accepted, "shortNames").collect();
    let taken: Vec<String> = texts(&requested, "shortNames")
        .filter(|name| !own.contains(name) && resources.contains(name))
        .map(|name| format!("{} is already in use", quoted(name)))
        .collect();
    for (key, free) in [("shortNames", taken.is_empty()), ("categories", true)] {
        if !free {
            continue;
        }
        match requested.get(key) {
            Some(list) => new[key] = list.clone(),
            None => drop(new.as_object_mut().and_then(|new| new.remove(key))),
        }
    }
    if conflict.is_none() && !taken.is_empty() {
        let all = if taken.len() == 1 { taken[0].clone() } else { format!("[{}]", taken.join(", ")) };
        conflict = Some(("ShortNamesConflict", all));
    }
    object_mut(definition, "status")["acceptedNames"] = new;
    let is_established = is_true(definition, ESTABLISHED);
    match conflict {
        Some((reason, message)) => {
            set(definition, NAMES_ACCEPTED, "False", reason, &message, now);
            if find(definition, ESTABLISHED).is_none() {
                set(definition, ESTABLISHED, "False", "NotAccepted", "not all names are accepted", now);
            }
        }
        None => {
            set(definition, NAMES_ACCEPTED, "True", "NoConflicts", "no conflicts found", now);
            if !is_established {
                let why = "the initial names have been accepted";
                set(definition, ESTABLISHED, "False", "Installing", why, now);
            }
        }
    }
}

/// Schemas from before 1.16 need not be structural; new ones must be.
fn structure(definition: &mut Value, now: Timestamp) {
    match structural_message(definition) {
        Some(message) => set(definition, NON_STRUCTURAL, "True", "Violations", &message, now),
        None => remove(definition, NON_STRUCTURAL),
    }
}

/// The state of the API approval policy.
pub(crate) enum Approval {
    Missing,
    Bypassed(String),
    Approved(String),
    Invalid(String),
}

/// Whether a group belongs to the Kubernetes community.
pub(crate) fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.strip_suffix(domain).is_some_and(|before| before.ends_with('.')))
}

pub(crate) const MISSING_APPROVAL: &str = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";

/// Reads the approval annotation.
pub(crate) fn approval(definition: &Value) -> Approval {
    let annotation = text(get(get(definition, "metadata"), "annotations"), APPROVAL);
    let is_url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && !host.is_empty() && !annotation.contains(' ')
    });
    match annotation {
        "" => Approval::Missing,
        annotation if annotation.starts_with("unapproved") => {
            Approval::Bypassed(format!("not approved: {}", quoted(annotation)))
        }
        annotation if is_url => Approval::Approved(format!("approved in {annotation}")),
        _ => Approval::Invalid(format!(
            "protected groups must have approval annotation {} with either a URL or a reason starting with \"unapproved\", \
             see https://github.com/kubernetes/enhancements/pull/1111",
            quoted(APPROVAL)
        )),
    }
}

fn policy(definition: &mut Value, now: Timestamp) {
    if !is_protected(text(get(definition, "spec"), "group")) {
        return;
    }
    let (status, reason, message) = match approval(definition) {
        Approval::Missing => ("False", "MissingAnnotation", MISSING_APPROVAL.to_owned()),
        Approval::Bypassed(why) => ("False", "UnapprovedAnnotation", why),
        Approval::Approved(why) => ("True", "ApprovedAnnotation", why),
        Approval::Invalid(why) => ("False", "InvalidAnnotation", why),
    };
    set(definition, POLICY, status, reason, &message, now);
}
