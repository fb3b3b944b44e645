//! A pod's containers as one list: init containers, main ones, ephemeral ones. Ephemeral ones are only appended
//! ([`in_stable_order`]), so an index refers to the same container for the pod's lifetime. Pure.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// The class of a container, which determines when it starts and stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// `initContainers`: runs to completion before the next container starts.
    Init,
    /// `initContainers` with `restartPolicy: Always`: the next container starts after it has started; it stops after
    /// the main containers.
    Sidecar,
    /// `containers`: the main containers.
    Main,
    /// `ephemeralContainers`: starts on request, once.
    Ephemeral,
}

/// The containers with their classes.
pub fn each(spec: &PodSpec) -> impl Iterator<Item = (Class, Cow<'_, Container>)> {
    let init = spec.init_containers.iter().flatten().map(|container| (init_class(container), Cow::Borrowed(container)));
    let own = spec.containers.iter().map(|container| (Class::Main, Cow::Borrowed(container)));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    init.chain(own).chain(ephemeral.map(|of| (Class::Ephemeral, Cow::Owned(plain(spec, of)))))
}

/// The containers' names, in the same order.
pub fn names(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let init = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| container.name.as_str());
    init.chain(spec.ephemeral_containers.iter().flatten().map(|container| container.name.as_str()))
}

/// The pod with its ephemeral containers in the order of `had`, and new ones last; `None` if they are in that order.
/// The API accepts any order: a strategic merge patch puts a new one first.
pub(crate) fn in_stable_order(had: &Pod, pod: &Pod) -> Option<Pod> {
    fn listed(pod: &Pod) -> &[EphemeralContainer] {
        pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default()
    }
    let known = |of: &EphemeralContainer| listed(had).iter().position(|known| known.name == of.name);
    let place = |of: &EphemeralContainer| known(of).unwrap_or(usize::MAX);
    if listed(pod).is_sorted_by_key(place) {
        return None;
    }
    let mut ordered = pod.clone();
    if let Some(containers) = ordered.spec.as_mut().and_then(|spec| spec.ephemeral_containers.as_mut()) {
        containers.sort_by_key(place);
    }
    Some(ordered)
}

/// The spec of a pod, or an empty one.
#[must_use]
pub(crate) fn spec(pod: &Pod) -> Cow<'_, PodSpec> {
    pod.spec.as_ref().map_or_else(|| Cow::Owned(PodSpec::default()), Cow::Borrowed)
}

fn init_class(container: &Container) -> Class {
    if container.restart_policy.as_deref() == Some("Always") { Class::Sidecar } else { Class::Init }
}

/// The spec's field of a class, as events name it.
#[must_use]
pub fn field(class: Class) -> &'static str {
    match class {
        Class::Init | Class::Sidecar => "spec.initContainers",
        Class::Main => "spec.containers",
        Class::Ephemeral => "spec.ephemeralContainers",
    }
}

/// An ephemeral container as a container: with the mounts and environment of its target, overridden by its own.
fn plain(spec: &PodSpec, of: &EphemeralContainer) -> Container {
    let others = spec.init_containers.iter().flatten().chain(&spec.containers);
    let target = of.target_container_name.as_deref().filter(|name| !name.is_empty());
    let target = target.and_then(|name| others.into_iter().find(|other| other.name == name));
    let mut volume_mounts: Vec<_> =
        target.into_iter().flat_map(|target| target.volume_mounts.clone()).flatten().collect();
    let own = of.volume_mounts.clone().unwrap_or_default();
    volume_mounts.retain(|mount| own.iter().all(|own| own.mount_path != mount.mount_path));
    volume_mounts.extend(own);
    let env =
        target.into_iter().flat_map(|target| target.env.clone()).chain(of.env.clone()).flatten().collect::<Vec<_>>();
    let env_from = target.into_iter().flat_map(|target| target.env_from.clone()).chain(of.env_from.clone());
    let env_from = env_from.flatten().collect::<Vec<_>>();
    Container {
        name: of.name.clone(),
        image: of.image.clone(),
        image_pull_policy: of.image_pull_policy.clone(),
        command: of.command.clone(),
        args: of.args.clone(),
        working_dir: of.working_dir.clone(),
        env: Some(env).filter(|env| !env.is_empty()),
        env_from: Some(env_from).filter(|from| !from.is_empty()),
        volume_mounts: Some(volume_mounts).filter(|mounts| !mounts.is_empty()),
        volume_devices: of.volume_devices.clone(),
        termination_message_path: of.termination_message_path.clone(),
        termination_message_policy: of.termination_message_policy.clone(),
        security_context: of.security_context.clone(),
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        tty: of.tty,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec_of(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn containers_are_listed_in_order_of_start() {
        let spec = spec_of(json!({
            "containers": [{"name": "m"}, {"name": "n"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j", "restartPolicy": "Never"}],
            "ephemeralContainers": [{"name": "e"}],
        }));
        let list: Vec<_> = each(&spec).map(|(class, container)| (class, container.name.clone())).collect();
        let classes = [Class::Init, Class::Sidecar, Class::Init, Class::Main, Class::Main, Class::Ephemeral];
        let names = ["i", "s", "j", "m", "n", "e"];
        assert_eq!(list, classes.into_iter().zip(names.map(str::to_owned)).collect::<Vec<_>>());
        assert_eq!(super::names(&spec).collect::<Vec<_>>(), names);
    }

    #[test]
    fn an_ephemeral_container_keeps_its_place() {
        let pod = |names: &[&str]| -> Pod {
            let ephemeral: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
            serde_json::from_value(json!({"spec": {"containers": [{"name": "m"}], "ephemeralContainers": ephemeral}}))
                .unwrap()
        };
        let ordered = |had: &[&str], now: &[&str]| {
            let ordered = in_stable_order(&pod(had), &pod(now))?;
            Some(super::names(&spec(&ordered)).map(str::to_owned).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(ordered(&["e", "f"], &["h", "f", "g", "e"]).as_deref(), Some("m e f h g"));
        for now in [&["e", "f"][..], &["e", "f", "b", "a"], &["f"], &[]] {
            assert_eq!(ordered(&["e", "f"], now), None, "{now:?}");
        }
        assert_eq!(in_stable_order(&Pod::default(), &Pod::default()), None);
    }

    #[test]
    fn an_ephemeral_container_sees_the_mounts_of_its_target() {
        let spec = spec_of(json!({
            "containers": [{"name": "m", "env": [{"name": "A", "value": "1"}], "envFrom": [{"configMapRef": {"name": "c"}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}]}],
            "ephemeralContainers": [
                {"name": "e", "image": "i", "targetContainerName": "m", "env": [{"name": "A", "value": "2"}],
                    "volumeMounts": [{"name": "v", "mountPath": "/w"}]},
                {"name": "f", "image": "i"},
            ],
        }));
        let list: Vec<_> = each(&spec).skip(1).map(|(_, container)| container.into_owned()).collect();
        let mounts = |container: &Container| -> Vec<String> {
            container
                .volume_mounts
                .iter()
                .flatten()
                .map(|mount| format!("{}={}", mount.mount_path, mount.name))
                .collect()
        };
        assert_eq!(mounts(&list[0]), ["/v=v", "/w=v"]);
        let env: Vec<_> = list[0].env.iter().flatten().filter_map(|one| one.value.clone()).collect();
        assert_eq!((env, list[0].env_from.as_ref().map(Vec::len)), (vec!["1".to_owned(), "2".to_owned()], Some(1)));
        assert_eq!((mounts(&list[1]).len(), list[1].env.is_none(), list[1].env_from.is_none()), (0, true, true));
    }
}
