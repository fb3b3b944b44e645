//! `pods/NAME/eviction`: a deletion that asks the pod's disruption budget first. What is decided is in
//! `apiserver/resources/src/policy/evictions.rs`.
//!
//! As upstream: the budget's status is counted down before the pod goes, so that who fails in between has used up a disruption, which
//! the budget's controller gives back. Admission sees the eviction, not the writes that it leads to.

use machinery_api::error::{Named, Status};
use machinery_api::{ApiError, Cause};
use serde_json::Value;

use super::intent::{Intent, Wanted};
use super::{Answer, Registry, RequestScope, ResponseObject, binding, body, object};
use crate::admission::Options;
use crate::auth::{MASTERS, UserInfo};
use crate::request::options::{DeleteOptions, WriteOptions};
use apiserver_resources::SubresourceKind;
use apiserver_resources::evictions::{self, Guard};
use apiserver_resources::objects::ObjectReader;

/// How often it is tried again when the pod or its budget changes in between.
const TRIES_MAX: usize = 20;

/// What came of a try.
enum Tried {
    Done(Answer),
    /// The pod is another one by now.
    Changed(ApiError),
}

/// What is evicted, and how.
struct Eviction<'a> {
    /// About the pod itself.
    pods: RequestScope<'a>,
    options: DeleteOptions,
    /// Whether the client names the pod's version.
    versioned: bool,
}

impl Registry {
    /// Evicts the pod of the path.
    pub async fn evict(
        &self,
        call: &mut RequestScope<'_>,
        mut eviction: Value,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        object::match_namespace(&mut eviction, call.namespace)?;
        if object::text(&eviction, "name") != call.name {
            return Err(ApiError::BadRequest("name in URL does not match name in Eviction object".into()));
        }
        let options = delete_options(call, &eviction, options)?;
        let asked = WriteOptions { dry_run: options.dry_run, ..WriteOptions::default() };
        self.admit_virtual(call, &mut eviction, &asked).await?;
        let pods = RequestScope { subresource: None, ..call.again() };
        let versioned = options.resource_version.is_some();
        let mut eviction = Eviction { pods, options, versioned };
        let mut last = call.modified();
        for _ in 0..TRIES_MAX {
            match self.try_evict(&mut eviction).await? {
                Tried::Done(answer) => return Ok(answer),
                Tried::Changed(error) => last = error,
            }
        }
        Err(last)
    }

    async fn try_evict(&self, eviction: &mut Eviction<'_>) -> Result<Tried, ApiError> {
        self.newest().await?;
        let call = &eviction.pods;
        let (pod, version) = self.objects.at(&call.key()).ok_or_else(|| call.not_found())?;
        let as_asked = eviction.options.clone();
        let as_seen = DeleteOptions { resource_version: Some(version.to_string()), ..as_asked.clone() };
        if evictions::ignores_budgets(&pod) {
            if eviction.versioned || !evictions::must_be_as_seen(&pod) {
                return self.disrupt(&mut eviction.pods, &as_asked).await.map(Tried::Done);
            }
            return match self.disrupt(&mut eviction.pods, &as_seen).await {
                Err(error @ ApiError::Conflict(..)) => Ok(Tried::Changed(error)),
                other => other.map(Tried::Done),
            };
        }
        let budgets = self.objects.list(evictions::BUDGETS.0, evictions::BUDGETS.1, Some(call.namespace));
        let mut about = budgets.iter().filter(|budget| evictions::covers(budget, &pod));
        let (Some(budget), second) = (about.next(), about.next()) else {
            return self.disrupt(&mut eviction.pods, &as_asked).await.map(Tried::Done);
        };
        if second.is_some() {
            let message =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Ok(Tried::Done(Answer::Status(500, Box::new(Status::failure(500, "", message)))));
        }
        let name = object::text(budget, "name");
        if evictions::guard(budget, &pod) == Guard::Counts {
            // What is counted is not tried again.
            self.count(&eviction.pods, name, as_asked.dry_run).await?;
            return self.disrupt(&mut eviction.pods, &as_asked).await.map(Tried::Done);
        }
        match self.disrupt(&mut eviction.pods, &as_seen).await {
            // It may have become ready: the client comes again.
            Err(ApiError::Conflict(..)) if !eviction.versioned => Err(evictions::not_ready(name)),
            other => other.map(Tried::Done),
        }
    }

    /// Takes one disruption from the budget.
    async fn count(&self, call: &RequestScope<'_>, name: &str, dry_run: bool) -> Result<(), ApiError> {
        let row = call.catalog.stored(evictions::BUDGETS.0, evictions::BUDGETS.1).ok_or(ApiError::NoSuchResource)?;
        let status = row.subresources.iter().find(|sub| sub.what == SubresourceKind::Status).copied();
        let user = UserInfo::component("system:apiserver", Some(MASTERS));
        for _ in 0..TRIES_MAX {
            let mut budgets = RequestScope { row, subresource: status, name, user: &user, ..call.again() };
            let Some((budget, _)) = self.objects.at(&budgets.key()) else { return Err(budgets.not_found()) };
            let counted = evictions::counted(&budget, call.name, call.now)?;
            if dry_run {
                return Ok(());
            }
            let again = || Ok(counted.clone());
            let options = WriteOptions::default();
            match self.update(&mut budgets, Wanted::new(counted.clone(), &again), &options).await {
                Err(ApiError::Conflict(..)) => self.newest().await?,
                other => return other.map(|_| ()),
            }
        }
        let message = format!("couldn't update PodDisruptionBudget {name:?} due to conflicts");
        Err(ApiError::Timeout(message, 10, Vec::new()))
    }

    /// Says in the pod why it goes, and deletes it.
    async fn disrupt(&self, call: &mut RequestScope<'_>, options: &DeleteOptions) -> Result<Answer, ApiError> {
        let mut options = DeleteOptions { of_eviction: true, ..options.clone() };
        if !options.dry_run {
            let status = call.row.subresources.iter().find(|sub| sub.what == SubresourceKind::Status).copied();
            let mut about = RequestScope { subresource: status, ..call.again() };
            let mut intent = Intent::Disrupt(options.clone());
            let answer = self.write(&mut about, &mut intent, Options::Delete(&options)).await?;
            if options.resource_version.is_some() {
                options.resource_version = version_of(&answer).or(options.resource_version);
            }
        }
        self.write(call, &mut Intent::Delete(options.clone()), Options::Delete(&options)).await?;
        Ok(binding::done())
    }
}

/// The version that an answer shows.
fn version_of(answer: &Answer) -> Option<String> {
    let Answer::Object(_, shown) = answer else { return None };
    Some(match shown {
        ResponseObject::Cached(cached) => cached.modified.to_string(),
        ResponseObject::Stored(_, revision) => revision.to_string(),
        ResponseObject::Value(object) => object::text(object, "resourceVersion").to_owned(),
    })
}

/// How the pod is deleted: as the eviction says, and as a dry run where the request or the eviction says so.
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
        return Err(ApiError::Invalid(Named::new("policy", "Eviction"), call.name.to_owned(), vec![cause]));
    }
    let mut wanted = DeleteOptions::from_body(given)?;
    wanted.dry_run |= options.dry_run;
    Ok(wanted)
}

/// What a pod becomes that is evicted, where it is still the one that was meant.
pub(super) fn disrupted(
    call: &RequestScope<'_>,
    pod: &Value,
    version: u64,
    options: &DeleteOptions,
) -> Result<Value, ApiError> {
    let conflict = |why: String| Err(ApiError::Conflict(Named::new("", "Pod"), call.name.to_owned(), why));
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

/// Reads an eviction of either version: the older one has outlived its group.
pub fn read(request: body::Body<'_>, options: &WriteOptions, warnings: &mut Vec<String>) -> Result<Value, ApiError> {
    const VERSIONS: [(&str, &str, &str); 2] = [("policy", "v1", "Eviction"), ("policy", "v1beta1", "Eviction")];
    let validation = options.field_validation;
    body::of_type(VERSIONS[0], request, validation, warnings)
        .or_else(|error| body::of_type_as(VERSIONS[1], VERSIONS[0], request, validation, warnings).map_err(|_| error))
}
