//! Sizes of the workloads that pods belong to: built-in kinds from the view, other kinds through their `scale`
//! subresource (<https://kubernetes.io/docs/tasks/run-application/configure-pdb/#arbitrary-controllers-and-selectors>).

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use machinery_api::{GroupVersion, ObjectKey};
use machinery_client::{ObjectCache, Pass, Pod, controller_of};

use crate::scale::{Mapping, Scale, Stop, fetch, implements_scale, mapping};

/// The sum of the workloads' sizes, and whether some pods have no workload. All effects of a pass are sent at once.
pub(super) fn sum(view: &ObjectCache, pass: &Pass, chosen: &[&Pod]) -> Result<(i32, bool), Stop> {
    let (mut seen, mut sum, mut unmanaged) = (BTreeSet::new(), 0_i32, false);
    let (mut known, mut effects) = (Vec::new(), Vec::new());
    for pod in chosen {
        let Some(owner) = controller_of(&pod.metadata) else {
            unmanaged = true;
            continue;
        };
        if !seen.insert(owner.uid.clone()) {
            continue;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = match built_in(view, namespace, owner) {
            BuiltIn::Is(found) => found,
            BuiltIn::Not => match by_scale(pass, &mut known, namespace, owner) {
                Ok(found) => found,
                Err(Stop::Ask(more)) => {
                    effects.extend(more.into_iter().filter(|one| !effects.contains(one)).collect::<Vec<_>>());
                    continue;
                }
                Err(failed) => return Err(failed),
            },
        };
        let Some((uid, size)) = found else {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(Stop::Failed(format!("found no controllers for pod {name:?}")));
        };
        // Two ReplicaSets of one Deployment are one workload.
        if uid == owner.uid || seen.insert(uid) {
            sum = sum.saturating_add(size);
        }
    }
    if effects.is_empty() { Ok((sum, unmanaged)) } else { Err(Stop::Ask(effects)) }
}

/// A workload's UID and size; `None`: it doesn't exist, or its name belongs to another object.
type WorkloadSize = Option<(String, i32)>;

enum BuiltIn {
    Is(WorkloadSize),
    Not,
}

/// The built-in workload at the end of a pod's owner chain.
fn built_in(view: &ObjectCache, namespace: &str, owner: &OwnerReference) -> BuiltIn {
    let key = ObjectKey::new(namespace, &*owner.name);
    let of_same = |uid: Option<&String>| uid == Some(&owner.uid);
    let own = |replicas: Option<i32>| (owner.uid.clone(), replicas.unwrap_or(1));
    let group = GroupVersion::parse(&owner.api_version).group;
    BuiltIn::Is(match (group, &*owner.kind) {
        ("apps" | "extensions", "ReplicaSet") => {
            let set = view.get::<ReplicaSet>(&key).filter(|set| of_same(set.metadata.uid.as_ref()));
            set.and_then(|set| match controller_of(&set.metadata).filter(|above| above.kind == "Deployment") {
                None => Some(own(set.spec.as_ref().and_then(|spec| spec.replicas))),
                Some(above) => {
                    let deployment = view.get::<Deployment>(&ObjectKey::new(namespace, &*above.name));
                    let deployment = deployment.filter(|found| found.metadata.uid.as_ref() == Some(&above.uid))?;
                    Some((above.uid.clone(), deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)))
                }
            })
        }
        ("apps", "StatefulSet") => {
            let set = view.get::<StatefulSet>(&key).filter(|set| of_same(set.metadata.uid.as_ref()));
            set.map(|set| own(set.spec.as_ref().and_then(|spec| spec.replicas)))
        }
        ("", "ReplicationController") => {
            let set = view.get::<ReplicationController>(&key).filter(|set| of_same(set.metadata.uid.as_ref()));
            set.map(|set| own(set.spec.as_ref().and_then(|spec| spec.replicas)))
        }
        _ => return BuiltIn::Not,
    })
}

/// The size of any other workload, from its `scale`.
fn by_scale(
    pass: &Pass,
    known: &mut Vec<Mapping>,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<WorkloadSize, Stop> {
    let mapping = mapping(pass, known, &owner.api_version, &owner.kind)?;
    match fetch(pass, &mapping.scale(namespace, &owner.name))? {
        Ok(scale) if scale["metadata"]["uid"] == *owner.uid => Ok(Some((owner.uid.clone(), Scale::read(scale).wanted))),
        Ok(_) => Ok(None),
        // Either the workload is gone, or its kind has no `scale`.
        Err(failure) if failure.code == 404 => match implements_scale(pass, &mapping)? {
            true => Ok(None),
            false => Err(Stop::Failed(format!("{} does not implement the scale subresource", mapping.resource()))),
        },
        Err(failure) => Err(Stop::Failed(failure.message.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use machinery_client::{Effect, Failure};
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, owner: Option<(&str, &str)>) -> Pod {
        let owner = owner.map(|(kind, name)| {
            json!([{"apiVersion": "example.com/v1", "kind": kind, "name": name, "uid": name, "controller": true}])
        });
        let metadata = json!({"name": name, "namespace": "a", "ownerReferences": owner.unwrap_or(json!([]))});
        serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}}),
        )
        .unwrap()
    }

    /// Repeats the pass with the answers of a server that has these paths.
    fn sum_with_responses(pods: &[Pod], server: &[(&str, Value)]) -> Result<(i32, bool), String> {
        let view = crate::simulation(crate::table_tests::start(), Vec::new()).view;
        let mut pass = Pass::default();
        for _ in 0..9 {
            let effects = match sum(&view, &pass, &pods.iter().collect::<Vec<_>>()) {
                Ok(found) => return Ok(found),
                Err(Stop::Failed(why)) => return Err(why),
                Err(Stop::Ask(effects)) => effects,
            };
            for effect in effects {
                let Effect::Get(path) = &effect else { panic!("{effect:?}") };
                let found = server.iter().find(|(known, _)| known == path).map(|(_, value)| Arc::new(value.clone()));
                let gone = || Failure {
                    verb: "get",
                    resource: String::new(),
                    code: 404,
                    reason: "NotFound".into(),
                    message: "not found".into(),
                };
                pass.record(effect, found.ok_or_else(gone));
            }
        }
        panic!("it asks on")
    }

    #[test]
    fn the_size_of_a_custom_kind_is_its_scale() {
        let list = json!({"resources": [{"name": "games", "kind": "Game"}, {"name": "games/scale", "kind": "Scale",
            "group": "autoscaling", "version": "v1"}, {"name": "plays", "kind": "Play"}]});
        let scale = |uid: &str, size: i32| json!({"metadata": {"uid": uid}, "spec": {"replicas": size}});
        let server = [
            ("/apis/example.com/v1", list),
            ("/apis/example.com/v1/namespaces/a/games/chess/scale", scale("chess", 3)),
            ("/apis/example.com/v1/namespaces/a/games/go/scale", scale("go", 4)),
            ("/apis/example.com/v1/namespaces/a/games/new/scale", scale("another", 5)),
        ];
        let of = |owners: &[Option<(&str, &str)>]| {
            let pods: Vec<Pod> = owners.iter().enumerate().map(|(i, owner)| pod(&format!("p{i}"), *owner)).collect();
            sum_with_responses(&pods, &server)
        };
        let (chess, go) = (Some(("Game", "chess")), Some(("Game", "go")));
        assert_eq!(of(&[chess, chess, go]), Ok((7, false)));
        assert_eq!(of(&[chess, None]), Ok((3, true)));
        assert_eq!(of(&[Some(("Game", "gone"))]), Err("found no controllers for pod \"p0\"".into()));
        assert_eq!(of(&[chess, Some(("Game", "new"))]), Err("found no controllers for pod \"p1\"".into()));
        let without = "plays.example.com does not implement the scale subresource";
        assert_eq!(of(&[Some(("Play", "a"))]), Err(without.into()));
        assert_eq!(of(&[Some(("Tune", "a"))]), Err("no matches for kind \"Tune\" in group \"example.com\"".into()));
    }
}
