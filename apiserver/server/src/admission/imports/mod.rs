//! What pods' modules import, which is this project's own: a namespace's annotations say what its pods may, and a pod is judged by
//! what its images say of themselves. What was said is written on the pod (`imports.coracle.dev/<container>`), where policies and
//! webhooks read it, and where the node holds the module itself to it: an image that lies, or a tag that moves, does not start
//! (`docs/decisions/0081-imports.md`).

mod containers;
mod existing;
mod judge;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use machinery_api::error::{ApiError, ApiResult, Named};
use machinery_api::imports::ImportPolicy;
use machinery_api::names::IMPORTS;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::containers::{Container, changed};
use self::judge::{Said, findings, sentence};
use super::template::pod_template;
use super::{Context, Effects, Operation, Plugin, Step};
use apiserver_resources::field::{FieldError, Path, causes};

/// One image's answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// All of a pod's.
const POD_TIME_MAX: Duration = Duration::from_secs(10);
/// Images of one pod; of more it is not known what they import.
const IMAGES_MAX: usize = 64;
/// Images of one pod that are asked about at once, and of all requests together.
const AT_ONCE: usize = 8;
const AT_ONCE_OF_ALL: usize = 64;

/// Names of imports, in the module's order.
pub type ImageImports = Arc<[String]>;

/// Knows what images say of themselves: the composition does, who may speak to registries.
pub trait ImageMetadata: Send + Sync {
    /// What the module of an image imports, asked with these pull secrets. Who calls bounds the time.
    ///
    /// # Errors
    /// Why that is not known, in words.
    fn imports<'a>(&'a self, image: &'a str, secrets: &'a [Arc<Value>]) -> BoxFuture<'a, Result<ImageImports, String>>;
}

/// What is known of images, or why it is not.
pub(super) type KnownImages = BTreeMap<String, Result<Said, String>>;

/// The plugin.
#[derive(Clone)]
pub(super) struct Imports {
    images: Option<Arc<dyn ImageMetadata>>,
    asking: Arc<Semaphore>,
}

/// What a request is about.
enum About<'a> {
    /// A pod, and the containers that are to be judged.
    Pod(Vec<Container<'a>>),
    /// Who makes pods, with their spec.
    Template(&'a Value, Vec<Container<'a>>),
    Namespace,
    /// What puts annotations on a pod.
    Binding,
    Other,
}

fn about<'a>(context: &Context<'_>, object: &'a Value) -> About<'a> {
    let request = context.request;
    if !matches!(request.operation, Operation::Create | Operation::Update) || !object.is_object() {
        return About::Other;
    }
    match (request.group, request.resource, request.kind.kind, request.subresource) {
        ("", "pods", "Pod", "status") => About::Pod(Vec::new()),
        ("", "pods", "Pod", _) => About::Pod(changed(&object["spec"], context.old.map(|old| &old["spec"]))),
        ("", "pods" | "bindings", "Binding", _) => About::Binding,
        ("", "namespaces", _, "") => About::Namespace,
        (group, resource, _, "") => {
            let Some(template) = pod_template(group, resource, object) else { return About::Other };
            let old = context.old.and_then(|old| pod_template(group, resource, old));
            let spec = &template["spec"];
            About::Template(spec, changed(spec, old.map(|old| &old["spec"])))
        }
        _ => About::Other,
    }
}

/// What the request's namespace asks.
fn policy_of(context: &Context<'_>) -> ImportPolicy {
    let namespace = context.objects.get("", "namespaces", "", context.request.namespace);
    namespace.map(|namespace| of_namespace(&namespace).0).unwrap_or_default()
}

fn of_namespace(namespace: &Value) -> (ImportPolicy, Vec<(String, String)>) {
    let annotations = namespace["metadata"]["annotations"].as_object().into_iter().flatten();
    ImportPolicy::of(annotations.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))))
}

fn has_notes(object: &Value) -> bool {
    object["metadata"]["annotations"]
        .as_object()
        .is_some_and(|notes| notes.keys().any(|name| name.starts_with(IMPORTS)))
}

/// What was written at a pod's creation stays: only a container that has another image is judged anew.
fn restore(object: &mut Value, old: &Value, anew: &[String]) {
    if !has_notes(object) && !has_notes(old) {
        return;
    }
    let stays = |name: &str| name.strip_prefix(IMPORTS).is_some_and(|of| !anew.iter().any(|anew| anew == of));
    let Some(notes) = notes_mut(object) else { return };
    notes.retain(|name, _| !stays(name));
    let before = old["metadata"]["annotations"].as_object().into_iter().flatten().filter(|(name, _)| stays(name));
    notes.extend(before.map(|(name, value)| (name.clone(), value.clone())));
}

fn notes_mut(object: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    let notes = object.get_mut("metadata")?.as_object_mut()?.entry("annotations").or_insert_with(|| json!({}));
    if notes.is_null() {
        *notes = json!({});
    }
    notes.as_object_mut()
}

impl Plugin for Imports {
    fn name(&self) -> &'static str {
        "Imports"
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, effects: &'a mut Effects) -> Step<'a> {
        let About::Pod(judged) = about(context, object) else { return Step::Done(Ok(())) };
        let names: Vec<String> = judged.iter().map(|container| container.name.to_owned()).collect();
        if let Some(old) = context.old {
            restore(object, old, &names);
        }
        if names.is_empty() || policy_of(context).is_empty() {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(async move {
            let About::Pod(judged) = about(context, object) else { return Ok(()) };
            self.look_up(context, &object["spec"], &judged, &mut effects.images).await;
            let said = |container: &Container<'_>| {
                let said = effects.images.get(container.image)?.as_ref().ok()?;
                Some((format!("{IMPORTS}{}", container.name), said.exactly.as_str().into()))
            };
            let said: Vec<(String, Value)> = judged.iter().filter_map(said).collect();
            if !said.is_empty()
                && let Some(notes) = notes_mut(object)
            {
                notes.extend(said);
            }
            Ok(())
        }))
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
        let (judged, template) = match about(context, object) {
            About::Pod(judged) => (judged, None),
            About::Template(spec, judged) => (judged, Some(spec)),
            About::Namespace => return namespace(context, object, effects),
            About::Binding if has_notes(object) => {
                let why = format!("annotations {IMPORTS}* of a pod are written when it is admitted");
                return Step::Done(Err(context.request.refused(object, why)));
            }
            About::Binding | About::Other => return Step::Done(Ok(())),
        };
        if judged.is_empty() {
            return Step::Done(Ok(()));
        }
        let policy = policy_of(context);
        if policy.is_empty() {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(async move {
            let spec = template.unwrap_or(&object["spec"]);
            self.look_up(context, spec, &judged, &mut effects.images).await;
            match template {
                Some(_) => warn_of_template(&policy, &judged, effects),
                None => return pod(context, object, (&policy, &judged), effects),
            }
            Ok(())
        }))
    }
}

fn pod(
    context: &Context<'_>,
    object: &Value,
    (policy, judged): (&ImportPolicy, &[Container<'_>]),
    effects: &mut Effects,
) -> ApiResult<()> {
    let known = &effects.images;
    if let Some(rules) = &policy.enforce {
        if let Some(found) = findings(rules, judged, known) {
            return Err(context.request.refused(object, sentence("violates", "enforce", rules, &found)));
        }
        // Who comes after this plugin must not widen what the node holds the module to.
        for container in judged {
            let (name, said) = (format!("{IMPORTS}{}", container.name), known.get(container.image));
            let said = said.and_then(|said| said.as_ref().ok()).map(|said| said.exactly.as_str());
            if object["metadata"]["annotations"].get(&name).and_then(Value::as_str) != said {
                let why = format!("another admission plugin changed the annotation {name:?}");
                return Err(context.request.refused(object, why));
            }
        }
    }
    if let Some(rules) = &policy.warn
        && let Some(found) = findings(rules, judged, known)
    {
        effects.warnings.push(sentence("would violate", "warn", rules, &found));
    }
    if let Some(rules) = &policy.audit
        && let Some(found) = findings(rules, judged, known)
    {
        effects.audit(format!("{IMPORTS}audit-violations"), sentence("would violate", "audit", rules, &found));
    }
    Ok(())
}

/// Pods of a template are judged one by one; who writes it learns of it before.
fn warn_of_template(policy: &ImportPolicy, judged: &[Container<'_>], effects: &mut Effects) {
    let modes = [("enforce", &policy.enforce), ("warn", &policy.warn)];
    for (mode, rules) in modes.into_iter().filter_map(|(mode, rules)| Some((mode, rules.as_ref()?))) {
        if let Some(found) = findings(rules, judged, &effects.images) {
            effects.warnings.push(sentence("would violate", mode, rules, &found));
            return;
        }
    }
}

fn namespace<'a>(context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
    let (policy, wrong) = of_namespace(object);
    let old = context.old.map(of_namespace);
    if !wrong.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != wrong) {
        let (metadata, notes) = (Path::root("metadata"), &object["metadata"]["annotations"]);
        let path = metadata.child("annotations");
        let error = |(name, why): &(String, String)| {
            FieldError::invalid(&path.key(name), notes[name.as_str()].as_str().unwrap_or_default(), why)
        };
        let errors = wrong.iter().map(error).collect();
        let name = context.request.name.to_owned();
        return Step::Done(Err(ApiError::Invalid(Named::new("", "Namespace"), name, causes(errors))));
    }
    match (policy.enforce, old) {
        (Some(rules), Some((before, _))) if before.enforce.as_ref() != Some(&rules) => {
            Step::Wait(Box::pin(async move {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                effects.warnings.extend(existing::warning(context, name, &rules).await);
                Ok(())
            }))
        }
        _ => Step::Done(Ok(())),
    }
}

impl Imports {
    pub(super) fn new(images: Option<Arc<dyn ImageMetadata>>) -> Self {
        Self { images, asking: Arc::new(Semaphore::new(AT_ONCE_OF_ALL)) }
    }

    /// Asks about the images that nobody has asked about in this request.
    async fn look_up(
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
        let (secrets, deadline) = (pull_secrets(context, spec), Instant::now() + POD_TIME_MAX);
        let (asked, left) = images.split_at(images.len().min(IMAGES_MAX));
        for some in asked.chunks(AT_ONCE) {
            let answers = join_all(some.iter().map(|image| self.ask(image, &secrets, deadline))).await;
            known.extend(some.iter().map(|image| (*image).to_owned()).zip(answers));
        }
        let many = || format!("the pod has more than {IMAGES_MAX} images");
        known.extend(left.iter().map(|image| ((*image).to_owned(), Err(many()))));
    }

    async fn ask(&self, image: &str, secrets: &[Arc<Value>], deadline: Instant) -> Result<Said, String> {
        let Some(images) = &self.images else { return Err("this API server asks no registry".into()) };
        if image.is_empty() {
            return Err("it names no image".into());
        }
        let answer = async {
            let _turn = self.asking.acquire().await.map_err(|error| error.to_string())?;
            images.imports(image, secrets).await
        };
        let until = deadline.min(Instant::now() + ANSWER_TIME_MAX);
        match tokio::time::timeout_at(until, answer).await {
            Ok(answer) => Said::of(answer?),
            Err(_) => Err("its registry doesn't answer in time".into()),
        }
    }
}

/// What a pod's images are pulled with: of itself, or where that has none, of its ServiceAccount, which a template doesn't have yet.
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
