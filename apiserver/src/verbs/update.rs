//! Update: the common way of every change of an object that exists (PUT, patches, status, scale, finalize).

use crate::admission::Operation;
use machinery::api::ApiError;
use serde_json::{Value, json};

use super::object::{self, metadata_mut};
use super::options::WriteOptions;
use super::{Answer, Call, Shown, TRIES_MAX, Verbs, body, invalid};
use crate::resources::{Row, SubKind, metadata};

/// Makes the new object from the current one (`None`: there is none); may be called again with a newer one.
pub(super) type Make<'a> = dyn FnMut(Option<&Value>, &mut Vec<String>) -> Result<Value, ApiError> + Send + 'a;

/// What kind of change it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// A PUT: may create, and a wrong uid is a conflict.
    Put,
    /// A PUT of a subresource with a body of its own (Scale): a wrong uid is a conflict.
    PutPart,
    /// A patch: a wrong uid is a finding.
    Patch,
}

impl Verbs {
    /// PUT of a decoded and defaulted object.
    pub async fn update(
        &self,
        call: &mut Call<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        object::match_namespace(&mut object, call.object_namespace())?;
        object::match_name(&object, call.name)?;
        metadata_mut(&mut object).remove("managedFields");
        object::dedup_owners(&mut object, &mut call.warnings, false);
        let mut make = |_: Option<&Value>, _: &mut Vec<String>| Ok(object.clone());
        self.change(call, &mut make, Manner::Put, options).await
    }

    /// Makes and stores the new object, again whenever another write came first.
    pub(super) async fn change(
        &self,
        call: &mut Call<'_>,
        make: &mut Make<'_>,
        manner: Manner,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let key = call.key();
        let warnings_before = call.warnings.len();
        for _ in 0..TRIES_MAX {
            call.warnings.truncate(warnings_before);
            if let Some(answer) = self.change_once(call, make, manner, &key, options).await? {
                return Ok(answer);
            }
        }
        Err(call.modified())
    }

    /// `None`: another write came first.
    async fn change_once(
        &self,
        call: &mut Call<'_>,
        make: &mut Make<'_>,
        manner: Manner,
        key: &str,
        options: &WriteOptions,
    ) -> Result<Option<Answer>, ApiError> {
        let row = call.row;
        let Some(cached) = self.cache.get(key) else {
            if manner != Manner::Put || !row.strategy.create_on_update() {
                return Err(call.not_found());
            }
            return self.create_by_put(call, make, key, options).await;
        };
        let old = Self::current(row, &cached);
        let mut new = make(Some(&old), &mut call.warnings)?;
        if manner != Manner::Patch {
            let (wanted, uid) = (object::text(&new, "uid"), object::text(&old, "uid"));
            if !wanted.is_empty() && wanted != uid {
                return Err(wrong_uid(call, key, wanted, uid, options.dry_run));
            }
        }
        let name = call.name.to_owned();
        {
            let review = call.review(Operation::Update, &name, options.dry_run);
            self.admit(&review, &mut new, Some(&old)).await?;
        }
        let version = object::client_version(&new)?;
        if version == 0 && !row.strategy.unconditional_update() {
            let cause = machinery::api::Cause {
                reason: "FieldValueInvalid".into(),
                message: "Invalid value: 0: must be specified for an update".into(),
                field: "metadata.resourceVersion".into(),
            };
            return Err(ApiError::Invalid(call.resource(), name, vec![cause]));
        }
        if version != 0 && version != cached.modified {
            return Err(call.modified());
        }
        let allocates = row.plural == "services" && written_through(call).is_empty();
        let _guard = if allocates { Some(self.allocating.lock().await) } else { None };
        let whole = written_through(call).is_empty();
        let empties = if whole { body::empties(row, &new) } else { Vec::new() };
        let given = if empties.is_empty() { Value::Null } else { new.clone() };
        self.prepare(call, &mut new, &old);
        {
            let context = self.context(call, written_through(call));
            invalid(call.kind(), &name, row.strategy.validate_first(&context, &new, Some(&old)))?;
            if allocates {
                self.allocator.allocate(&*self.objects, &mut new, Some(&old), options.dry_run)?;
                body::normalise(row, &mut new);
            }
            let mut errors = metadata::validate_update_through(row, written_through(call), &new, &old);
            let checked = body::with_empties(&new, &given, &empties);
            errors.extend(row.strategy.validate_update(&context, &checked, &old));
            invalid(call.kind(), &name, errors)?;
        }
        if written_through(call) != "status" {
            let warnings = row.strategy.warnings(&new, Some(&old));
            call.warnings.extend(warnings);
        }
        {
            let review = call.review(Operation::Update, &name, options.dry_run);
            self.admission.validate(&review, &*self.objects, &new, Some(&old))?;
        }
        if ends_deletion(row, &new, &old) {
            if !options.dry_run && self.remove(key, cached.modified).await?.is_none() {
                return Ok(None);
            }
            return Ok(Some(Answer::Object(200, Shown::Value(versioned(new, cached.modified)))));
        }
        if options.dry_run {
            return Ok(Some(Answer::Object(200, Shown::Value(versioned(new, cached.modified)))));
        }
        let stored = Self::encode(row, &new)?;
        if stored.body() == cached.stored() {
            return Ok(Some(Answer::Object(200, Shown::Cached(cached))));
        }
        let done = self.put(row, key, cached.modified, stored.clone()).await?;
        Ok(done.map(|revision| Answer::Object(200, Self::stored_as(row, new, &stored, revision))))
    }

    /// What an update may not decide about metadata, and the kind's own preparation.
    fn prepare(&self, call: &Call<'_>, new: &mut Value, old: &Value) {
        let row = call.row;
        object::set_generation(new, object::generation(old));
        let context = self.context(call, written_through(call));
        body::normalise(row, new);
        row.strategy.prepare_update(&context, new, old);
        body::normalise(row, new);
        let metadata = metadata_mut(new);
        metadata.remove("managedFields");
        metadata.remove("selfLink");
        // An update that names no version means the one that is there.
        metadata.insert("resourceVersion".into(), json!(object::text(old, "resourceVersion")));
        if metadata.get("uid").and_then(Value::as_str).unwrap_or("").is_empty() {
            metadata.insert("uid".into(), json!(object::text(old, "uid")));
        }
        for (field, always) in
            [("creationTimestamp", true), ("deletionTimestamp", true), ("deletionGracePeriodSeconds", false)]
        {
            if let Some(value) = object::field(old, field)
                && (always || metadata.get(field).is_none_or(Value::is_null))
            {
                metadata.insert(field.into(), value.clone());
            }
        }
        let counts = row.strategy.counts_generation() && written_through(call).is_empty();
        if counts && row.strategy.generation_changes(new, old) {
            object::set_generation(new, object::generation(old) + 1);
        }
    }

    async fn create_by_put(
        &self,
        call: &mut Call<'_>,
        make: &mut Make<'_>,
        key: &str,
        options: &WriteOptions,
    ) -> Result<Option<Answer>, ApiError> {
        let mut object = make(None, &mut call.warnings)?;
        let wanted = object::text(&object, "uid").to_owned();
        if !wanted.is_empty() {
            return Err(wrong_uid(call, key, &wanted, "", options.dry_run));
        }
        let metadata = metadata_mut(&mut object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            metadata.remove(field);
        }
        if !options.dry_run {
            metadata.remove("resourceVersion");
        }
        let name = call.name.to_owned();
        {
            let review = call.review(Operation::Create, &name, options.dry_run);
            self.may_create(call)?;
            self.admit(&review, &mut object, None).await?;
        }
        match self.insert(call, object, options).await {
            Ok((shown, _)) => Ok(Some(Answer::Object(201, shown))),
            Err(ApiError::AlreadyExists(..)) if !options.dry_run => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The subresource as strategies know it: a scale is a change of the object itself.
fn written_through(call: &Call<'_>) -> &'static str {
    match call.subresource.map(|s| s.what) {
        None | Some(SubKind::Scale) => "",
        Some(_) => call.subresource_name(),
    }
}

/// The object under a version, for an answer.
pub(super) fn versioned(mut object: Value, version: u64) -> Value {
    metadata_mut(&mut object).insert("resourceVersion".into(), json!(version.to_string()));
    object
}

/// Whether this change takes the last thing away that a begun deletion waited for.
fn ends_deletion(row: &Row, new: &Value, old: &Value) -> bool {
    object::finalizers(new).is_empty()
        && object::is_deleting(old)
        && object::field(old, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
        && (row.plural != "namespaces" || new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty))
}

pub(super) fn wrong_uid(call: &Call<'_>, key: &str, wanted: &str, uid: &str, dry_run: bool) -> ApiError {
    // A dry run never comes as far as the store, which puts its own prefix before.
    let key = if dry_run { key.strip_prefix("/registry").unwrap_or(key) } else { key };
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: \
         UID in precondition: {wanted}, UID in object meta: {uid}"
    );
    ApiError::Conflict(call.resource(), call.name.to_owned(), why)
}
