//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: call webhooks about written objects.

#[cfg(test)]
mod fuzz;
mod index;
mod review;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apiserver_schema::apply::Managers;
use apiserver_schema::patch::{self, JsonPatchRefusal, PatchKind};
use apiserver_schema::{self as schema, FieldValidation, Target};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use machinery_api::GroupVersionKind;
use machinery_api::error::{ApiError, ApiResult};
use machinery_api::selector::go_quoted;
use serde_json::Value;

use self::index::{Hook, Index};
use self::review::{ReviewResponse, ReviewTarget};
use super::matching::{Matched, has_own_body, is_exempt, resource_of};
use super::review_input::with_managers;
use super::{Context, Effects, Managed, MaybeReady, Plugin};
use apiserver_catalog::{Catalog, SharedCatalog};
use apiserver_resources::{ResourceInfo, rules};
use apiserver_webhook::{Accounts, AdmissionPhase, CallOutcome, Caller, WebhookRequest};

/// The maximum response size: a base64 patch of the largest body, and as much again.
const RESPONSE_BYTES_MAX: usize = 8 << 20;
const GROUP: &str = "admissionregistration.k8s.io";

/// The state of each plugin.
pub(super) struct Webhooks {
    served: Arc<SharedCatalog>,
    caller: Caller,
    accounts: Accounts,
    plural: &'static str,
    index: ArcSwap<Index>,
}

impl Webhooks {
    fn new(served: Arc<SharedCatalog>, (caller, accounts): (Caller, Accounts), plural: &'static str) -> Self {
        Self { served, caller, accounts, plural, index: ArcSwap::default() }
    }

    /// Returns the webhooks that may match a request.
    fn candidates(&self, context: &Context<'_>) -> Vec<Arc<Hook>> {
        if is_exempt(context.request) {
            return Vec::new();
        }
        let revision = context.objects.revision(GROUP, self.plural);
        let mut index = self.index.load_full();
        if index.revision != revision {
            let configurations = context.objects.list(GROUP, self.plural, None);
            index = Arc::new(Index::new(revision, &configurations, (&self.served.load(), &self.accounts), &index));
            self.index.store(index.clone());
        }
        index.candidates(context.request.group, context.request.resource)
    }

    /// Calls a webhook with an object in the version that it matched.
    async fn send_review(
        &self,
        call: &WebhookCall<'_>,
        reviewed: &Value,
        old: Option<&Value>,
        mutating: bool,
    ) -> Result<ReviewResponse, Failure> {
        let (hook, context) = (call.hook, call.context);
        if context.request.options.dry_run() && !hook.has_no_side_effects {
            let why = format!("admission webhook {} does not support dry run", go_quoted(&hook.id.1));
            return Err(Failure::Rejected(ApiError::BadRequest(why)));
        }
        let failed = |why: String, code: u16| {
            Failure::Call(format!("failed calling webhook {}: {why}", go_quoted(&hook.id.1)), code)
        };
        let version = hook.version.ok_or_else(|| {
            let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            failed(format!("could not create admission objects: {why}"), 400)
        })?;
        let client = hook.client.as_ref().map_err(|why| failed(format!("could not get REST client: {why}"), 500))?;
        let uid = context.env.uid();
        let sent = review::request(version, &uid, context.request, &call.target(), reviewed, old).to_string();
        let (body, timeout) = (Bytes::from(sent), hook.timeout);
        let request = WebhookRequest { body, timeout, response_bytes_max: RESPONSE_BYTES_MAX };
        let called = client.post(&self.caller, request).await;
        let response = called.map_err(|no| failed(format!("failed to call webhook: {}", no.why), no.code))?;
        review::parse(&response.bytes, version, &uid, mutating).map_err(|why| failed(why, 503))
    }

    /// Records the metrics of a call that began at `started`.
    fn record_metrics(&self, call: &WebhookCall<'_>, phase: AdmissionPhase, outcome: CallOutcome, started: Duration) {
        let (context, name) = (call.context, &call.hook.id.1);
        let duration = context.env.elapsed().saturating_sub(started);
        self.caller.metrics.admission(name, phase, context.request.operation.as_str(), outcome, duration);
    }
}

/// Why a webhook did not admit a request.
enum Failure {
    /// The call failed, or the response is invalid. The code goes into the metrics.
    Call(String, u16),
    Rejected(ApiError),
}

impl Failure {
    fn outcome(&self, hook: &Hook) -> CallOutcome {
        match self {
            Self::Rejected(_) => CallOutcome::ServerError,
            Self::Call(_, code) if hook.is_optional => CallOutcome::FailedOpen(*code),
            Self::Call(_, code) => CallOutcome::Failed(*code),
        }
    }
}

/// A webhook that matches the request.
struct WebhookCall<'a> {
    hook: &'a Hook,
    context: &'a Context<'a>,
    matched: Matched,
    catalog: &'a Catalog,
}

impl<'a> WebhookCall<'a> {
    /// Returns `None` if the webhook does not match the request.
    async fn if_matched(
        hook: &'a Hook,
        context: &'a Context<'a>,
        object: &Value,
        catalog: &'a Catalog,
    ) -> ApiResult<Option<Self>> {
        let matcher = hook.matcher.as_ref().map_err(|why| ApiError::Internal(why.clone()))?;
        let Some(matched) = matcher.matches(context, object, catalog)? else { return Ok(None) };
        let call = Self { hook, context, matched, catalog };
        let Some(conditions) = &hook.conditions else { return Ok(Some(call)) };
        let conditions = conditions.get().await?;
        let reviewed = call.matched.convert(context, catalog, object).await?;
        let old = call.old().await?;
        let holds = conditions.hold(context, (&reviewed, old.as_deref()), &call.matched);
        let holds = holds.map_err(|why| context.request.forbidden(object, why))?;
        Ok(holds.then_some(call))
    }

    fn own(&self) -> Option<&'a Arc<ResourceInfo>> {
        resource_of(self.context.request, self.catalog)
    }

    fn target(&self) -> ReviewTarget<'_> {
        let request = self.context.request;
        match &self.matched {
            Matched::Requested => {
                ReviewTarget { kind: request.kind, resource: (request.group, request.version, request.resource) }
            }
            Matched::Equivalent(other) => {
                // A subresource with a body of its own kind has it in every version.
                let kind = match self.has_own_body() {
                    true => other.gvk(),
                    false => request.kind,
                };
                ReviewTarget { kind, resource: (&other.group, &other.version, &other.plural) }
            }
        }
    }

    fn has_own_body(&self) -> bool {
        has_own_body(self.context.request, self.catalog)
    }

    /// The stored object in the version that the webhook matched.
    async fn old(&self) -> ApiResult<Option<Cow<'a, Value>>> {
        match self.context.old {
            Some(old) => self.matched.convert(self.context, self.catalog, old).await.map(Some),
            None => Ok(None),
        }
    }

    /// The stored object with its managed fields.
    async fn old_managed(&self, managed: &Managed) -> ApiResult<Option<Value>> {
        let old = self.old().await?;
        Ok(old.map(|old| with_managers(old.into_owned(), &managed.old)))
    }

    /// Applies a patch, then decodes and defaults the result like a request body.
    fn apply_patch(&self, patch: &[u8], reviewed: &Value) -> ApiResult<Value> {
        let operations: Vec<serde::de::IgnoredAny> = serde_json::from_slice(patch).map_err(|error| {
            let why = format!("received undecodable patch in webhook response: {error}");
            ApiError::Internal(format!("failed calling webhook {}: {why}", go_quoted(&self.hook.id.1)))
        })?;
        if operations.is_empty() {
            return Ok(reviewed.clone());
        }
        if !reviewed.is_object() {
            let name = go_quoted(&self.hook.id.1);
            let why = "attempted to modify the object, which is not supported for this operation";
            return Err(ApiError::Internal(format!("admission webhook {name} {why}")));
        }
        let row = match &self.matched {
            Matched::Equivalent(other) => Some(other),
            Matched::Requested => self.own(),
        };
        let row = row.filter(|_| self.has_own_body());
        let GroupVersionKind { group, version, kind } = self.target().kind;
        let types = row.map(|row| row.schema.hold());
        let target = match (row, &types) {
            (Some(row), Some(types)) => row.target(types),
            _ => Target::kind(group, version, kind).ok_or_else(|| ApiError::Internal(format!("no type for {kind}")))?,
        };
        let decoded = patch::apply(PatchKind::Json, patch, reviewed, &target, FieldValidation::Ignore);
        let decoded = decoded.map_err(|error| {
            ApiError::Internal(match patch::json_refusal(patch, reviewed) {
                Some(JsonPatchRefusal::Test(why) | JsonPatchRefusal::Operation(why)) => why,
                None => error.status().message,
            })
        })?;
        let mut object = decoded.object;
        schema::default(target.schema, &mut object);
        if let Some(row) = row {
            row.strategy.default(&mut object);
        }
        Ok(object)
    }
}

/// State of a request's first round of webhooks that the second round needs.
#[derive(Debug, Default)]
pub struct Reinvocation {
    /// A webhook changed the object, so that the plugins run again.
    pub(super) is_due: bool,
    /// Whether this is the second round.
    pub(super) is_second: bool,
    /// The object as the last webhook left it.
    output: Option<Value>,
    /// Webhooks with `reinvocationPolicy: IfNeeded`.
    interested: Vec<(String, String)>,
    /// Webhooks of `interested` that are called again.
    again: Vec<(String, String)>,
}

impl Reinvocation {
    /// Whether a webhook changed the object.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    fn repeat_interested(&mut self) {
        self.again.append(&mut self.interested);
    }
}

/// Calls the mutating webhooks in sequence.
pub(super) struct Mutating(Webhooks);

impl Mutating {
    pub(super) fn new(served: Arc<SharedCatalog>, caller: (Caller, Accounts)) -> Self {
        Self(Webhooks::new(served, caller, "mutatingwebhookconfigurations"))
    }

    async fn call_all(
        &self,
        hooks: Vec<Arc<Hook>>,
        context: &Context<'_>,
        object: &mut Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let catalog = self.0.served.load();
        let again = &mut effects.reinvocation;
        if again.is_second && again.output.as_ref().is_some_and(|output| output != object) {
            again.repeat_interested();
        }
        for hook in &hooks {
            let Some(call) = WebhookCall::if_matched(hook, context, object, &catalog).await? else { continue };
            if effects.reinvocation.is_second && !effects.reinvocation.again.contains(&hook.id) {
                continue;
            }
            let changed = self.call_one(&call, object, effects).await?;
            if changed {
                effects.reinvocation.repeat_interested();
                effects.reinvocation.is_due = true;
            }
            if hook.is_reinvoked && !effects.reinvocation.interested.contains(&hook.id) {
                effects.reinvocation.interested.push(hook.id.clone());
            }
        }
        effects.reinvocation.output = Some(object.clone());
        Ok(())
    }

    /// Calls one webhook and returns whether it changed the object.
    async fn call_one(&self, call: &WebhookCall<'_>, object: &mut Value, effects: &mut Effects) -> ApiResult<bool> {
        let started = call.context.env.elapsed();
        let (outcome, done) = match self.call_webhook(call, object, effects).await {
            Ok((outcome, done)) => (outcome, done),
            Err(error) => (CallOutcome::ServerError, Err(error)),
        };
        self.0.record_metrics(call, AdmissionPhase::Admit, outcome, started);
        done
    }

    async fn call_webhook(
        &self,
        call: &WebhookCall<'_>,
        object: &mut Value,
        effects: &mut Effects,
    ) -> ApiResult<(CallOutcome, ApiResult<bool>)> {
        let (context, catalog) = (call.context, call.catalog);
        let reviewed = call.matched.convert_normalised(context, catalog, object).await?;
        let mut reviewed = with_managers(reviewed, &effects.managed.new);
        let old = call.old_managed(&effects.managed).await?;
        let mut response = match self.0.send_review(call, &reviewed, old.as_ref(), true).await {
            Ok(response) => response,
            Err(failure) => {
                return Ok((failure.outcome(call.hook), resolve_failure(call.hook, failure).map(|()| false)));
            }
        };
        effects.warnings.append(&mut response.warnings);
        add_audit_annotations(call.hook, response.annotations, effects);
        if !response.allowed {
            let error = review::rejection_error(&call.hook.id.1, response.status);
            return Ok((CallOutcome::Rejected(error.status().code), Err(error)));
        }
        if response.patch.is_empty() {
            return Ok((CallOutcome::Allowed, Ok(false)));
        }
        let mut patched = call.apply_patch(&response.patch, &reviewed)?;
        let managers = take_managers(&mut patched);
        if managers != take_managers(&mut reviewed) {
            replace_managers(managers, effects);
        }
        call.matched.normalise(context.request, catalog, &mut patched);
        let changed = patched != reviewed;
        if changed {
            *object = call.matched.convert_back(context, catalog, patched).await?;
        }
        Ok((CallOutcome::Allowed, Ok(changed)))
    }
}

fn take_managers(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Takes over the managed fields of a webhook's patch, if they are valid.
fn replace_managers(managers: Option<Value>, effects: &mut Effects) {
    match Managers::of_value(&managers.unwrap_or_default()) {
        Ok(managers) => effects.managed.new = managers,
        Err(why) => effects.warnings.push(format!(
            ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating \
             admission controller; please fix your requests: {why}"
        )),
    }
}

/// Adds a webhook's audit annotations, prefixed with its name.
fn add_audit_annotations(hook: &Hook, annotations: BTreeMap<String, String>, effects: &mut Effects) {
    for (name, value) in annotations {
        let key = [&*hook.id.1, &*name].join("/");
        if !name.contains('/') && rules::label_key(&key).is_empty() {
            effects.audit(key, value);
        } else {
            tracing::warn!(hook = hook.id.1, name, "an audit annotation of a webhook was dropped: its name is invalid");
        }
    }
}

/// Converts a failure into an error, or ignores it if the webhook is optional.
fn resolve_failure(hook: &Hook, failure: Failure) -> ApiResult<()> {
    match failure {
        Failure::Rejected(error) => Err(error),
        Failure::Call(why, _) if hook.is_optional => {
            tracing::warn!(configuration = hook.id.0, why, "a webhook call failed; its failurePolicy ignores this");
            Ok(())
        }
        Failure::Call(why, _) => Err(ApiError::Internal(why)),
    }
}

impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn mutate<'a>(
        &'a self,
        context: &'a Context<'_>,
        object: &'a mut Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        let hooks = self.0.candidates(context);
        if hooks.is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(self.call_all(hooks, context, object, effects)))
    }
}

/// Calls the validating webhooks concurrently. The first rejection ends the request.
pub(super) struct Validating(Webhooks);

impl Validating {
    pub(super) fn new(served: Arc<SharedCatalog>, caller: (Caller, Accounts)) -> Self {
        Self(Webhooks::new(served, caller, "validatingwebhookconfigurations"))
    }

    async fn call_all(
        &self,
        hooks: Vec<Arc<Hook>>,
        context: &Context<'_>,
        object: &Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let catalog = self.0.served.load();
        let mut all = Vec::new();
        for hook in &hooks {
            all.extend(WebhookCall::if_matched(hook, context, object, &catalog).await?);
        }
        // One view is shared by all webhooks that matched the same version.
        let mut views: Vec<HookView> = Vec::new();
        let mut each = Vec::with_capacity(all.len());
        for (at, call) in all.iter().enumerate() {
            let found = views.iter().position(|view| view.of == call.target().resource);
            let view = found.unwrap_or(views.len());
            if found.is_none() {
                views.push(HookView::new(call, object, &effects.managed).await?);
            }
            each.push((at, call, view));
        }
        let each = each.into_iter().map(|(at, call, view)| self.call_one(at, call, &views[view]));
        let mut calls: FuturesUnordered<_> = each.collect();
        let mut responses = Vec::new();
        let mut result = Ok(());
        while let Some((at, response, done)) = calls.next().await {
            responses.push((at, response));
            if done.is_err() {
                result = done;
                break;
            }
        }
        responses.sort_by_key(|(at, _)| *at);
        for (at, response) in responses {
            effects.warnings.extend(response.warnings);
            add_audit_annotations(all[at].hook, response.annotations, effects);
        }
        result
    }
}

/// The objects as webhooks of one version receive them.
struct HookView<'a> {
    of: (&'a str, &'a str, &'a str),
    object: Value,
    old: Option<Value>,
}

impl<'a> HookView<'a> {
    async fn new(call: &'a WebhookCall<'_>, object: &Value, managed: &Managed) -> ApiResult<Self> {
        let reviewed = call.matched.convert(call.context, call.catalog, object).await?.into_owned();
        let old = call.old_managed(managed).await?;
        Ok(Self { of: call.target().resource, object: with_managers(reviewed, &managed.new), old })
    }
}

impl Validating {
    /// Calls one webhook. Returns its index, its response (warnings and annotations) and the result.
    async fn call_one(
        &self,
        at: usize,
        call: &WebhookCall<'_>,
        view: &HookView<'_>,
    ) -> (usize, ReviewResponse, ApiResult<()>) {
        let started = call.context.env.elapsed();
        let (outcome, response, result) = match self.0.send_review(call, &view.object, view.old.as_ref(), false).await {
            Ok(response) if response.allowed => (CallOutcome::Allowed, response, Ok(())),
            Ok(mut response) => {
                let error = review::rejection_error(&call.hook.id.1, response.status.take());
                (CallOutcome::Rejected(error.status().code), response, Err(error))
            }
            Err(failure) => {
                (failure.outcome(call.hook), ReviewResponse::default(), resolve_failure(call.hook, failure))
            }
        };
        self.0.record_metrics(call, AdmissionPhase::Validating, outcome, started);
        (at, response, result)
    }
}

impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
        let hooks = self.0.candidates(context);
        if hooks.is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(self.call_all(hooks, context, object, effects)))
    }
}
