//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: others are asked about what is written.

#[cfg(test)]
mod fuzz;
mod index;
mod review;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use machinery_api::GroupVersionKind;
use machinery_api::apply::Managers;
use machinery_api::error::{ApiError, ApiResult};
use machinery_api::patch::{self, JsonPatchRefusal, PatchKind};
use machinery_api::schema::{self, FieldValidation, Target};
use machinery_api::selector::go_quoted;
use serde_json::Value;

use self::index::{Hook, Index};
pub(super) use self::review::options as request_options;
use self::review::{About, Answer};
use super::matching::{Matched, has_own_body, is_exempt, own};
use super::{Context, Effects, Managed, Plugin, Step};
use crate::catalog::{Catalog, Served};
use crate::webhook::{Accounts, Ask, Asked as Outcome, Caller, Step as Half};
use apiserver_resources::{ResourceInfo, rules};

/// The largest answer: a patch of the largest body, in base64, and as much again.
const ANSWER_BYTES_MAX: usize = 8 << 20;
const GROUP: &str = "admissionregistration.k8s.io";

/// What both plugins need.
pub(super) struct Webhooks {
    served: Arc<Served>,
    caller: Caller,
    accounts: Accounts,
    plural: &'static str,
    index: ArcSwap<Index>,
}

impl Webhooks {
    fn new(served: Arc<Served>, (caller, accounts): (Caller, Accounts), plural: &'static str) -> Self {
        Self { served, caller, accounts, plural, index: ArcSwap::default() }
    }

    /// The hooks that may be about a request.
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

    /// Asks a hook about an object in the version that it knows.
    async fn ask(
        &self,
        asked: &Asked<'_>,
        shown: &Value,
        old: Option<&Value>,
        mutating: bool,
    ) -> Result<Answer, Failure> {
        let (hook, context) = (asked.hook, asked.context);
        if context.request.options.dry_run() && !hook.has_no_side_effects {
            let why = format!("admission webhook {} does not support dry run", go_quoted(&hook.id.1));
            return Err(Failure::Refused(ApiError::BadRequest(why)));
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
        let sent = review::request(version, &uid, context.request, &asked.about(), shown, old).to_string();
        let (body, timeout) = (Bytes::from(sent), hook.timeout);
        let ask = Ask { body, timeout, tells_timeout: true, answer_max: ANSWER_BYTES_MAX };
        let called = client.post(&self.caller, ask).await;
        let said = called.map_err(|no| failed(format!("failed to call webhook: {}", no.why), no.code))?;
        review::read(&said.bytes, version, &uid, mutating).map_err(|why| failed(why, 503))
    }

    /// Counts what came of asking a hook since `began`.
    fn counted(&self, asked: &Asked<'_>, half: Half, outcome: Outcome, began: Duration) {
        let (context, name) = (asked.context, &asked.hook.id.1);
        let took = context.env.elapsed().saturating_sub(began);
        self.caller.metrics.admission(name, half, context.request.operation.as_str(), outcome, took);
    }
}

/// Why a hook doesn't let a request pass.
enum Failure {
    /// It could not be asked, or said what nobody understands; the code stands for that.
    Call(String, u16),
    Refused(ApiError),
}

impl Failure {
    fn outcome(&self, hook: &Hook) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::OwnError,
            Self::Call(_, code) if hook.is_optional => Outcome::FailedOpen(*code),
            Self::Call(_, code) => Outcome::Failed(*code),
        }
    }
}

/// A hook that is asked.
struct Asked<'a> {
    hook: &'a Hook,
    context: &'a Context<'a>,
    matched: Matched,
    catalog: &'a Catalog,
}

impl<'a> Asked<'a> {
    /// Where the hook is about the request.
    async fn of(
        hook: &'a Hook,
        context: &'a Context<'a>,
        object: &Value,
        catalog: &'a Catalog,
    ) -> ApiResult<Option<Self>> {
        let matcher = hook.matcher.as_ref().map_err(|why| ApiError::Internal(why.clone()))?;
        let Some(matched) = matcher.matches(context, object, catalog)? else { return Ok(None) };
        let asked = Self { hook, context, matched, catalog };
        let Some(conditions) = &hook.conditions else { return Ok(Some(asked)) };
        let conditions = conditions.get().await?;
        let shown = asked.matched.shown(context, catalog, object).await?;
        let old = asked.old().await?;
        let holds = conditions.hold(context, (&shown, old.as_deref()), &asked.matched);
        let holds = holds.map_err(|why| context.request.refused(object, why))?;
        Ok(holds.then_some(asked))
    }

    fn own(&self) -> Option<&'a Arc<ResourceInfo>> {
        own(self.context.request, self.catalog)
    }

    fn about(&self) -> About<'_> {
        let request = self.context.request;
        match &self.matched {
            Matched::Asked => {
                About { kind: request.kind, resource: (request.group, request.version, request.resource) }
            }
            Matched::Equivalent(other) => {
                // A subresource with a body of its own has it in every version.
                let kind = match self.has_own_body() {
                    true => other.gvk(),
                    false => request.kind,
                };
                About { kind, resource: (&other.group, &other.version, &other.plural) }
            }
        }
    }

    fn has_own_body(&self) -> bool {
        has_own_body(self.context.request, self.catalog)
    }

    /// What is there, as the hook knows it.
    async fn old(&self) -> ApiResult<Option<Cow<'a, Value>>> {
        match self.context.old {
            Some(old) => self.matched.shown(self.context, self.catalog, old).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same with who manages its fields.
    async fn old_managed(&self, managed: &Managed) -> ApiResult<Option<Value>> {
        let old = self.old().await?;
        Ok(old.map(|old| with_managers(old.into_owned(), &managed.old)))
    }

    /// What a patch makes of an object, decoded and defaulted as a body is.
    fn patched(&self, patch: &[u8], shown: &Value) -> ApiResult<Value> {
        let operations: Vec<serde::de::IgnoredAny> = serde_json::from_slice(patch).map_err(|error| {
            let why = format!("received undecodable patch in webhook response: {error}");
            ApiError::Internal(format!("failed calling webhook {}: {why}", go_quoted(&self.hook.id.1)))
        })?;
        if operations.is_empty() {
            return Ok(shown.clone());
        }
        if !shown.is_object() {
            let name = go_quoted(&self.hook.id.1);
            let why = "attempted to modify the object, which is not supported for this operation";
            return Err(ApiError::Internal(format!("admission webhook {name} {why}")));
        }
        let row = match &self.matched {
            Matched::Equivalent(other) => Some(other),
            Matched::Asked => self.own(),
        };
        let row = row.filter(|_| self.has_own_body());
        let GroupVersionKind { group, version, kind } = self.about().kind;
        let types = row.map(|row| row.schema.hold());
        let target = match (row, &types) {
            (Some(row), Some(types)) => row.target(types),
            _ => Target::kind(group, version, kind).ok_or_else(|| ApiError::Internal(format!("no type for {kind}")))?,
        };
        let decoded = patch::apply(PatchKind::Json, patch, shown, &target, FieldValidation::Ignore);
        let decoded = decoded.map_err(|error| {
            ApiError::Internal(match patch::json_refusal(patch, shown) {
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

/// What is remembered of a request's first round of hooks for its second.
#[derive(Debug, Default)]
pub struct Reinvocation {
    /// A hook has changed the object: the plugins of before look at it again.
    pub(super) is_due: bool,
    /// This is the second round.
    pub(super) is_second: bool,
    /// The object as the last hook left it.
    output: Option<Value>,
    /// Hooks that want to see what others change.
    interested: Vec<(String, String)>,
    /// Those of them that are asked again.
    again: Vec<(String, String)>,
}

impl Reinvocation {
    /// Whether a hook has changed the object.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    fn ask_again(&mut self) {
        self.again.append(&mut self.interested);
    }
}

/// Asks hooks that may change the object, one after the other.
pub(super) struct Mutating(Webhooks);

impl Mutating {
    pub(super) fn new(served: Arc<Served>, caller: (Caller, Accounts)) -> Self {
        Self(Webhooks::new(served, caller, "mutatingwebhookconfigurations"))
    }

    async fn all(
        &self,
        hooks: Vec<Arc<Hook>>,
        context: &Context<'_>,
        object: &mut Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let catalog = self.0.served.load();
        let again = &mut effects.reinvocation;
        if again.is_second && again.output.as_ref().is_some_and(|output| output != object) {
            again.ask_again();
        }
        for hook in &hooks {
            let Some(asked) = Asked::of(hook, context, object, &catalog).await? else { continue };
            if effects.reinvocation.is_second && !effects.reinvocation.again.contains(&hook.id) {
                continue;
            }
            let changed = self.one(&asked, object, effects).await?;
            if changed {
                effects.reinvocation.ask_again();
                effects.reinvocation.is_due = true;
            }
            if hook.is_reinvoked && !effects.reinvocation.interested.contains(&hook.id) {
                effects.reinvocation.interested.push(hook.id.clone());
            }
        }
        effects.reinvocation.output = Some(object.clone());
        Ok(())
    }

    /// Whether it changed the object.
    async fn one(&self, asked: &Asked<'_>, object: &mut Value, effects: &mut Effects) -> ApiResult<bool> {
        let began = asked.context.env.elapsed();
        let (outcome, done) = match self.asked(asked, object, effects).await {
            Ok((outcome, done)) => (outcome, done),
            Err(error) => (Outcome::OwnError, Err(error)),
        };
        self.0.counted(asked, Half::Admit, outcome, began);
        done
    }

    async fn asked(
        &self,
        asked: &Asked<'_>,
        object: &mut Value,
        effects: &mut Effects,
    ) -> ApiResult<(Outcome, ApiResult<bool>)> {
        let (context, catalog) = (asked.context, asked.catalog);
        let shown = asked.matched.printed(context, catalog, object).await?;
        let mut shown = with_managers(shown, &effects.managed.new);
        let old = asked.old_managed(&effects.managed).await?;
        let mut answer = match self.0.ask(asked, &shown, old.as_ref(), true).await {
            Ok(answer) => answer,
            Err(failure) => return Ok((failure.outcome(asked.hook), failed(asked.hook, failure).map(|()| false))),
        };
        effects.warnings.append(&mut answer.warnings);
        note(asked.hook, answer.notes, effects);
        if !answer.allowed {
            let error = review::refused(&asked.hook.id.1, answer.status);
            return Ok((Outcome::Refused(error.status().code), Err(error)));
        }
        if answer.patch.is_empty() {
            return Ok((Outcome::Passed, Ok(false)));
        }
        let mut patched = asked.patched(&answer.patch, &shown)?;
        let managers = take_managers(&mut patched);
        if managers != take_managers(&mut shown) {
            manage(managers, effects);
        }
        asked.matched.print(context.request, catalog, &mut patched);
        let changed = patched != shown;
        if changed {
            *object = asked.matched.back(context, catalog, patched).await?;
        }
        Ok((Outcome::Passed, Ok(changed)))
    }
}

/// An object with who manages its fields.
pub(super) fn with_managers(mut object: Value, managers: &Managers) -> Value {
    if let (Some(metadata), Some(value)) =
        (object.get_mut("metadata").and_then(Value::as_object_mut), managers.to_value())
    {
        metadata.insert("managedFields".into(), value);
    }
    object
}

fn take_managers(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Takes what a hook says of who manages which fields, where that is understood.
fn manage(managers: Option<Value>, effects: &mut Effects) {
    match Managers::of_value(&managers.unwrap_or_default()) {
        Ok(managers) => effects.managed.new = managers,
        Err(why) => effects.warnings.push(format!(
            ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating \
             admission controller; please fix your requests: {why}"
        )),
    }
}

/// Notes what a hook says for the audit event, under its name.
fn note(hook: &Hook, notes: BTreeMap<String, String>, effects: &mut Effects) {
    for (name, value) in notes {
        let noted = [&*hook.id.1, &*name].join("/");
        if !name.contains('/') && rules::label_key(&noted).is_empty() {
            effects.audit(noted, value);
        } else {
            tracing::warn!(hook = hook.id.1, name, "a webhook's note for the audit event has a name that is none");
        }
    }
}

/// What a failure comes to: nothing, where the hook need not be asked.
fn failed(hook: &Hook, failure: Failure) -> ApiResult<()> {
    match failure {
        Failure::Refused(error) => Err(error),
        Failure::Call(why, _) if hook.is_optional => {
            tracing::warn!(configuration = hook.id.0, why, "a webhook that need not be asked was not");
            Ok(())
        }
        Failure::Call(why, _) => Err(ApiError::Internal(why)),
    }
}

impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, effects: &'a mut Effects) -> Step<'a> {
        let hooks = self.0.candidates(context);
        if hooks.is_empty() {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(self.all(hooks, context, object, effects)))
    }
}

/// Asks hooks that only say yes or no, all at once; the first no is the answer.
pub(super) struct Validating(Webhooks);

impl Validating {
    pub(super) fn new(served: Arc<Served>, caller: (Caller, Accounts)) -> Self {
        Self(Webhooks::new(served, caller, "validatingwebhookconfigurations"))
    }

    async fn all(
        &self,
        hooks: Vec<Arc<Hook>>,
        context: &Context<'_>,
        object: &Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let catalog = self.0.served.load();
        let mut all = Vec::new();
        for hook in &hooks {
            all.extend(Asked::of(hook, context, object, &catalog).await?);
        }
        // Made once for all hooks that know the same version.
        let mut views: Vec<View> = Vec::new();
        let mut each = Vec::with_capacity(all.len());
        for (at, asked) in all.iter().enumerate() {
            let found = views.iter().position(|view| view.of == asked.about().resource);
            let view = found.unwrap_or(views.len());
            if found.is_none() {
                views.push(View::new(asked, object, &effects.managed).await?);
            }
            each.push((at, asked, view));
        }
        let each = each.into_iter().map(|(at, asked, view)| self.one(at, asked, &views[view]));
        let mut asked: FuturesUnordered<_> = each.collect();
        let mut said = Vec::new();
        let mut result = Ok(());
        while let Some((at, answer, done)) = asked.next().await {
            said.push((at, answer));
            if done.is_err() {
                result = done;
                break;
            }
        }
        said.sort_by_key(|(at, _)| *at);
        for (at, answer) in said {
            effects.warnings.extend(answer.warnings);
            note(all[at].hook, answer.notes, effects);
        }
        result
    }
}

/// What hooks of one version are shown.
struct View<'a> {
    of: (&'a str, &'a str, &'a str),
    object: Value,
    old: Option<Value>,
}

impl<'a> View<'a> {
    async fn new(asked: &'a Asked<'_>, object: &Value, managed: &Managed) -> ApiResult<Self> {
        let shown = asked.matched.shown(asked.context, asked.catalog, object).await?.into_owned();
        let old = asked.old_managed(managed).await?;
        Ok(Self { of: asked.about().resource, object: with_managers(shown, &managed.new), old })
    }
}

impl Validating {
    /// Which one, what it warns of and notes, and what it says.
    async fn one(&self, at: usize, asked: &Asked<'_>, view: &View<'_>) -> (usize, Answer, ApiResult<()>) {
        let began = asked.context.env.elapsed();
        let (outcome, answer, said) = match self.0.ask(asked, &view.object, view.old.as_ref(), false).await {
            Ok(answer) if answer.allowed => (Outcome::Passed, answer, Ok(())),
            Ok(mut answer) => {
                let error = review::refused(&asked.hook.id.1, answer.status.take());
                (Outcome::Refused(error.status().code), answer, Err(error))
            }
            Err(failure) => (failure.outcome(asked.hook), Answer::default(), failed(asked.hook, failure)),
        };
        self.0.counted(asked, Half::Validating, outcome, began);
        (at, answer, said)
    }
}

impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
        let hooks = self.0.candidates(context);
        if hooks.is_empty() {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(self.all(hooks, context, object, effects)))
    }
}
