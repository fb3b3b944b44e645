//! ControllerRevisions: the template history of a StatefulSet or DaemonSet, each revision a patch that restores its
//! template.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use machinery_api::ObjectKey;
use machinery_client::selector::selects;
use machinery_client::{Action, Object, ObjectCache, Typed, controlled_by, controller_of, read, value_of};
use serde_json::{Value, json};

/// The label with a revision's hash.
pub(crate) const HASH: &str = "controller.kubernetes.io/hash";
/// The label of a pod with its revision.
pub(crate) const POD_HASH: &str = "controller-revision-hash";
/// The letters of a hash: those of generated names, so that it can't spell words.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// The maximum length of the owner's name in a revision's name.
const PREFIX_LENGTH_MAX: usize = 223;

/// A number in letters that are valid in a name.
pub(crate) fn letters(hash: u32) -> String {
    hash.to_string().bytes().map(|digit| LETTERS[usize::from(digit) % LETTERS.len()] as char).collect()
}

/// The hash of a revision, from its label or else its name.
pub(crate) fn hash_of<'a>(revision: &'a ControllerRevision, label: &str) -> &'a str {
    let given = revision.metadata.labels.as_ref().and_then(|labels| labels.get(label));
    given.or(revision.metadata.name.as_ref()).map_or("", String::as_str)
}

/// The patch that restores a template.
pub(crate) fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = value_of(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template of a revision; none if its data was overwritten with something else.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    read(template).ok()
}

/// The revisions of an owner that its selector matches, its own and orphans, oldest first.
pub(crate) fn of_owner<'a, K: Typed>(
    view: &'a ObjectCache,
    owner: &'a K,
    selector: &LabelSelector,
) -> Vec<&'a ControllerRevision> {
    let metadata = Object::metadata(owner);
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let own = view.controlled::<ControllerRevision>(uid).chain(view.uncontrolled(namespace));
    let mut revisions: Vec<_> = own.filter(|r| selects(selector, r.metadata.labels.as_ref())).collect();
    let age = |r: &ControllerRevision| r.metadata.creation_timestamp.as_ref().map(|at| at.0);
    revisions.sort_by(|a, b| (a.revision, age(a), &a.metadata.name).cmp(&(b.revision, age(b), &b.metadata.name)));
    revisions
}

/// The revision of the current template.
#[derive(Debug)]
pub(crate) enum CurrentRevision<'a> {
    /// It exists and is the latest.
    Exists(&'a ControllerRevision),
    /// To be written first: a new revision, or an old one that becomes the latest.
    Write(Box<Action>),
}

/// Finds the revision of the current template, or the action that writes it; `label` gets its hash. The collision count
/// increases if another template has the name.
/// template has taken the name.
pub(crate) fn present<'a, K: Typed>(
    view: &'a ObjectCache,
    owner: &K,
    template: &PodTemplateSpec,
    label: &str,
    revisions: &[&'a ControllerRevision],
    collisions: &mut i32,
) -> CurrentRevision<'a>
where
    K::Scope: machinery_client::Scope,
{
    let data = data_of(template);
    let next = revisions.last().map_or(1, |latest| latest.revision.saturating_add(1));
    let equal = |r: &&&ControllerRevision| r.data.as_ref().is_some_and(|d| d.0 == data);
    let last = revisions.last().copied();
    if let Some(equal) = revisions.iter().rev().find(equal) {
        return match last.filter(|last| equal.data == last.data) {
            Some(last) => CurrentRevision::Exists(last),
            None => CurrentRevision::Write(Box::new(Action::update(&ControllerRevision {
                revision: next,
                ..(**equal).clone()
            }))),
        };
    }
    // Written by another version, with fewer or other fields of the same meaning.
    if let Some(last) = last.filter(|last| template_of(last).is_some_and(|t| t == *template)) {
        return CurrentRevision::Exists(last);
    }
    let metadata = Object::metadata(owner);
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let owner_name = metadata.name.as_deref().unwrap_or_default();
    loop {
        let hash = letters(hash(&data, *collisions));
        let name = format!("{}-{hash}", prefix(owner_name));
        match view.get::<ControllerRevision>(&ObjectKey::new(namespace, &*name)) {
            Some(taken) if taken.data.as_ref().is_some_and(|d| d.0 == data) => return CurrentRevision::Exists(taken),
            Some(_) => *collisions = collisions.saturating_add(1),
            None => {
                let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
                labels.insert(label.to_owned(), hash);
                return CurrentRevision::Write(Box::new(Action::create(&ControllerRevision {
                    metadata: ObjectMeta {
                        name: Some(name),
                        namespace: Some(namespace.to_owned()),
                        labels: Some(labels),
                        annotations: metadata.annotations.clone(),
                        owner_references: Some(vec![controlled_by(owner)]),
                        ..ObjectMeta::default()
                    },
                    data: Some(RawExtension(data)),
                    revision: next,
                })));
            }
        }
    }
}

/// FNV-1, 32 bits, as upstream's names have it.
fn hash(data: &Value, collisions: i32) -> u32 {
    fnv(&format!("{data}{collisions}"))
}

fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5_u32, |h, byte| h.wrapping_mul(0x0100_0193) ^ u32::from(byte))
}

fn prefix(name: &str) -> &str {
    let mut end = name.len().min(PREFIX_LENGTH_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Adopts orphans.
pub(crate) fn adopt<K: Typed>(owner: &K, revisions: &[&ControllerRevision]) -> Vec<Action> {
    let orphans = revisions.iter().filter(|r| controller_of(&r.metadata).is_none());
    crate::pods::adopt(owner, orphans.copied())
}

/// Deletes the oldest unused revisions beyond the limit.
pub(crate) fn truncate(
    revisions: &[&ControllerRevision],
    live: impl Fn(&str) -> bool,
    limit: Option<i32>,
) -> Vec<Action> {
    let Ok(limit) = usize::try_from(limit.unwrap_or(10)) else { return Vec::new() };
    let dead = |r: &&&ControllerRevision| !live(r.metadata.name.as_deref().unwrap_or_default());
    let history: Vec<_> = revisions.iter().filter(dead).collect();
    history.iter().take(history.len().saturating_sub(limit)).map(|r| Action::delete(**r)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_upstreams() {
        // The test vectors of FNV-1.
        assert_eq!(fnv(""), 0x811c_9dc5);
        assert_eq!(fnv("foobar"), 0x31f0_b262);
        // `SafeEncodeString` of apimachinery's rand.
        assert_eq!(letters(0), "4");
        assert_eq!(letters(1_234_567_890), "56789bcdf4");
    }
}
