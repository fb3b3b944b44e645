//! `pods/NAME/eviction`: a delete that first checks the pod's disruption budget. The decision is in
//! `apiserver/resources/src/policy/evictions.rs`.
//!
//! As upstream, the budget's status is decremented before the pod is deleted. A failure in between has used up a
//! disruption, which the disruption controller restores. Admission sees the eviction, not the writes that it causes.

use machinery_api::error::{GroupResource, Status};
use machinery_api::{ApiError, Cause};
use serde_json::Value;

use super::intent::{Intent, RequestObject};
use super::{Registry, RequestScope, ResponseObject, VerbResult, binding, body, object};
use apiserver_admission::Options;
use apiserver_auth::{MASTERS, UserInfo};
use apiserver_resources::SubresourceKind;
use apiserver_resources::evictions::{self, BudgetEffect};
use apiserver_resources::objects::ObjectReader;
use apiserver_resources::options::{DeleteOptions, WriteOptions};

/// The maximum number of attempts when the pod or its budget changes in between.
const TRIES_MAX: usize = 20;

/// The result of an attempt.
enum EvictionAttempt {
    Done(VerbResult),
    /// The pod has changed since it was read.
    Changed(ApiError),
}

/// An eviction in progress.
struct Eviction<'a> {
    /// The request scope of the pod itself.
    pods: RequestScope<'a>,
    options: DeleteOptions,
    /// Whether the client's options name a resourceVersion.
    versioned: bool,
}

impl Registry {
    /// Evicts the pod of the path.
    pub async fn evict(
        &self,
        call: &mut RequestScope<'_>,
        mut eviction: Value,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        object::match_namespace(&mut eviction, call.namespace)?;
        if object::text(&eviction, "name") != call.name {
            return Err(ApiError::BadRequest("name in URL does not match name in Eviction object".into()));
        }
        let options = delete_options(call, &eviction, options)?;
        let admission_options = WriteOptions { dry_run: options.dry_run, ..WriteOptions::default() };
        self.admit_virtual(call, &mut eviction, &admission_options).await?;
        let pods = RequestScope { subresource: None, ..call.fork() };
        let versioned = options.resource_version.is_some();
        let mut eviction = Eviction { pods, options, versioned };
        let mut last = call.modified();
        for _ in 0..TRIES_MAX {
            match self.try_evict(&mut eviction).await? {
                EvictionAttempt::Done(answer) => return Ok(answer),
                EvictionAttempt::Changed(error) => last = error,
            }
        }
        Err(last)
    }

    async fn try_evict(&self, eviction: &mut Eviction<'_>) -> Result<EvictionAttempt, ApiError> {
        self.sync_cache().await?;
        let call = &eviction.pods;
        let (pod, version) = self.objects.at(&call.key()).ok_or_else(|| call.not_found())?;
        let options = eviction.options.clone();
        let options_at_version = DeleteOptions { resource_version: Some(version.to_string()), ..options.clone() };
        if evictions::ignores_budgets(&pod) {
            if eviction.versioned || !evictions::requires_unchanged(&pod) {
                return self.disrupt(&mut eviction.pods, &options).await.map(EvictionAttempt::Done);
            }
            return match self.disrupt(&mut eviction.pods, &options_at_version).await {
                Err(error @ ApiError::Conflict(..)) => Ok(EvictionAttempt::Changed(error)),
                other => other.map(EvictionAttempt::Done),
            };
        }
        let budgets = self.objects.list(evictions::BUDGETS.0, evictions::BUDGETS.1, Some(call.namespace));
        let mut about = budgets.iter().filter(|budget| evictions::covers(budget, &pod));
        let (Some(budget), second) = (about.next(), about.next()) else {
            return self.disrupt(&mut eviction.pods, &options).await.map(EvictionAttempt::Done);
        };
        if second.is_some() {
            let message =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Ok(EvictionAttempt::Done(VerbResult::Status(500, Box::new(Status::failure(500, "", message)))));
        }
        let name = object::text(budget, "name");
        if evictions::budget_effect(budget, &pod) == BudgetEffect::Counts {
            // After the budget is decremented, the delete is not retried.
            self.decrement_budget(&eviction.pods, name, options.dry_run).await?;
            return self.disrupt(&mut eviction.pods, &options).await.map(EvictionAttempt::Done);
        }
        match self.disrupt(&mut eviction.pods, &options_at_version).await {
            // The pod may have become ready: the client retries.
            Err(ApiError::Conflict(..)) if !eviction.versioned => Err(evictions::not_ready(name)),
            other => other.map(EvictionAttempt::Done),
        }
    }

    /// Decrements the budget by one disruption.
    async fn decrement_budget(&self, call: &RequestScope<'_>, name: &str, dry_run: bool) -> Result<(), ApiError> {
        let row = call.catalog.stored(evictions::BUDGETS.0, evictions::BUDGETS.1).ok_or(ApiError::NoSuchResource)?;
        let status = row.subresources.iter().find(|sub| sub.what == SubresourceKind::Status).copied();
        let user = UserInfo::component("system:apiserver", Some(MASTERS));
        for _ in 0..TRIES_MAX {
            let mut budgets = RequestScope { row, subresource: status, name, user: &user, ..call.fork() };
            let Some((budget, _)) = self.objects.at(&budgets.key()) else { return Err(budgets.not_found()) };
            let counted = evictions::counted(&budget, call.name, call.now)?;
            if dry_run {
                return Ok(());
            }
            let again = || Ok(counted.clone());
            let options = WriteOptions::default();
            match self.update(&mut budgets, RequestObject::new(counted.clone(), &again), &options).await {
                Err(ApiError::Conflict(..)) => self.sync_cache().await?,
                other => return other.map(|_| ()),
            }
        }
        let message = format!("couldn't update PodDisruptionBudget {name:?} due to conflicts");
        Err(ApiError::Timeout(message, 10, Vec::new()))
    }

    /// Sets the pod's disruption condition and deletes it.
    async fn disrupt(&self, call: &mut RequestScope<'_>, options: &DeleteOptions) -> Result<VerbResult, ApiError> {
        let mut options = DeleteOptions { of_eviction: true, ..options.clone() };
        if !options.dry_run {
            let status = call.row.subresources.iter().find(|sub| sub.what == SubresourceKind::Status).copied();
            let mut about = RequestScope { subresource: status, ..call.fork() };
            let mut intent = Intent::SetDisruption(options.clone());
            let answer = self.write(&mut about, &mut intent, Options::Delete(&options)).await?;
            if options.resource_version.is_some() {
                options.resource_version = version_of(&answer).or(options.resource_version);
            }
        }
        self.write(call, &mut Intent::Delete(options.clone()), Options::Delete(&options)).await?;
        Ok(binding::success())
    }
}

/// The resourceVersion of a response.
fn version_of(answer: &VerbResult) -> Option<String> {
    let VerbResult::Object(_, shown) = answer else { return None };
    Some(match shown {
        ResponseObject::Cached(cached) => cached.modified.to_string(),
        ResponseObject::Stored(_, revision) => revision.to_string(),
        ResponseObject::Value(object) => object::text(object, "resourceVersion").to_owned(),
    })
}

/// The options of the pod's delete: the eviction's, plus dryRun if the request or the eviction has it.
fn delete_options(
    call: &RequestScope<'_>,
    eviction: &Value,
    options: &WriteOptions,
) -> Result<DeleteOptions, ApiError> {
    let given = &eviction["deleteOptions"];
    if given["ignoreStoreReadErrorWithClusterBreakingPotential"] == true {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: "Invalid value: true: can not be set for pod eviction, try after removing the option".into(),
            field: "deleteOptions.ignoreStoreReadErrorWithClusterBreakingPotential".into(),
        };
        return Err(ApiError::Invalid(GroupResource::new("policy", "Eviction"), call.name.to_owned(), vec![cause]));
    }
    let mut wanted = DeleteOptions::from_body(given)?;
    wanted.dry_run |= options.dry_run;
    Ok(wanted)
}

/// The pod with its disruption condition, if the preconditions hold.
pub(super) fn with_disruption(
    call: &RequestScope<'_>,
    pod: &Value,
    version: u64,
    options: &DeleteOptions,
) -> Result<Value, ApiError> {
    let conflict = |why: String| Err(ApiError::Conflict(GroupResource::new("", "Pod"), call.name.to_owned(), why));
    let uid = object::text(pod, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| !wanted.is_empty() && *wanted != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been \
             deleted and then recreated"
        ));
    }
    let version = version.to_string();
    if let Some(wanted) = options.resource_version.as_deref().filter(|v| !v.is_empty() && *v != version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). \
             The object might have been modified"
        ));
    }
    Ok(evictions::disrupted(pod, call.now))
}

/// Decodes an eviction of either version: clients still send the older one, whose group version is gone.
pub fn read(request: body::Body<'_>, options: &WriteOptions, warnings: &mut Vec<String>) -> Result<Value, ApiError> {
    const VERSIONS: [(&str, &str, &str); 2] = [("policy", "v1", "Eviction"), ("policy", "v1beta1", "Eviction")];
    let validation = options.field_validation;
    body::of_type(VERSIONS[0], request, validation, warnings)
        .or_else(|error| body::of_type_as(VERSIONS[1], VERSIONS[0], request, validation, warnings).map_err(|_| error))
}
