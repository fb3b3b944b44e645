//! ServiceAccount: sets a pod's service account, and mounts its token, the cluster's CA and the namespace as a volume.

use machinery_api::selector::go_quoted;
use std::time::Duration;

use machinery_api::ObjectName;
use machinery_api::error::ApiResult;
use serde_json::{Map, Value, json};

use super::{Context, Effects, MaybeReady, Operation, Plugin, Request, is_mirror, list_mut};
use apiserver_resources::objects::ObjectReader;
use apiserver_resources::rules::path_segment;

/// The maximum wait for the account `default` of a namespace that was just created (upstream: about a second).
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

pub(super) struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, pod: &'a mut Value, _: &'a mut Effects) -> MaybeReady<'a> {
        if !awaits_default(context.request, context.objects, pod) {
            return mutate(context, pod).into();
        }
        MaybeReady::Pending(Box::pin(async move {
            let appears = async {
                loop {
                    let seen = context.objects.now();
                    if !awaits_default(context.request, context.objects, pod) {
                        return;
                    }
                    context.objects.changed(seen).await;
                }
            };
            // After a timeout `mutate` returns the error.
            let _ = context.env.timeout(ACCOUNT_WAIT, appears).await;
            mutate(context, pod)
        }))
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, pod: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        validate(context, pod).into()
    }
}

const DEFAULT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
/// The length of the suffix of a generated volume name, as of any generated name.
const SUFFIX_LETTERS: usize = 5;

/// Whether the pod would be rejected only because the controller has not yet created the namespace's service account
/// `default`.
fn awaits_default(request: &Request<'_>, objects: &dyn ObjectReader, pod: &Value) -> bool {
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    request.is_pod()
        && request.operation == Operation::Create
        && matches!(account, "" | DEFAULT)
        && !is_mirror(pod)
        && objects.get("", "serviceaccounts", request.namespace, DEFAULT).is_none()
        && objects
            .get("", "namespaces", "", request.namespace)
            .is_some_and(|namespace| !namespace["metadata"]["deletionTimestamp"].is_string())
}

fn lookup_error(namespace: &str, name: &str) -> String {
    let wrong = path_segment(name, false);
    let why = match wrong.first() {
        None => format!("serviceaccount {} not found", go_quoted(name)),
        Some(_) => format!("invalid resource name {}: [{}]", go_quoted(name), wrong.join(" ")),
    };
    format!("error looking up service account {}: {why}", ObjectName::new(namespace, name))
}

fn mutate(context: &Context<'_>, pod: &mut Value) -> ApiResult<()> {
    let request = context.request;
    if !request.is_pod() || request.operation != Operation::Create {
        return Ok(());
    }
    if is_mirror(pod) {
        return check_mirror(context, pod);
    }
    let name = match pod["spec"]["serviceAccountName"].as_str() {
        None | Some("") => DEFAULT.to_owned(),
        Some(name) => name.to_owned(),
    };
    let account = context.objects.get("", "serviceaccounts", request.namespace, &name);
    let Some(account) = account else {
        return Err(request.forbidden(pod, lookup_error(request.namespace, &name)));
    };
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    // The deprecated name of the field always has the same value.
    spec.insert("serviceAccountName".into(), name.clone().into());
    spec.insert("serviceAccount".into(), name.into());
    let has_pull_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if let Some(secrets) = account["imagePullSecrets"].as_array().filter(|s| !s.is_empty() && !has_pull_secrets) {
        let names = secrets.iter().map(|secret| match secret["name"].as_str() {
            Some(name) => json!({ "name": name }),
            None => json!({}),
        });
        spec.insert("imagePullSecrets".into(), names.collect());
    }
    if automount {
        mount_token(context, pod);
    }
    Ok(())
}

fn mount_token(context: &Context<'_>, pod: &mut Value) {
    let volumes = pod["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let existing = volumes.iter().filter_map(|v| v["name"].as_str()).find(|name| name.starts_with(VOLUME_PREFIX));
    let (volume, exists) = match existing {
        Some(name) => (name.to_owned(), true),
        None => (format!("{VOLUME_PREFIX}{}", context.env.name_suffix(SUFFIX_LETTERS)), false),
    };
    let mut needed = false;
    for containers in ["initContainers", "containers"] {
        let list = pod["spec"].get_mut(containers).and_then(Value::as_array_mut);
        for container in list.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert(Value::Null);
            if mounts.is_null() {
                *mounts = Value::Array(Vec::new());
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"].as_str() == Some(MOUNT_PATH)) {
                mounts.push(json!({"mountPath": MOUNT_PATH, "name": volume, "readOnly": true}));
                needed = true;
            }
        }
    }
    if needed
        && !exists
        && let Some(volumes) = list_mut(pod, "spec", "volumes")
    {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
                    {"downwardAPI": {"items": [{
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                        "path": "namespace",
                    }]}},
                ],
            },
        }));
    }
}

fn validate(context: &Context<'_>, pod: &Value) -> ApiResult<()> {
    let request = context.request;
    let ephemeral = request.is_ephemeral_containers() && request.operation == Operation::Update;
    if !ephemeral && (!request.is_pod() || request.operation != Operation::Create) {
        return Ok(());
    }
    if is_mirror(pod) && !ephemeral {
        return check_mirror(context, pod);
    }
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if name.is_empty() {
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("no service account specified for pod {}", ObjectName::new(request.namespace, pod_name));
        return Err(request.forbidden(pod, why));
    }
    let Some(account) = context.objects.get("", "serviceaccounts", request.namespace, name) else {
        return Err(request.forbidden(pod, lookup_error(request.namespace, name)));
    };
    let enforce = account["metadata"]["annotations"][ENFORCE_MOUNTABLE].as_str().unwrap_or_default();
    if matches!(enforce, "1" | "t" | "T" | "true" | "TRUE" | "True") {
        let unlisted = match ephemeral {
            true => unlisted_by(&account, pod, &[("ephemeralContainers", "ephemeral container")]),
            false => unlisted_secret(&account, pod),
        };
        unlisted.map_or(Ok(()), |why| Err(request.forbidden(pod, why)))?;
    }
    Ok(())
}

fn items<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object[field].as_array().into_iter().flatten()
}

/// The first reference to a Secret that the account does not list, for accounts with enforced mountable secrets.
fn unlisted_secret(account: &Value, pod: &Value) -> Option<String> {
    let account_name = account["metadata"]["name"].as_str().unwrap_or_default();
    let lists = |field: &str, name: &str| items(account, field).any(|secret| secret["name"].as_str() == Some(name));
    let rest =
        |name: &str| format!("is not allowed because service account {account_name} does not reference that {name}");
    for volume in items(&pod["spec"], "volumes") {
        if let Some(source) = volume["secret"].as_object() {
            let name = source.get("secretName").and_then(Value::as_str).unwrap_or_default();
            if !lists("secrets", name) {
                return Some(format!("volume with secret.secretName=\"{name}\" {}", rest("secret")));
            }
        }
    }
    if let Some(why) = unlisted_by(account, pod, &[("initContainers", "init container"), ("containers", "container")]) {
        return Some(why);
    }
    for (index, secret) in items(&pod["spec"], "imagePullSecrets").enumerate() {
        let name = secret["name"].as_str().unwrap_or_default();
        if !lists("imagePullSecrets", name) {
            return Some(format!("imagePullSecrets[{index}].name=\"{name}\" {}", rest("imagePullSecret")));
        }
    }
    None
}

/// The first such reference in the given lists of containers. Each list has the name of its items.
fn unlisted_by(account: &Value, pod: &Value, fields: &[(&str, &str)]) -> Option<String> {
    let account_name = account["metadata"]["name"].as_str().unwrap_or_default();
    let lists = |name: &str| items(account, "secrets").any(|secret| secret["name"].as_str() == Some(name));
    let rest = format!("is not allowed because service account {account_name} does not reference that secret");
    for (field, title) in fields {
        for container in items(&pod["spec"], field) {
            let title = format!("{title} {}", container["name"].as_str().unwrap_or_default());
            let name_of =
                |source: &Map<String, Value>| source.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for env in items(container, "env") {
                if let Some(name) = env["valueFrom"]["secretKeyRef"].as_object().map(name_of)
                    && !lists(&name)
                {
                    let env = env["name"].as_str().unwrap_or_default();
                    return Some(format!("{title} with envVar {env} referencing secret.secretName=\"{name}\" {rest}"));
                }
            }
            for source in items(container, "envFrom") {
                if let Some(name) = source["secretRef"].as_object().map(name_of)
                    && !lists(&name)
                {
                    return Some(format!("{title} with envFrom referencing secret.secretName=\"{name}\" {rest}"));
                }
            }
        }
    }
    None
}

fn check_mirror(context: &Context<'_>, pod: &Value) -> ApiResult<()> {
    let refused = |why: &str| Err(context.request.forbidden(pod, why));
    let spec = &pod["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return refused("a mirror pod may not reference service accounts");
    }
    if super::node_restriction::referenced_kinds(pod).contains(&"secrets") {
        return refused("a mirror pod may not reference secrets");
    }
    let tokens = items(spec, "volumes")
        .flat_map(|volume| items(&volume["projected"], "sources"))
        .any(|source| source["serviceAccountToken"].is_object());
    if tokens { refused("a mirror pod may not use ServiceAccountToken volume projections") } else { Ok(()) }
}
