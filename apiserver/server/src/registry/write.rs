//! The one way of every write: load → build the new object → admit → prepare, normalise, allocate → validate → admit → one
//! transaction → answer.
//!
//! What is wanted is data ([`Intent`]). An attempt decides from what it read, and writes on the condition that it is still
//! so, together with what admission and the kind add to the transaction (the namespace is still there, an address is still
//! free). Where a condition fails, the next attempt decides anew from the record that the store handed back. A request that
//! is dropped at any await has written all or nothing.
//!
//! What is answered without a transaction (an error, a dry run, no change) is only answered from a watch cache that is known
//! to be up to date ([`WatchCache::sync`](apiserver_storage::cache::WatchCache::sync)); beside the embedded store it always is.

use std::sync::Arc;

use machinery_api::apply::Managers;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::commit::{Conflict, Marked, commit, mark_and_remove};
use super::create::{self, NAME_TRIES_MAX};
use super::intent::{Draft, Intent, Resolved};
use super::{
    Answer, Registry, RequestScope, ResponseObject, TRIES_MAX, claims, delete, fields, inert, object, scale,
    store_error,
};
use crate::admission::{Effects, Managed, Operation, Options, Seen, SideWrite};
use crate::request::deadline::timed_out;
use crate::turns::patience;
use apiserver_resources::{ResourceInfo, SubresourceKind};
use apiserver_storage::cache::Cached;
use apiserver_storage::store::{Compare, Entry, Op, Record, Revision, Txn};

/// An object as it is stored, in the version of the request.
pub(super) struct Existing {
    pub(super) cached: Arc<Cached>,
    /// As it is shown in the version of the request.
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
        Ok(Self { value: Registry::current(row, &shown), shown, cached })
    }

    pub(super) fn modified(&self) -> Revision {
        self.cached.modified
    }

    fn managers(&self) -> Managers {
        self.cached.managers().clone()
    }
}

/// What becomes of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// It is new.
    Create {
        /// The object.
        object: Value,
        /// The resourceVersion that the client gave, which no new object has.
        version: Option<Value>,
        /// Whether its name was made up.
        generated: bool,
    },
    /// It is another.
    Update(Value),
    /// It goes; an update that ends a deletion shows what it made of the object.
    Remove(Option<Value>),
    /// It is marked, and then goes at once: watchers see both, as upstream shows them.
    MarkAndRemove(Value),
    /// It stays as it is.
    Keep,
}

impl Change {
    /// The object as it is stored then, or was last.
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

/// A name that is taken.
struct Taken {
    name: String,
    deleting: bool,
    /// Whether the object asks for a generated name, and got one.
    asks: bool,
    generated: bool,
}

/// How far an attempt comes without the store.
enum Attempt {
    /// To its end.
    Answer(Answer),
    /// To a name that is taken, as far as a dry run can see.
    Taken(Taken),
    /// To a transaction.
    Commit(Ready),
}

/// A transaction that is ready, and what it is about.
struct Ready {
    key: StorageKey,
    was: Revision,
    change: Change,
    /// The stored form of what is new or changed.
    stored: Option<Record>,
    /// What admission and the kind add.
    extras: Txn,
    /// What others wait for meanwhile.
    turns: Vec<OwnedMutexGuard<()>>,
}

/// What a transaction came to.
enum Done {
    Answer(Answer),
    Taken(Taken),
    /// A condition failed. The object's own record, if it was that one.
    Changed(Option<Option<Entry>>),
}

impl Registry {
    /// Does what `intent` says, again whenever another write came first.
    pub(super) async fn write(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        options: Options<'_>,
    ) -> Result<Answer, ApiError> {
        let warnings_before = call.warnings.len();
        let mut is_current = self.cache.is_current();
        let mut names = NAME_TRIES_MAX;
        let mut existing = self.load(call).await?;
        for _ in 0..TRIES_MAX {
            call.warnings.truncate(warnings_before);
            let here = patience::here(self.attempt(call, intent, options, existing.as_ref()));
            let (mut attempt, is_given_up) = here.await;
            if is_given_up {
                call.warnings.truncate(warnings_before);
                let again = Box::pin(self.attempt(call, intent, options, existing.as_ref()));
                let again = patience::elsewhere(again).await;
                attempt = again.unwrap_or_else(|| Err(timed_out()));
            }
            if !is_current && !matches!(attempt, Ok(Attempt::Commit(_))) {
                self.cache.sync().await.map_err(|error| store_error(&error))?;
                is_current = true;
                existing = self.load(call).await?;
                continue;
            }
            let done = match attempt? {
                Attempt::Answer(answer) => Done::Answer(answer),
                Attempt::Taken(taken) => Done::Taken(taken),
                Attempt::Commit(ready) => self.commit_change(call, intent, existing.as_ref(), ready).await?,
            };
            match done {
                Done::Answer(answer) => return Ok(answer),
                Done::Taken(taken) => {
                    names -= 1;
                    if !taken.generated || names == 0 {
                        return Err(create::exists(call, &taken.name, taken.deleting, taken.asks));
                    }
                }
                Done::Changed(Some(record)) => {
                    existing = match record {
                        Some(entry) => Some(Existing::new(self, call.row, self.cache.parsed(&entry)).await?),
                        None => None,
                    };
                }
                Done::Changed(None) => {}
            }
        }
        Err(call.modified())
    }

    /// The object of the path, as far as the watch cache knows.
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
        let mut draft = self.drafted(call, intent, existing, &options).await?;
        let admitted = intent.is_admitted();
        let scaled = existing.filter(|_| call.subresource.is_some_and(|sub| sub.what == SubresourceKind::Scale));
        let is_managed = |what| {
            use SubresourceKind::{Finalize, Part, Scale, Status};
            matches!(what, Status | Part | Finalize | Scale)
        };
        if call.subresource.is_none_or(|subresource| is_managed(subresource.what)) {
            let old = match scaled {
                Some(existing) => fields::of_scale(call, existing),
                None => existing.map_or_else(Managers::default, Existing::managers),
            };
            effects.managed = Managed { new: std::mem::take(&mut draft.managers), old };
        }
        if draft.creates_by_update {
            self.may_create(call).await?;
        }
        if admitted {
            let request = call.request(draft.operation, &draft.name, options);
            let old = draft.old.as_deref();
            let admitted =
                self.admission.mutate(&request, &*self.objects, &mut draft.document, old, &mut effects).await;
            call.warnings.append(&mut effects.warnings);
            admitted?;
            if effects.reinvocation.is_due() {
                Self::stays_itself(call, &mut draft)?;
            }
        }
        let (operation, name) = (draft.operation, std::mem::take(&mut draft.name));
        let managers = match effects.managed.new.is_empty() {
            true => std::mem::take(&mut draft.managers),
            false => effects.managed.new.clone(),
        };
        let managers = match scaled {
            Some(existing) => fields::with_scale(call, existing, &managers),
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
            let seen = Seen { object: shown, given: given.as_ref().unwrap_or(shown), old: old.as_deref() };
            let admitted = self.admission.validate(&request, &*self.objects, seen, &mut effects).await;
            call.warnings.append(&mut effects.warnings);
            admitted?;
        }
        if options.shows_warnings() {
            let old = existing.map(|existing| &*existing.value);
            call.warnings.extend(inert::warnings(call.row, call.subresource, &change, old));
        }
        self.ready(call, intent, (change, managers), existing, effects, options.dry_run()).await
    }

    /// The document that is admitted, once all is known that it takes.
    async fn drafted(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let warnings_before = call.warnings.len();
        loop {
            let draft = self.draft(call, intent, existing, options);
            if !self.versions.fill(call.row, &call.elsewhere).await {
                return draft;
            }
            call.warnings.truncate(warnings_before);
        }
    }

    /// What a webhook may not make of an object: another one.
    fn stays_itself(call: &RequestScope<'_>, draft: &mut Draft) -> Result<(), ApiError> {
        if draft.document.is_object() {
            object::match_namespace(&mut draft.document, call.object_namespace())?;
            if draft.creates_by_update || draft.operation == Operation::Update {
                object::match_name(&draft.document, call.name)?;
            }
        }
        Ok(())
    }

    /// The transaction of a change, or what is answered without one.
    async fn ready(
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
                && let Some(there) = self.cache.get(key.as_str())
            {
                return Ok(Attempt::Taken(taken(&change, there.is_deleting())));
            }
            self.as_if_stored(row, &mut change, &managers).await?;
            return Ok(Attempt::Answer(answer(call, intent, change, existing, Written::No(&managers))));
        }
        let was = existing.filter(|_| !matches!(change, Change::Create { .. })).map_or(0, Existing::modified);
        let (stored, converted) = self.stored(row, &change, &managers).await?;
        if let (Change::Update(_), Some(existing), Some(stored)) = (&change, existing, &stored)
            && *stored.body() == *existing.cached.stored()
            // A change of times alone is none.
            && stored.managers().is_like(existing.cached.managers())
        {
            return Ok(Attempt::Answer(present(call, intent, 200, ResponseObject::Cached(existing.shown.clone()))));
        }
        // The answer shows what reads will show: no more than what the stored version keeps.
        if let (Some(converted), Some(custom), Some(object)) = (converted, &row.custom, change.object_mut()) {
            *object = Box::pin(self.versions.of_stored(custom, converted)).await?;
        }
        let goes = matches!(change, Change::Remove(_) | Change::MarkAndRemove(_));
        let new = change.object().filter(|_| !goes);
        let old = existing.filter(|_| was > 0).map(|existing| &*existing.value);
        let claimed = claims::Claimed { objects: &*self.objects, env: &self.env, now: call.now };
        let Effects { txn: mut extras, writes, turns, .. } = effects;
        claimed.change(row, new, old, intent.is_admitted(), &mut extras);
        if let Change::Create { object, .. } = &change {
            extras.compares.extend(self.definition_stays(call, object::text(object, "name"))?);
        }
        for write in &writes {
            self.add(call, write, &mut extras)?;
        }
        Ok(Attempt::Commit(Ready { key, was, change, stored, extras, turns }))
    }

    /// The stored form of what is new or changed; also as an object, where that is in another version.
    async fn stored(
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

    /// What a dry run shows of an object that would be stored in another version: no more than that keeps.
    async fn as_if_stored(&self, row: &ResourceInfo, change: &mut Change, managers: &Managers) -> Result<(), ApiError> {
        if let (Some(custom), Some(_)) = (&row.custom, &row.stored_as)
            && let (_, Some(converted)) = self.stored(row, change, managers).await?
            && let Some(object) = change.object_mut()
        {
            *object = Box::pin(self.versions.of_stored(custom, converted)).await?;
        }
        Ok(())
    }

    /// Adds the change of another object to a transaction.
    fn add(&self, call: &RequestScope<'_>, write: &SideWrite, extras: &mut Txn) -> Result<(), ApiError> {
        let SideWrite { group, plural, object } = write;
        let Some(row) = call.catalog.stored(group, plural) else { return Ok(()) };
        let key = super::key(row, object::text(object, "namespace"), object::text(object, "name")).to_string();
        let modified = object::client_version(object)?;
        extras.compares.push(Compare { key: key.clone(), modified });
        // The server's own: nobody comes to manage anything by it.
        let managers = self.cache.get(&key).map_or_else(Managers::default, |there| there.managers().clone());
        extras.ops.push(Op::Put { key, record: Self::encode(row, object, &managers)?, ttl: row.ttl });
        Ok(())
    }

    /// A custom resource is only made while its definition is as it was seen, and not ending.
    fn definition_stays(&self, call: &RequestScope<'_>, name: &str) -> Result<Option<Compare>, ApiError> {
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
        ready: Ready,
    ) -> Result<Done, ApiError> {
        let Ready { key, was, change, stored, extras, turns: _turns } = ready;
        let key: String = key.into();
        let op = match &stored {
            Some(record) => Op::Put { key: key.clone(), record: record.clone(), ttl: call.row.ttl },
            None => Op::Delete { key: key.clone() },
        };
        let committed = match &change {
            Change::MarkAndRemove(_) => {
                // Both or neither, also for a client that goes away in between.
                let both = mark_and_remove(self.cache.clone(), key, was, op, extras);
                let both = tokio::spawn(both).await.map_err(|error| ApiError::Internal(error.to_string()))?;
                match both? {
                    Marked::Removed(revision) => Ok(revision),
                    Marked::Conflict(conflict) => Err(conflict),
                    Marked::Held(entry) => {
                        intent.forget_version();
                        return Ok(Done::Changed(Some(entry)));
                    }
                }
            }
            _ => commit(&self.cache, was, op, extras).await?,
        };
        match committed {
            Ok(revision) => {
                Ok(Done::Answer(answer(call, intent, change, existing, Written::At(revision, stored.as_ref()))))
            }
            Err(Conflict { own: Some(record), .. }) if was == 0 && matches!(intent, Intent::Create(_)) => {
                let deleting = record.is_some_and(|entry| entry.record.is_deleting());
                Ok(Done::Taken(taken(&change, deleting)))
            }
            Err(Conflict { own, others }) => {
                if others {
                    // What was decided from other objects is decided from them as they are now.
                    self.cache.sync().await.map_err(|error| store_error(&error))?;
                }
                Ok(Done::Changed(own))
            }
        }
    }
}

fn taken(change: &Change, deleting: bool) -> Taken {
    let (object, generated) = match change {
        Change::Create { object, generated, .. } => (object, *generated),
        _ => (&Value::Null, false),
    };
    let asks = !object::text(object, "generateName").is_empty();
    Taken { name: object::text(object, "name").to_owned(), deleting, asks, generated }
}

/// How far a change came.
enum Written<'a> {
    /// It was not written, or takes the object away: who would manage its fields.
    No(&'a Managers),
    /// It was, as this where the object stays.
    At(Revision, Option<&'a Record>),
}

/// What is answered to a change that was written, or would have been.
fn answer(
    call: &RequestScope<'_>,
    intent: &Intent<'_>,
    change: Change,
    existing: Option<&Existing>,
    written: Written<'_>,
) -> Answer {
    let row = call.row;
    let old_version = existing.map_or(0, Existing::modified);
    let (version, stored, managers) = match written {
        Written::No(managers) => (old_version, None, managers.clone()),
        Written::At(revision, stored) => {
            (revision, stored, existing.map_or_else(Managers::default, Existing::managers))
        }
    };
    if let Intent::Delete(options) = intent {
        return delete::answer(call, options, change, existing, version, stored);
    }
    match (change, stored.map(|stored| (version, stored))) {
        (Change::Create { object, .. }, Some((revision, stored))) => {
            present(call, intent, 201, Registry::stored_as(row, object, stored, revision))
        }
        (Change::Create { mut object, version, .. }, _) => {
            // It comes back as it was said: only the store would mind.
            if let Some(said) = version {
                object::metadata_mut(&mut object).insert("resourceVersion".into(), said);
            }
            present(call, intent, 201, ResponseObject::Value(fields::shown(object, &managers)))
        }
        (Change::Update(object) | Change::MarkAndRemove(object), Some((revision, stored))) => {
            present(call, intent, 200, Registry::stored_as(row, object, stored, revision))
        }
        (Change::Update(object) | Change::MarkAndRemove(object) | Change::Remove(Some(object)), _) => {
            let shown = fields::shown(object::versioned(object, old_version), &managers);
            present(call, intent, 200, ResponseObject::Value(shown))
        }
        (Change::Remove(None) | Change::Keep, _) => match existing {
            Some(existing) => present(call, intent, 200, ResponseObject::Cached(existing.shown.clone())),
            None => Answer::Nothing,
        },
    }
}

/// An object as this kind of write shows it.
fn present(call: &RequestScope<'_>, intent: &Intent<'_>, code: u16, shown: ResponseObject) -> Answer {
    let scales = call.subresource.is_some_and(|s| s.what == SubresourceKind::Scale);
    match intent {
        Intent::Bind(_) => super::binding::done(),
        Intent::ReplaceScale(_) | Intent::PatchScale { .. } => scale::shown(call.row, Answer::Object(code, shown)),
        Intent::Apply { .. } if scales => scale::shown(call.row, Answer::Object(code, shown)),
        Intent::Delete(options) => Answer::Object(delete::marked_code(options), shown),
        _ => Answer::Object(code, shown),
    }
}
