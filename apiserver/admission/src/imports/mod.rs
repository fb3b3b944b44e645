//! Import admission, specific to this project: a namespace's annotations restrict which imports the modules of its pods
//! may have. A pod is checked against the imports that its images declare in their metadata. The declared imports are
//! written on the pod (`imports.coracle.dev/<container>`), where policies and webhooks read them. The node enforces
//! them on the module itself, so a wrong declaration or a moved tag prevents the start
//! (`docs/decisions/0081-imports.md`).

mod check;
mod containers;
mod existing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use machinery_api::error::{ApiError, ApiResult, GroupResource};
use machinery_api::imports::ImportPolicy;
use machinery_api::names::IMPORTS;
use machinery_env::{Deadline, Env};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use self::check::{DeclaredImports, findings, sentence};
use self::containers::{Container, changed};
use super::template::pod_template;
use super::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_resources::field::{ErrorList, Path};

/// The maximum time of one image's metadata request.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(5);
/// The maximum time of all metadata requests of one pod.
const POD_TIME_MAX: Duration = Duration::from_secs(10);
/// The maximum number of images looked up per pod. The imports of further images are unknown.
const IMAGES_MAX: usize = 64;
/// The maximum number of concurrent lookups per pod, and for all requests together.
const POD_LOOKUPS_MAX: usize = 8;
const LOOKUPS_MAX: usize = 64;

/// Names of imports, in the order of the module.
pub type ImageImports = Arc<[String]>;

/// Reads the metadata of images. The composition root implements it, because only that may connect to registries.
pub trait ImageMetadata: Send + Sync {
    /// Returns the imports that an image declares, read with these pull secrets. The caller bounds the time.
    ///
    /// # Errors
    /// Returns the reason why the imports are unknown, as text.
    fn imports<'a>(&'a self, image: &'a str, secrets: &'a [Arc<Value>]) -> BoxFuture<'a, Result<ImageImports, String>>;
}

/// The imports of each image, or the reason why they are unknown.
pub(super) type KnownImages = BTreeMap<String, Result<DeclaredImports, String>>;

#[derive(Clone)]
pub(super) struct Imports {
    images: Option<Arc<dyn ImageMetadata>>,
    lookups: Arc<Semaphore>,
}

/// The part of a request that the plugin checks.
enum ImportSubject<'a> {
    /// A pod, and the containers to check.
    Pod(Vec<Container<'a>>),
    /// A pod template's spec, and the containers to check.
    Template(&'a Value, Vec<Container<'a>>),
    Namespace,
    /// A Binding, which adds annotations to a pod.
    Binding,
    Other,
}

fn subject<'a>(context: &Context<'_>, object: &'a Value) -> ImportSubject<'a> {
    let request = context.request;
    if !matches!(request.operation, Operation::Create | Operation::Update) || !object.is_object() {
        return ImportSubject::Other;
    }
    match (request.group, request.resource, request.kind.kind, request.subresource) {
        ("", "pods", "Pod", "status") => ImportSubject::Pod(Vec::new()),
        ("", "pods", "Pod", _) => ImportSubject::Pod(changed(&object["spec"], context.old.map(|old| &old["spec"]))),
        ("", "pods" | "bindings", "Binding", _) => ImportSubject::Binding,
        ("", "namespaces", _, "") => ImportSubject::Namespace,
        (group, resource, _, "") => {
            let Some(template) = pod_template(group, resource, object) else { return ImportSubject::Other };
            let old = context.old.and_then(|old| pod_template(group, resource, old));
            let spec = &template["spec"];
            ImportSubject::Template(spec, changed(spec, old.map(|old| &old["spec"])))
        }
        _ => ImportSubject::Other,
    }
}

/// Reads the policy of the request's namespace.
fn policy_of(context: &Context<'_>) -> ImportPolicy {
    let namespace = context.objects.get("", "namespaces", "", context.request.namespace);
    namespace.map(|namespace| of_namespace(&namespace).0).unwrap_or_default()
}

fn of_namespace(namespace: &Value) -> (ImportPolicy, Vec<(String, String)>) {
    let annotations = namespace["metadata"]["annotations"].as_object().into_iter().flatten();
    ImportPolicy::of(annotations.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))))
}

fn has_import_annotations(object: &Value) -> bool {
    object["metadata"]["annotations"]
        .as_object()
        .is_some_and(|annotations| annotations.keys().any(|name| name.starts_with(IMPORTS)))
}

/// Restores the notes written at the pod's creation. Only containers whose image changed are checked again.
fn restore(object: &mut Value, old: &Value, changed: &[String]) {
    if !has_import_annotations(object) && !has_import_annotations(old) {
        return;
    }
    let stays = |name: &str| name.strip_prefix(IMPORTS).is_some_and(|of| !changed.iter().any(|changed| changed == of));
    let Some(annotations) = annotations_mut(object) else { return };
    annotations.retain(|name, _| !stays(name));
    let before = old["metadata"]["annotations"].as_object().into_iter().flatten().filter(|(name, _)| stays(name));
    annotations.extend(before.map(|(name, value)| (name.clone(), value.clone())));
}

fn annotations_mut(object: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    let annotations = object.get_mut("metadata")?.as_object_mut()?.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations.as_object_mut()
}

impl Plugin for Imports {
    fn name(&self) -> &'static str {
        "Imports"
    }

    fn mutate<'a>(
        &'a self,
        context: &'a Context<'_>,
        object: &'a mut Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        let ImportSubject::Pod(checked) = subject(context, object) else { return MaybeReady::Ready(Ok(())) };
        let names: Vec<String> = checked.iter().map(|container| container.name.to_owned()).collect();
        if let Some(old) = context.old {
            restore(object, old, &names);
        }
        if names.is_empty() || policy_of(context).is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(async move {
            let ImportSubject::Pod(checked) = subject(context, object) else { return Ok(()) };
            self.look_up_images(context, &object["spec"], &checked, &mut effects.images).await;
            let declared = |container: &Container<'_>| {
                let declared = effects.images.get(container.image)?.as_ref().ok()?;
                Some((format!("{IMPORTS}{}", container.name), declared.exactly.as_str().into()))
            };
            let declared: Vec<(String, Value)> = checked.iter().filter_map(declared).collect();
            if !declared.is_empty()
                && let Some(annotations) = annotations_mut(object)
            {
                annotations.extend(declared);
            }
            Ok(())
        }))
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
        let (checked, template) = match subject(context, object) {
            ImportSubject::Pod(checked) => (checked, None),
            ImportSubject::Template(spec, checked) => (checked, Some(spec)),
            ImportSubject::Namespace => return namespace(context, object, effects),
            ImportSubject::Binding if has_import_annotations(object) => {
                let why = format!("annotations {IMPORTS}* of a pod are written when it is admitted");
                return MaybeReady::Ready(Err(context.request.forbidden(object, why)));
            }
            ImportSubject::Binding | ImportSubject::Other => return MaybeReady::Ready(Ok(())),
        };
        if checked.is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        let policy = policy_of(context);
        if policy.is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(async move {
            let spec = template.unwrap_or(&object["spec"]);
            self.look_up_images(context, spec, &checked, &mut effects.images).await;
            match template {
                Some(_) => warn_of_template(&policy, &checked, effects),
                None => return pod(context, object, (&policy, &checked), effects),
            }
            Ok(())
        }))
    }
}

fn pod(
    context: &Context<'_>,
    object: &Value,
    (policy, checked): (&ImportPolicy, &[Container<'_>]),
    effects: &mut Effects,
) -> ApiResult<()> {
    let known = &effects.images;
    if let Some(rules) = &policy.enforce {
        if let Some(found) = findings(rules, checked, known) {
            return Err(context.request.forbidden(object, sentence("violates", "enforce", rules, &found)));
        }
        // A later plugin must not widen the rules that the node enforces.
        for container in checked {
            let (name, declared) = (format!("{IMPORTS}{}", container.name), known.get(container.image));
            let declared =
                declared.and_then(|declared| declared.as_ref().ok()).map(|declared| declared.exactly.as_str());
            if object["metadata"]["annotations"].get(&name).and_then(Value::as_str) != declared {
                let why = format!("another admission plugin changed the annotation {name:?}");
                return Err(context.request.forbidden(object, why));
            }
        }
    }
    if let Some(rules) = &policy.warn
        && let Some(found) = findings(rules, checked, known)
    {
        effects.warnings.push(sentence("would violate", "warn", rules, &found));
    }
    if let Some(rules) = &policy.audit
        && let Some(found) = findings(rules, checked, known)
    {
        effects.audit(format!("{IMPORTS}audit-violations"), sentence("would violate", "audit", rules, &found));
    }
    Ok(())
}

/// Warns about a template: its pods are rejected or warned about only when they are created.
fn warn_of_template(policy: &ImportPolicy, checked: &[Container<'_>], effects: &mut Effects) {
    let modes = [("enforce", &policy.enforce), ("warn", &policy.warn)];
    for (mode, rules) in modes.into_iter().filter_map(|(mode, rules)| Some((mode, rules.as_ref()?))) {
        if let Some(found) = findings(rules, checked, &effects.images) {
            effects.warnings.push(sentence("would violate", mode, rules, &found));
            return;
        }
    }
}

fn namespace<'a>(context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
    let (policy, wrong) = of_namespace(object);
    let old = context.old.map(of_namespace);
    if !wrong.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != wrong) {
        let (metadata, annotations) = (Path::root("metadata"), &object["metadata"]["annotations"]);
        let path = metadata.child("annotations");
        let mut errors = ErrorList::new();
        for (name, why) in &wrong {
            errors.invalid(&path.key(name), annotations[name.as_str()].as_str().unwrap_or_default(), why);
        }
        let name = context.request.name.to_owned();
        let kind = GroupResource::new("", "Namespace");
        return MaybeReady::Ready(Err(ApiError::Invalid(kind, name, errors.into_causes())));
    }
    match (policy.enforce, old) {
        (Some(rules), Some((before, _))) if before.enforce.as_ref() != Some(&rules) => {
            MaybeReady::Pending(Box::pin(async move {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                effects.warnings.extend(existing::warning(context, name, &rules).await);
                Ok(())
            }))
        }
        _ => MaybeReady::Ready(Ok(())),
    }
}

impl Imports {
    pub(super) fn new(images: Option<Arc<dyn ImageMetadata>>) -> Self {
        Self { images, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// Reads the metadata of images that this request has not looked up yet.
    async fn look_up_images(
        &self,
        context: &Context<'_>,
        spec: &Value,
        containers: &[Container<'_>],
        known: &mut KnownImages,
    ) {
        let images: BTreeSet<&str> = containers.iter().map(|container| container.image).collect();
        let images: Vec<&str> = images.into_iter().filter(|image| !known.contains_key(*image)).collect();
        if images.is_empty() {
            return;
        }
        let (secrets, deadline) = (pull_secrets(context, spec), context.env.deadline(POD_TIME_MAX));
        let (looked_up, left) = images.split_at(images.len().min(IMAGES_MAX));
        for some in looked_up.chunks(POD_LOOKUPS_MAX) {
            let lookups = some.iter().map(|image| self.read_metadata(image, &secrets, (context.env, deadline)));
            let results = join_all(lookups).await;
            known.extend(some.iter().map(|image| (*image).to_owned()).zip(results));
        }
        let many = || format!("the pod has more than {IMAGES_MAX} images");
        known.extend(left.iter().map(|image| ((*image).to_owned(), Err(many()))));
    }

    async fn read_metadata(
        &self,
        image: &str,
        secrets: &[Arc<Value>],
        (env, deadline): (&Env, Deadline),
    ) -> Result<DeclaredImports, String> {
        let Some(images) = &self.images else { return Err("this API server asks no registry".into()) };
        if image.is_empty() {
            return Err("it names no image".into());
        }
        let lookup = async {
            let _permit = self.lookups.acquire().await.map_err(|error| error.to_string())?;
            images.imports(image, secrets).await
        };
        let until = deadline.min(env.deadline(LOOKUP_TIME_MAX));
        match env.timeout_at(until, lookup).await {
            Ok(lookup) => DeclaredImports::new(lookup?),
            Err(_) => Err("its registry doesn't answer in time".into()),
        }
    }
}

/// The pull secrets of a pod: its own, or those of its ServiceAccount. A template has no secrets of the ServiceAccount
/// yet.
fn pull_secrets(context: &Context<'_>, spec: &Value) -> Vec<Arc<Value>> {
    let (objects, namespace) = (context.objects, context.request.namespace);
    let named = |of: &Value| -> Vec<String> {
        let all = of["imagePullSecrets"].as_array().into_iter().flatten();
        all.filter_map(|secret| secret["name"].as_str()).map(str::to_owned).collect()
    };
    let mut names = named(spec);
    if names.is_empty() {
        let account = spec["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default");
        names = objects.get("", "serviceaccounts", namespace, account).map(|of| named(&of)).unwrap_or_default();
    }
    names.iter().filter_map(|name| objects.get("", "secrets", namespace, name)).collect()
}
