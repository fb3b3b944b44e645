//! The subresource `resize` of a Pod (KEP-1287, KEP-5419): in-place changes of CPU and memory, per container and for
//! the pod. Rules and messages are those of upstream's `ValidatePodResize`.

use serde_json::Value;

use super::resources::qos_class;
use super::spec;
use super::update::{MIRROR, annotation_changes, restore_except, semantically_equal};
use crate::field::{ErrorList, Path};
use crate::read::{get, items, items_mut, put, text};

pub(super) const RESIZE: &str = "resize";
const SPEC: Path<'static> = Path::root("spec");
const LISTS: [&str; 2] = ["containers", "initContainers"];
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Restores all other fields of a resized pod, unless containers were added, removed or renamed: validation then fails.
pub(super) fn restore_except_resources(new: &mut Value, old: &Value) {
    let names = |pod: &Value, list: &str| -> Vec<String> {
        items(get(pod, "spec"), list).iter().map(|container| text(container, "name").to_owned()).collect()
    };
    if LISTS.iter().any(|list| names(new, list) != names(old, list)) {
        return;
    }
    restore_except(new, old, |spec, given| {
        for list in LISTS {
            for (container, given) in items_mut(spec, list).iter_mut().zip(items(given, list)) {
                for key in ["resources", "resizePolicy"] {
                    put(container, key, get(given, key).clone());
                }
            }
        }
        put(spec, "resources", get(given, "resources").clone());
    });
}

/// Validates a resize.
pub(super) fn resize(errors: &mut ErrorList, new: &Value, old: &Value) {
    if get(get(get(old, "metadata"), "annotations"), MIRROR).is_string() {
        return errors.forbidden(&Path::root(""), "static pods cannot be resized");
    }
    let (spec, old_spec) = (get(new, "spec"), get(old, "spec"));
    if text(get(old_spec, "os"), "name") == "windows" {
        return errors.forbidden(&Path::root(""), "windows pods cannot be resized");
    }
    let before = errors.count();
    spec::pod(errors, new);
    annotation_changes(errors, new, old);
    let old_class = match text(get(old, "status"), "qosClass") {
        "" => qos_class(old_spec),
        class => class,
    };
    if old_class != qos_class(spec) {
        let class = text(get(new, "status"), "qosClass");
        errors.invalid(&SPEC, class, "Pod QOS Class may not change as a result of resizing");
    }
    if !is_supported(get(old, "status")) {
        errors.forbidden(&SPEC, "Pod running on node without support for resize");
    }
    let (now, was) = (get(spec, "resources"), get(old_spec, "resources"));
    let pod_level = [now, was].iter().any(|of| ["requests", "limits"].iter().any(|key| !is_empty(get(of, key))));
    if pod_level {
        whole_pod(errors, now, was);
    }
    if !same_containers(errors, spec, old_spec) {
        return;
    }
    for list in ["initContainers", "containers"] {
        containers(errors, list, items(spec, list), items(old_spec, list));
    }
    if errors.count() == before && !semantically_equal(&spec_with_old_amounts(spec, old_spec, pod_level), old_spec) {
        errors.forbidden(&SPEC, "only cpu and memory resources are mutable");
    }
}

fn is_empty(amounts: &Value) -> bool {
    amounts.as_object().is_none_or(serde_json::Map::is_empty)
}

/// Whether the node reports the containers' resources, as nodes that support resize do.
fn is_supported(status: &Value) -> bool {
    let mut all = items(status, "containerStatuses").iter();
    let running = all.find(|container| get(get(container, "state"), "running").is_object());
    running.is_none_or(|container| get(container, "resources").is_object())
}

/// Pod-level resources.
fn whole_pod(errors: &mut ErrorList, now: &Value, was: &Value) {
    let at = SPEC.child("resources");
    if was.is_object() && !now.is_object() {
        return errors.forbidden(&at, "pod-level resources cannot be removed");
    }
    if was.is_object() {
        for key in ["requests", "limits"] {
            if has_removed_amount(get(now, key), get(was, key)) {
                errors.forbidden(&at.child(key), &format!("pod-level resource {key} cannot be removed"));
            }
        }
    }
    if !semantically_equal(&pod_with_old_amounts(now, was), was) {
        errors.forbidden(&SPEC, "only cpu and memory resources are mutable at pod-level");
    }
}

/// Whether an amount was removed.
fn has_removed_amount(now: &Value, was: &Value) -> bool {
    was.as_object().into_iter().flatten().any(|(name, _)| now.get(name).is_none())
}

/// Checks that both have the same containers in the same order.
fn same_containers(errors: &mut ErrorList, spec: &Value, old: &Value) -> bool {
    let mut same = true;
    for list in LISTS {
        let (at, now, was) = (SPEC.child(list), items(spec, list), items(old, list));
        if now.len() != was.len() {
            errors.forbidden(&at, &format!("{list} may not be added or removed on resize"));
            same = false;
            continue;
        }
        for (i, (now, was)) in now.iter().zip(was).enumerate() {
            if text(now, "name") != text(was, "name") {
                let why = format!("{list} may not be renamed or reordered on resize");
                errors.forbidden(&at.index(i).child("name"), &why);
                same = false;
            }
        }
    }
    same
}

fn containers(errors: &mut ErrorList, list: &str, now: &[Value], was: &[Value]) {
    let at = SPEC.child(list);
    for (i, (now, was)) in now.iter().zip(was).enumerate() {
        let one = at.index(i);
        let (resources, old) = (get(now, "resources"), get(was, "resources"));
        let resources_at = one.child("resources");
        for key in ["requests", "limits"] {
            if has_removed_amount(get(resources, key), get(old, key)) {
                errors.forbidden(&resources_at.child(key), &format!("resource {key} cannot be removed"));
            }
        }
        let mut masked = now.clone();
        put(&mut masked, "resources", with_old_amounts(resources, old));
        let is_init = list == "initContainers";
        if !semantically_equal(&masked, was) {
            if is_init {
                errors.forbidden(&one, "only cpu and memory resources for init or sidecar containers are mutable");
            } else {
                errors.forbidden(&SPEC, "only cpu and memory resources are mutable");
            }
        }
        if is_init && text(now, "restartPolicy") != "Always" && !semantically_equal(now, was) {
            for policy in items(now, "resizePolicy") {
                if text(policy, "restartPolicy") == "RestartContainer" {
                    let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                    errors.forbidden(&one, why);
                }
            }
        }
    }
}

/// The requirements with the old CPU and memory amounts.
fn with_old_amounts(now: &Value, was: &Value) -> Value {
    if now.is_null() {
        return Value::Null;
    }
    let mut masked = now.clone();
    for key in ["requests", "limits"] {
        let mut amounts = match get(&masked, key) {
            Value::Object(amounts) => amounts.clone(),
            _ => serde_json::Map::new(),
        };
        for name in RESIZABLE {
            match get(was, key).get(name) {
                Some(amount) => amounts.insert(name.to_owned(), amount.clone()),
                None => amounts.remove(name),
            };
        }
        let amounts = if amounts.is_empty() { Value::Null } else { Value::Object(amounts) };
        put(&mut masked, key, amounts);
    }
    masked
}

/// The pod's own requirements with the old CPU and memory amounts: none, if it had none and nothing else is set.
fn pod_with_old_amounts(now: &Value, was: &Value) -> Value {
    let masked = with_old_amounts(now, was);
    let empty = ["requests", "limits"].iter().all(|key| is_empty(get(&masked, key)));
    if was.is_null() && empty && items(&masked, "claims").is_empty() { Value::Null } else { masked }
}

/// The spec with the old CPU and memory amounts.
fn spec_with_old_amounts(spec: &Value, old: &Value, pod_level: bool) -> Value {
    let mut masked = spec.clone();
    for list in LISTS {
        for (container, was) in items_mut(&mut masked, list).iter_mut().zip(items(old, list)) {
            let resources = with_old_amounts(get(container, "resources"), get(was, "resources"));
            put(container, "resources", resources);
        }
    }
    if pod_level {
        let resources = pod_with_old_amounts(get(spec, "resources"), get(old, "resources"));
        put(&mut masked, "resources", resources);
    }
    masked
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: Value) -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                    "terminationMessagePath": "/t", "resources": resources,
                    "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
                }],
            },
        })
    }

    fn errors_of(mut new: Value, old: &Value) -> Vec<String> {
        restore_except_resources(&mut new, old);
        let mut errors = ErrorList::new();
        resize(&mut errors, &new, old);
        errors.shown().iter().map(|error| error.message.clone()).collect()
    }

    #[test]
    fn amounts_of_cpu_and_memory_change_and_nothing_else() {
        let old = pod(json!({"requests": {"cpu": "100m", "ephemeral-storage": "1Gi"}}));
        let mut new = pod(json!({"requests": {"cpu": "200m", "memory": "1Mi", "ephemeral-storage": "1Gi"}}));
        new["spec"]["containers"][0]["image"] = json!("other");
        new["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(errors_of(new.clone(), &old), Vec::<String>::new());
        restore_except_resources(&mut new, &old);
        assert_eq!((&new["spec"]["containers"][0]["image"], &new["metadata"]["labels"]), (&json!("i"), &Value::Null));
        assert_eq!(new["spec"]["containers"][0]["resources"]["requests"]["cpu"], "200m");
        let is = |resources: Value, why: &str| {
            let message = errors_of(pod(resources), &old);
            assert!(message.iter().any(|message| message.contains(why)), "{why}: {message:?}");
        };
        is(json!({"requests": {"ephemeral-storage": "1Gi"}}), "resource requests cannot be removed");
        is(json!({"requests": {"cpu": "1", "ephemeral-storage": "2Gi"}}), "only cpu and memory resources are mutable");
        is(
            json!({"requests": {"cpu": "2", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "1"}}),
            "must be less than or equal to",
        );
        is(
            json!({"requests": {"cpu": "1", "memory": "1Mi", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "1", "memory": "1Mi"}}),
            "Pod QOS Class may not change as a result of resizing",
        );
        let mut policy = pod(json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}}));
        policy["spec"]["containers"][0]["resizePolicy"][0]["restartPolicy"] = json!("RestartContainer");
        assert!(errors_of(policy, &old).contains(&"Forbidden: only cpu and memory resources are mutable".to_owned()));
    }

    #[test]
    fn containers_stay_as_they_are() {
        let old = pod(json!({}));
        let mut more = old.clone();
        let two = json!({"name": "d", "image": "i"});
        more["spec"]["containers"].as_array_mut().unwrap().push(two);
        assert!(
            errors_of(more, &old)
                .iter()
                .any(|message| message.contains("containers may not be added or removed on resize"))
        );
        let mut other = old.clone();
        other["spec"]["containers"][0]["name"] = json!("d");
        assert!(
            errors_of(other, &old)
                .iter()
                .any(|message| message.contains("containers may not be renamed or reordered on resize"))
        );
    }

    #[test]
    fn pods_that_cannot_be_resized_are_rejected() {
        let old = pod(json!({"requests": {"cpu": "1"}}));
        let new = pod(json!({"requests": {"cpu": "2"}}));
        let with = |key: &str, value: Value| {
            let mut old = old.clone();
            old[key] = value;
            errors_of(new.clone(), &old)
        };
        let mirror = json!({"name": "p", "namespace": "default", "annotations": {MIRROR: "x"}});
        assert_eq!(with("metadata", mirror), ["Forbidden: static pods cannot be resized"]);
        let silent = json!({"qosClass": "Burstable", "containerStatuses": [{"name": "c", "state": {"running": {}}}]});
        assert_eq!(with("status", silent), ["Forbidden: Pod running on node without support for resize"]);
    }

    #[test]
    fn a_whole_pods_amounts_change_too() {
        let with = |resources: Value| {
            let mut pod = pod(json!({}));
            pod["spec"]["resources"] = resources;
            pod
        };
        let old = with(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}));
        assert_eq!(
            errors_of(with(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}})), &old),
            Vec::<String>::new()
        );
        let messages_of = |resources: Value| errors_of(with(resources), &old).join("\n");
        assert!(messages_of(Value::Null).contains("pod-level resources cannot be removed"));
        assert!(messages_of(json!({"requests": {"cpu": "1"}})).contains("pod-level resource limits cannot be removed"));
        let huge =
            json!({"requests": {"cpu": "1", "hugepages-2Mi": "2Mi"}, "limits": {"cpu": "2", "hugepages-2Mi": "2Mi"}});
        assert!(messages_of(huge).contains("only cpu and memory resources are mutable at pod-level"));
        let mut burstable = pod(json!({"requests": {"cpu": "1"}}));
        let before = burstable.clone();
        burstable["spec"]["resources"] = json!({"requests": {"cpu": "2"}});
        assert_eq!(errors_of(burstable, &before), Vec::<String>::new(), "a pod without them gets them");
    }
}
