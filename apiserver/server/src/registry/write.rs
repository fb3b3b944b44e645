//! The path of every write: load → build the new object → mutating admission → prepare, normalise, allocate → validate
//! → validating admission → one transaction → response.
//!
//! The goal of a write is data ([`Intent`]). An attempt decides from what it read, and commits on the condition that
//! this is unchanged. The transaction includes the side writes and conditions of admission and of the kind (the
//! namespace exists, an address is free). If a condition fails, the optimistic retry decides again from the record that
//! the store returned. A request that is dropped at any await has written all or nothing.
//!
//! A result without a transaction (an error, a dry run, no change) is only returned from a watch cache that is known to
//! be current ([`WatchCache::sync`](apiserver_storage::cache::WatchCache::sync)); with the embedded store it always is.

use std::sync::Arc;

use machinery_api::apply::Managers;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::commit::{Conflict, MarkOutcome, commit, mark_and_remove};
use super::create::{self, NAME_TRIES_MAX};
use super::intent::{Draft, Intent, Resolved};
use super::{
    Registry, RequestScope, ResponseObject, TRIES_MAX, VerbResult, claims, delete, fields, inert, object, scale,
    store_error,
};
use crate::admission::{Effects, Managed, Operation, Options, SideWrite, ValidateInput};
use crate::fair_queue::budget;
use crate::request::deadline::timed_out;
use apiserver_resources::{ResourceInfo, SubresourceKind};
use apiserver_storage::cache::Cached;
use apiserver_storage::store::{Compare, Entry, Op, Record, Revision, Txn};

/// The existing object, in the version of the request.
pub(super) struct Existing {
    pub(super) cached: Arc<Cached>,
    /// The cached object in the version of the request.
    pub(super) shown: Arc<Cached>,
    pub(super) value: Arc<Value>,
}

impl Existing {
    pub(super) async fn new(
        registry: &Registry,
        row: &Arc<ResourceInfo>,
        cached: Arc<Cached>,
    ) -> Result<Self, ApiError> {
        let shown = match &row.custom {
            Some(_) => Box::pin(registry.versions.show_one(row, cached.clone())).await?,
            None => cached.clone(),
        };
        Ok(Self { value: Registry::in_row_version(row, &shown), shown, cached })
    }

    pub(super) fn modified(&self) -> Revision {
        self.cached.modified
    }

    fn managers(&self) -> Managers {
        self.cached.managers().clone()
    }
}

/// The change of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// Creates it.
    Create {
        /// The object.
        object: Value,
        /// The client's resourceVersion, which a new object cannot have.
        version: Option<Value>,
        /// Whether its name was generated.
        generated: bool,
    },
    /// Replaces it.
    Update(Value),
    /// Removes it; an update that completes a deletion also returns the updated object.
    Remove(Option<Value>),
    /// Marks it as deleted and removes it at once: watchers see both events, as upstream.
    MarkAndRemove(Value),
    /// Changes nothing.
    Keep,
}

impl Change {
    /// The new object, or its last state.
    pub(super) fn object(&self) -> Option<&Value> {
        match self {
            Self::Create { object, .. } | Self::Update(object) | Self::MarkAndRemove(object) => Some(object),
            Self::Remove(object) => object.as_ref(),
            Self::Keep => None,
        }
    }

    fn object_mut(&mut self) -> Option<&mut Value> {
        match self {
            Self::Create { object, .. } | Self::Update(object) | Self::MarkAndRemove(object) => Some(object),
            Self::Remove(object) => object.as_mut(),
            Self::Keep => None,
        }
    }
}

/// A name that exists already.
struct NameConflict {
    name: String,
    deleting: bool,
    /// Whether the object has a `generateName`.
    has_generate_name: bool,
    generated: bool,
}

/// The result of an attempt before its commit.
enum Attempt {
    /// No transaction is needed.
    Answer(VerbResult),
    /// The name exists, as a dry run found.
    NameConflict(NameConflict),
    /// A transaction to commit.
    Commit(PreparedTxn),
}

/// A transaction with its change.
struct PreparedTxn {
    key: StorageKey,
    was: Revision,
    change: Change,
    /// The record of a new or changed object.
    stored: Option<Record>,
    /// The conditions and side writes of admission and of the kind.
    extras: Txn,
    /// Locks that serialize concurrent writers until the commit.
    locks: Vec<OwnedMutexGuard<()>>,
}

/// The result of a commit.
enum CommitOutcome {
    Answer(VerbResult),
    NameConflict(NameConflict),
    /// A condition failed. Contains the object's current record if its own condition did.
    Conflict(Option<Option<Entry>>),
}

impl Registry {
    /// Carries out `intent`, with an optimistic retry whenever another write came first.
    pub(super) async fn write(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        options: Options<'_>,
    ) -> Result<VerbResult, ApiError> {
        let warnings_before = call.warnings.len();
        let mut is_current = self.cache.is_current();
        let mut names = NAME_TRIES_MAX;
        let mut existing = self.load(call).await?;
        for _ in 0..TRIES_MAX {
            call.warnings.truncate(warnings_before);
            let inline = budget::run_inline(self.attempt(call, intent, options, existing.as_ref()));
            let (mut attempt, exceeds_budget) = inline.await;
            if exceeds_budget {
                call.warnings.truncate(warnings_before);
                let again = Box::pin(self.attempt(call, intent, options, existing.as_ref()));
                let again = budget::run_blocking(again).await;
                attempt = again.unwrap_or_else(|| Err(timed_out()));
            }
            if !is_current && !matches!(attempt, Ok(Attempt::Commit(_))) {
                self.cache.sync().await.map_err(|error| store_error(&error))?;
                is_current = true;
                existing = self.load(call).await?;
                continue;
            }
            let done = match attempt? {
                Attempt::Answer(answer) => CommitOutcome::Answer(answer),
                Attempt::NameConflict(conflict) => CommitOutcome::NameConflict(conflict),
                Attempt::Commit(prepared) => self.commit_change(call, intent, existing.as_ref(), prepared).await?,
            };
            match done {
                CommitOutcome::Answer(answer) => return Ok(answer),
                CommitOutcome::NameConflict(conflict) => {
                    names -= 1;
                    let NameConflict { name, deleting, has_generate_name, generated } = conflict;
                    if !generated || names == 0 {
                        return Err(create::already_exists(call, &name, deleting, has_generate_name));
                    }
                }
                CommitOutcome::Conflict(Some(record)) => {
                    existing = match record {
                        Some(entry) => Some(Existing::new(self, call.row, self.cache.cached_entry(&entry)).await?),
                        None => None,
                    };
                }
                CommitOutcome::Conflict(None) => {}
            }
        }
        Err(call.modified())
    }

    /// The object of the path in the watch cache.
    async fn load(&self, call: &RequestScope<'_>) -> Result<Option<Existing>, ApiError> {
        match self.cache.get(call.key().as_str()) {
            Some(cached) => Existing::new(self, call.row, cached).await.map(Some),
            None => Ok(None),
        }
    }

    async fn attempt(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        options: Options<'_>,
        existing: Option<&Existing>,
    ) -> Result<Attempt, ApiError> {
        let mut effects = Effects::default();
        let mut draft = self.draft_with_conversions(call, intent, existing, &options).await?;
        let admitted = intent.is_admitted();
        let scaled = existing.filter(|_| call.subresource.is_some_and(|sub| sub.what == SubresourceKind::Scale));
        let is_managed = |what| {
            use SubresourceKind::{Finalize, Part, Scale, Status};
            matches!(what, Status | Part | Finalize | Scale)
        };
        if call.subresource.is_none_or(|subresource| is_managed(subresource.what)) {
            let old = match scaled {
                Some(existing) => fields::managers_of_scale(call, existing),
                None => existing.map_or_else(Managers::default, Existing::managers),
            };
            effects.managed = Managed { new: std::mem::take(&mut draft.managers), old };
        }
        if draft.creates_by_update {
            self.authorize_create(call).await?;
        }
        if admitted {
            let request = call.request(draft.operation, &draft.name, options);
            let old = draft.old.as_deref();
            let admitted =
                self.admission.mutate(&request, &*self.objects, &mut draft.document, old, &mut effects).await;
            call.warnings.append(&mut effects.warnings);
            admitted?;
            if effects.reinvocation.is_due() {
                Self::ensure_identity_unchanged(call, &mut draft)?;
            }
        }
        let (operation, name) = (draft.operation, std::mem::take(&mut draft.name));
        let managers = match effects.managed.new.is_empty() {
            true => std::mem::take(&mut draft.managers),
            false => effects.managed.new.clone(),
        };
        let managers = match scaled {
            Some(existing) => fields::merge_scale_managers(call, existing, &managers),
            None => managers,
        };
        let resolved = self.resolve(call, intent, draft, existing, options.dry_run())?;
        let Resolved { change, document, given, old } = resolved;
        if admitted {
            let final_name;
            let name = match &change {
                Change::Create { object, .. } => {
                    final_name = object::text(object, "name").to_owned();
                    &final_name
                }
                _ => &name,
            };
            let request = call.request(operation, name, options);
            let shown = document.as_ref().or(change.object()).unwrap_or(&Value::Null);
            let input = ValidateInput { object: shown, given: given.as_ref().unwrap_or(shown), old: old.as_deref() };
            let admitted = self.admission.validate(&request, &*self.objects, input, &mut effects).await;
            call.warnings.append(&mut effects.warnings);
            admitted?;
        }
        if options.shows_warnings() {
            let old = existing.map(|existing| &*existing.value);
            call.warnings.extend(inert::warnings(call.row, call.subresource, &change, old));
        }
        self.prepare_txn(call, intent, (change, managers), existing, effects, options.dry_run()).await
    }

    /// The document for admission, after all webhook conversions that it needs.
    async fn draft_with_conversions(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let warnings_before = call.warnings.len();
        loop {
            let draft = self.draft(call, intent, existing, options);
            if !self.versions.convert_missing(call.row, &call.conversions).await {
                return draft;
            }
            call.warnings.truncate(warnings_before);
        }
    }

    /// Rejects a webhook's change of the object's name or namespace.
    fn ensure_identity_unchanged(call: &RequestScope<'_>, draft: &mut Draft) -> Result<(), ApiError> {
        if draft.document.is_object() {
            object::match_namespace(&mut draft.document, call.object_namespace())?;
            if draft.creates_by_update || draft.operation == Operation::Update {
                object::match_name(&draft.document, call.name)?;
            }
        }
        Ok(())
    }

    /// The transaction of a change, or the response that needs none.
    async fn prepare_txn(
        &self,
        call: &RequestScope<'_>,
        intent: &Intent<'_>,
        (mut change, managers): (Change, Managers),
        existing: Option<&Existing>,
        effects: Effects,
        dry_run: bool,
    ) -> Result<Attempt, ApiError> {
        let row = call.row;
        let key = match &change {
            Change::Create { object, .. } => super::key(row, call.object_namespace(), object::text(object, "name")),
            _ => call.key(),
        };
        if let Change::Create { version: Some(version), .. } = &change
            && version.as_str().and_then(|version| version.parse::<u64>().ok()).unwrap_or(0) != 0
            && !dry_run
        {
            return Err(ApiError::BadRequest("resourceVersion should not be set on objects to be created".into()));
        }
        if dry_run || change == Change::Keep {
            if let Change::Create { .. } = &change
                && let Some(found) = self.cache.get(key.as_str())
            {
                return Ok(Attempt::NameConflict(name_conflict(&change, found.is_deleting())));
            }
            self.drop_unstored_fields(row, &mut change, &managers).await?;
            return Ok(Attempt::Answer(change_result(
                call,
                intent,
                change,
                existing,
                WriteStatus::NotWritten(&managers),
            )));
        }
        let was = existing.filter(|_| !matches!(change, Change::Create { .. })).map_or(0, Existing::modified);
        let (stored, converted) = self.encode_change(row, &change, &managers).await?;
        if let (Change::Update(_), Some(existing), Some(stored)) = (&change, existing, &stored)
            && *stored.body() == *existing.cached.stored()
            // A change of timestamps alone is no change.
            && stored.managers().is_like(existing.cached.managers())
        {
            return Ok(Attempt::Answer(write_result(
                call,
                intent,
                200,
                ResponseObject::Cached(existing.shown.clone()),
            )));
        }
        // The response equals later reads: it has only the fields that the stored version keeps.
        if let (Some(converted), Some(custom), Some(object)) = (converted, &row.custom, change.object_mut()) {
            *object = Box::pin(self.versions.convert_stored(custom, converted)).await?;
        }
        let goes = matches!(change, Change::Remove(_) | Change::MarkAndRemove(_));
        let new = change.object().filter(|_| !goes);
        let old = existing.filter(|_| was > 0).map(|existing| &*existing.value);
        let claim_writer = claims::ClaimWriter { objects: &*self.objects, env: &self.env, now: call.now };
        let Effects { txn: mut extras, writes, quota_locks: locks, .. } = effects;
        claim_writer.change(row, new, old, intent.is_admitted(), &mut extras);
        if let Change::Create { object, .. } = &change {
            extras.compares.extend(self.ensure_definition_unchanged(call, object::text(object, "name"))?);
        }
        for write in &writes {
            self.add_side_write(call, write, &mut extras)?;
        }
        Ok(Attempt::Commit(PreparedTxn { key, was, change, stored, extras, locks }))
    }

    /// The record of a new or changed object; also the object in the stored version, if it was converted.
    async fn encode_change(
        &self,
        row: &ResourceInfo,
        change: &Change,
        managers: &Managers,
    ) -> Result<(Option<Record>, Option<Value>), ApiError> {
        match change.object() {
            Some(object) if !matches!(change, Change::Remove(_)) => {
                let (record, converted) = self.encode_converted(row, object, managers).await?;
                Ok((Some(record), converted))
            }
            _ => Ok((None, None)),
        }
    }

    /// For a dry run, drops the fields that the stored version would not keep.
    async fn drop_unstored_fields(
        &self,
        row: &ResourceInfo,
        change: &mut Change,
        managers: &Managers,
    ) -> Result<(), ApiError> {
        if let (Some(custom), Some(_)) = (&row.custom, &row.stored_as)
            && let (_, Some(converted)) = self.encode_change(row, change, managers).await?
            && let Some(object) = change.object_mut()
        {
            *object = Box::pin(self.versions.convert_stored(custom, converted)).await?;
        }
        Ok(())
    }

    /// Adds a write of another object to the transaction.
    fn add_side_write(&self, call: &RequestScope<'_>, write: &SideWrite, extras: &mut Txn) -> Result<(), ApiError> {
        let SideWrite { group, plural, object } = write;
        let Some(row) = call.catalog.stored(group, plural) else { return Ok(()) };
        let key = super::key(row, object::text(object, "namespace"), object::text(object, "name")).to_string();
        let modified = object::client_version(object)?;
        extras.compares.push(Compare { key: key.clone(), modified });
        // The server's own write: it changes no managers.
        let managers = self.cache.get(&key).map_or_else(Managers::default, |cached| cached.managers().clone());
        extras.ops.push(Op::Put { key, record: Self::encode(row, object, &managers)?, ttl: row.ttl });
        Ok(())
    }

    /// The condition of a custom resource's create: its definition is unchanged and not terminating.
    fn ensure_definition_unchanged(&self, call: &RequestScope<'_>, name: &str) -> Result<Option<Compare>, ApiError> {
        let Some(custom) = &call.row.custom else { return Ok(None) };
        let definition = &custom.definition;
        match self.cache.get(definition.key.as_str()) {
            Some(found) if !found.is_deleting() && !definition.terminating => {
                Ok(Some(Compare { key: definition.key.to_string(), modified: found.modified }))
            }
            _ => {
                let why = "create not allowed while custom resource definition is terminating";
                Err(ApiError::Forbidden(call.resource(), name.to_owned(), why.into()))
            }
        }
    }

    async fn commit_change(
        &self,
        call: &RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        prepared: PreparedTxn,
    ) -> Result<CommitOutcome, ApiError> {
        let PreparedTxn { key, was, change, stored, extras, locks: _locks } = prepared;
        let key: String = key.into();
        let op = match &stored {
            Some(record) => Op::Put { key: key.clone(), record: record.clone(), ttl: call.row.ttl },
            None => Op::Delete { key: key.clone() },
        };
        let committed = match &change {
            Change::MarkAndRemove(_) => {
                // Spawned, so that a cancelled request performs both writes or neither.
                let both = mark_and_remove(self.cache.clone(), key, was, op, extras);
                let both = tokio::spawn(both).await.map_err(|error| ApiError::Internal(error.to_string()))?;
                match both? {
                    MarkOutcome::Removed(revision) => Ok(revision),
                    MarkOutcome::Conflict(conflict) => Err(conflict),
                    MarkOutcome::Held(entry) => {
                        intent.forget_version();
                        return Ok(CommitOutcome::Conflict(Some(entry)));
                    }
                }
            }
            _ => commit(&self.cache, was, op, extras).await?,
        };
        match committed {
            Ok(revision) => {
                let written = WriteStatus::At(revision, stored.as_ref());
                Ok(CommitOutcome::Answer(change_result(call, intent, change, existing, written)))
            }
            Err(Conflict { own: Some(record), .. }) if was == 0 && matches!(intent, Intent::Create(_)) => {
                let deleting = record.is_some_and(|entry| entry.record.is_deleting());
                Ok(CommitOutcome::NameConflict(name_conflict(&change, deleting)))
            }
            Err(Conflict { own, others }) => {
                if others {
                    // The next attempt reads the other objects in their current state.
                    self.cache.sync().await.map_err(|error| store_error(&error))?;
                }
                Ok(CommitOutcome::Conflict(own))
            }
        }
    }
}

fn name_conflict(change: &Change, deleting: bool) -> NameConflict {
    let (object, generated) = match change {
        Change::Create { object, generated, .. } => (object, *generated),
        _ => (&Value::Null, false),
    };
    let has_generate_name = !object::text(object, "generateName").is_empty();
    NameConflict { name: object::text(object, "name").to_owned(), deleting, has_generate_name, generated }
}

/// Whether a change was written.
enum WriteStatus<'a> {
    /// Not written, or a removal: the managers for the response.
    NotWritten(&'a Managers),
    /// Written at a revision, with the record if the object remains.
    At(Revision, Option<&'a Record>),
}

/// The response to a change that was written, or would have been.
fn change_result(
    call: &RequestScope<'_>,
    intent: &Intent<'_>,
    change: Change,
    existing: Option<&Existing>,
    written: WriteStatus<'_>,
) -> VerbResult {
    let row = call.row;
    let old_version = existing.map_or(0, Existing::modified);
    let (version, stored, managers) = match written {
        WriteStatus::NotWritten(managers) => (old_version, None, managers.clone()),
        WriteStatus::At(revision, stored) => {
            (revision, stored, existing.map_or_else(Managers::default, Existing::managers))
        }
    };
    if let Intent::Delete(options) = intent {
        return delete::answer(call, options, change, existing, version, stored);
    }
    match (change, stored.map(|stored| (version, stored))) {
        (Change::Create { object, .. }, Some((revision, stored))) => {
            write_result(call, intent, 201, Registry::stored_as(row, object, stored, revision))
        }
        (Change::Create { mut object, version, .. }, _) => {
            // A dry run returns the client's resourceVersion: only the store would reject it.
            if let Some(given_version) = version {
                object::metadata_mut(&mut object).insert("resourceVersion".into(), given_version);
            }
            write_result(call, intent, 201, ResponseObject::Value(fields::with_managed_fields(object, &managers)))
        }
        (Change::Update(object) | Change::MarkAndRemove(object), Some((revision, stored))) => {
            write_result(call, intent, 200, Registry::stored_as(row, object, stored, revision))
        }
        (Change::Update(object) | Change::MarkAndRemove(object) | Change::Remove(Some(object)), _) => {
            let shown = fields::with_managed_fields(object::versioned(object, old_version), &managers);
            write_result(call, intent, 200, ResponseObject::Value(shown))
        }
        (Change::Remove(None) | Change::Keep, _) => match existing {
            Some(existing) => write_result(call, intent, 200, ResponseObject::Cached(existing.shown.clone())),
            None => VerbResult::Nothing,
        },
    }
}

/// The response of this kind of write for an object.
fn write_result(call: &RequestScope<'_>, intent: &Intent<'_>, code: u16, shown: ResponseObject) -> VerbResult {
    let scales = call.subresource.is_some_and(|s| s.what == SubresourceKind::Scale);
    match intent {
        Intent::Bind(_) => super::binding::success(),
        Intent::ReplaceScale(_) | Intent::PatchScale { .. } => scale::shown(call.row, VerbResult::Object(code, shown)),
        Intent::Apply { .. } if scales => scale::shown(call.row, VerbResult::Object(code, shown)),
        Intent::Delete(options) => VerbResult::Object(delete::marked_code(options), shown),
        _ => VerbResult::Object(code, shown),
    }
}
