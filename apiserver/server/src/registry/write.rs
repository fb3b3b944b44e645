//! The path of every write: load → build the draft → mutating admission → prepare, normalise, allocate → validate →
//! validating admission → one transaction → response.
//!
//! The goal of a write is data ([`Intent`]). An attempt decides a [`Change`] from what it read, and commits it on the
//! condition that this is unchanged, which gives an [`Outcome`]. The transaction includes the side writes and conditions
//! of admission and of the kind (the namespace exists, an address is free). If a condition fails, the optimistic retry
//! decides again from the record that the store returned. A request that is dropped at any await has written all or
//! nothing.
//!
//! A result without a transaction (an error, a dry run, no change) is only returned from a watch cache that is known to
//! be current ([`WatchCache::sync`](apiserver_storage::cache::WatchCache::sync)); with the embedded store it always is.

use std::ops::ControlFlow::{self, Break, Continue};

use apiserver_schema::apply::Managers;
use machinery_api::ApiError;
use machinery_serve::trace::Span;
use serde_json::Value;

use super::change::{Change, Existing, ObjectChange};
use super::create::{self, NAME_TRIES_MAX};
use super::draft::Draft;
use super::intent::Intent;
use super::outcome::{Outcome, WriteStatus, change_result, write_result};
use super::{Registry, RequestScope, ResponseObject, TRIES_MAX, VerbResult, claims, inert, object, store_error};
use crate::fair_queue::budget;
use apiserver_admission::{Effects, Options, SideWrite, ValidateInput};
use apiserver_resources::ResourceInfo;
use apiserver_storage::store::{Compare, Op, Record, Txn};

/// What an attempt decided: a change to commit, or the outcome that needs no transaction.
type Decision = Result<ControlFlow<Outcome, Change>, ApiError>;

/// A decision with its warnings, which a rejected request has, too.
pub(super) struct Attempt {
    pub(super) decision: Decision,
    pub(super) warnings: Vec<String>,
}

impl Attempt {
    fn timed_out() -> Self {
        Self { decision: Err(ApiError::request_timed_out()), warnings: Vec::new() }
    }
}

impl Registry {
    /// Carries out `intent`, and adds the warnings of the last attempt to those of the request.
    pub(super) async fn write(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        options: Options<'_>,
    ) -> Result<VerbResult, ApiError> {
        let mut warnings = Vec::new();
        let done = self.write_with_retry(call, intent, options, &mut warnings).await;
        call.warnings.append(&mut warnings);
        done
    }

    /// The optimistic retry: another attempt whenever another write came first. `warnings` are those of the last one.
    async fn write_with_retry(
        &self,
        call: &RequestScope<'_>,
        intent: &mut Intent<'_>,
        options: Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<VerbResult, ApiError> {
        let mut is_current = self.cache.is_current();
        let mut names = NAME_TRIES_MAX;
        let mut existing = self.load(call).await?;
        for _ in 0..TRIES_MAX {
            let inline = budget::run_inline(self.attempt(call, intent, options, existing.as_ref()));
            let (mut attempt, exceeds_budget) = inline.await;
            if exceeds_budget {
                // Releases the locks of the discarded attempt, which the next one needs.
                drop(attempt);
                let again = Box::pin(self.attempt(call, intent, options, existing.as_ref()));
                attempt = budget::run_blocking(again).await.unwrap_or_else(Attempt::timed_out);
            }
            *warnings = attempt.warnings;
            if !is_current && !matches!(attempt.decision, Ok(Continue(_))) {
                self.cache.sync().await.map_err(|error| store_error(&error))?;
                is_current = true;
                existing = self.load(call).await?;
                continue;
            }
            let outcome = match attempt.decision? {
                Break(outcome) => outcome,
                Continue(change) => self.commit_change(call, intent, existing.as_ref(), change).await?,
            };
            match outcome {
                Outcome::Response(response) => return Ok(response),
                Outcome::NameConflict { name, deleting, has_generate_name, generated } => {
                    names -= 1;
                    if !generated || names == 0 {
                        return Err(create::already_exists(call, &name, deleting, has_generate_name));
                    }
                }
                Outcome::Conflict(Some(record)) => {
                    existing = match record {
                        Some(entry) => Some(Existing::new(self, call.row, self.cache.cached_entry(&entry)).await?),
                        None => None,
                    };
                }
                Outcome::Conflict(None) => {}
            }
        }
        Err(call.modified())
    }

    /// The object of the path in the watch cache.
    pub(super) async fn load(&self, call: &RequestScope<'_>) -> Result<Option<Existing>, ApiError> {
        match self.cache.get(call.key().as_str()) {
            Some(cached) => Existing::new(self, call.row, cached).await.map(Some),
            None => Ok(None),
        }
    }

    /// Decides once. Writes nothing.
    pub(super) async fn attempt(
        &self,
        call: &RequestScope<'_>,
        intent: &mut Intent<'_>,
        options: Options<'_>,
        existing: Option<&Existing>,
    ) -> Attempt {
        let mut warnings = Vec::new();
        let mut draft = match self.draft_with_conversions(call, intent, existing, &options, &mut warnings).await {
            Ok(draft) => draft,
            Err(error) => return Attempt { decision: Err(error), warnings },
        };
        draft.effects.warnings = warnings;
        let decision = self.decide(call, intent, options, existing, &mut draft).await;
        Attempt { decision, warnings: draft.effects.warnings }
    }

    /// Carries a draft through admission and validation to its change.
    async fn decide(
        &self,
        call: &RequestScope<'_>,
        intent: &Intent<'_>,
        options: Options<'_>,
        existing: Option<&Existing>,
        draft: &mut Draft,
    ) -> Decision {
        let admitted = intent.is_admitted();
        if draft.creates_by_update {
            self.authorize_create(call).await?;
        }
        if admitted {
            let Draft { document, old, operation, name, effects, .. } = &mut *draft;
            let request = call.request(*operation, name, options);
            let span = Span::child("admission.mutate");
            let mutated = self.admission.mutate(&request, &*self.objects, document, old.as_deref(), effects);
            let mutated = span.within(mutated).await;
            mutated.inspect_err(|error| span.fail(error.to_string()))?;
            if effects.reinvocation.is_due() {
                draft.ensure_identity_unchanged(call)?;
            }
        }
        let change = self.resolve(call, intent, draft, existing, options.dry_run())?;
        if admitted {
            let Draft { kind, document, given, old, operation, name, effects, .. } = &mut *draft;
            let name = match &change {
                ObjectChange::Create { object, .. } => object::text(object, "name"),
                _ => name,
            };
            let request = call.request(*operation, name, options);
            let object = kind.validated(document, &change);
            let given = given.as_ref().unwrap_or(object);
            let input = ValidateInput { object, given, old: old.as_deref() };
            let span = Span::child("admission.validate");
            let validated = span.within(self.admission.validate(&request, &*self.objects, input, effects)).await;
            validated.inspect_err(|error| span.fail(error.to_string()))?;
        }
        if options.shows_warnings() {
            let old = existing.map(|existing| &*existing.value);
            draft.effects.warnings.extend(inert::warnings(call.row, call.subresource, &change, old));
        }
        if options.dry_run() || change == ObjectChange::Keep {
            return self.unwritten(call, intent, change, existing, draft).await.map(Break);
        }
        self.prepare_change(call, intent, change, existing, draft).await
    }

    /// The draft, after all webhook conversions that it needs.
    async fn draft_with_conversions(
        &self,
        call: &RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        options: &Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, ApiError> {
        loop {
            let mut own = Vec::new();
            let draft = Self::draft(call, intent, existing, options, &mut own);
            if !self.versions.convert_missing(call.row, &call.conversions).await {
                *warnings = own;
                return draft;
            }
        }
    }

    /// The outcome of a change that isn't written: of a dry run, or of no change.
    async fn unwritten(
        &self,
        call: &RequestScope<'_>,
        intent: &Intent<'_>,
        mut change: ObjectChange,
        existing: Option<&Existing>,
        draft: &Draft,
    ) -> Result<Outcome, ApiError> {
        if let ObjectChange::Create { .. } = &change
            && let Some(found) = self.cache.get(change.key(call).as_str())
        {
            return Ok(Outcome::name_conflict(&change, found.is_deleting()));
        }
        let managers = draft.managers(call, existing);
        self.drop_unstored_fields(call.row, &mut change, &managers).await?;
        let unwritten = WriteStatus::NotWritten(&managers);
        Ok(Outcome::Response(change_result(call, intent, change, existing, unwritten)))
    }

    /// The transaction of a change, or the outcome if the stored object remains as it is.
    async fn prepare_change(
        &self,
        call: &RequestScope<'_>,
        intent: &Intent<'_>,
        mut object: ObjectChange,
        existing: Option<&Existing>,
        draft: &mut Draft,
    ) -> Decision {
        let row = call.row;
        if let ObjectChange::Create { version: Some(version), .. } = &object
            && version.as_str().and_then(|version| version.parse::<u64>().ok()).unwrap_or(0) != 0
        {
            return Err(ApiError::BadRequest("resourceVersion should not be set on objects to be created".into()));
        }
        let key = object.key(call);
        let was = existing.filter(|_| !matches!(object, ObjectChange::Create { .. })).map_or(0, Existing::modified);
        let (record, converted) = self.encode_change(row, &object, &draft.managers(call, existing)).await?;
        if let (ObjectChange::Update(_), Some(existing), Some(record)) = (&object, existing, &record)
            && *record.body() == *existing.cached.stored()
            // A change of timestamps alone is no change.
            && record.managers().is_like(existing.cached.managers())
        {
            let shown = ResponseObject::Cached(existing.shown.clone());
            return Ok(Break(Outcome::Response(write_result(call, intent, 200, shown))));
        }
        // The response equals later reads: it has only the fields that the stored version keeps.
        if let (Some(converted), Some(custom), Some(object)) = (converted, &row.custom, object.object_mut()) {
            *object = Box::pin(self.versions.convert_stored(custom, converted)).await?;
        }
        let old = existing.filter(|_| was > 0).map(|existing| &*existing.value);
        let claim_writer = claims::ClaimWriter { objects: &*self.objects, env: &self.env, now: call.now };
        let Effects { txn, writes, quota_locks, .. } = &mut draft.effects;
        let (mut extras, locks) = (std::mem::take(txn), std::mem::take(quota_locks));
        claim_writer.change(row, object.remaining(), old, intent.is_admitted(), &mut extras);
        if let ObjectChange::Create { object, generated, .. } = &object {
            // Upstream checks this before it generates a name.
            let name = if *generated { "" } else { object::text(object, "name") };
            extras.compares.extend(self.ensure_definition_unchanged(call, name)?);
        }
        for write in &*writes {
            self.add_side_write(call, write, &mut extras)?;
        }
        Ok(Continue(Change { key, was, object, record, extras, locks }))
    }

    /// The record of a new or changed object; also the object in the stored version, if it was converted.
    async fn encode_change(
        &self,
        row: &ResourceInfo,
        change: &ObjectChange,
        managers: &Managers,
    ) -> Result<(Option<Record>, Option<Value>), ApiError> {
        match change.object() {
            Some(object) if !matches!(change, ObjectChange::Remove(_)) => {
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
        change: &mut ObjectChange,
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
}

#[cfg(test)]
mod tests;
