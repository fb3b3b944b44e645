//! Commits a change in one transaction, on the condition that everything it was decided from is unchanged.

use std::sync::Arc;

use apiserver_storage::cache::WatchCache;
use apiserver_storage::store::{self, Compare, Entry, Op, Revision, Txn};
use machinery_api::ApiError;
use machinery_serve::trace::Span;

use super::change::{Change, Existing, ObjectChange};
use super::intent::Intent;
use super::outcome::{Outcome, WriteStatus, change_result};
use super::{Registry, RequestScope, TRIES_MAX, object, store_error};

impl Registry {
    /// Commits a change.
    pub(super) async fn commit_change(
        &self,
        call: &RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        change: Change,
    ) -> Result<Outcome, ApiError> {
        let Change { key, was, object, record, extras, locks: _locks } = change;
        let key: String = key.into();
        let op = match &record {
            Some(record) => Op::Put { key: key.clone(), record: record.clone(), ttl: call.row.ttl },
            None => Op::Delete { key: key.clone() },
        };
        let span = Span::child("store.commit");
        span.set_text("coracle.store.key", || key.clone());
        let committed = match &object {
            ObjectChange::MarkAndRemove(_) => {
                // Spawned, so that a cancelled request performs both writes or neither.
                let both = mark_and_remove(self.cache.clone(), key, was, op, extras);
                let both = tokio::spawn(both).await.map_err(|error| ApiError::Internal(error.to_string()))?;
                match both? {
                    MarkOutcome::Removed(revision) => Ok(revision),
                    MarkOutcome::Conflict(conflict) => Err(conflict),
                    MarkOutcome::Held(entry) => {
                        intent.forget_version();
                        return Ok(Outcome::Conflict(Some(entry)));
                    }
                }
            }
            _ => commit(&self.cache, was, op, extras).await?,
        };
        span.set("coracle.store.conflict", committed.is_err());
        drop(span);
        match committed {
            Ok(revision) => {
                let written = WriteStatus::At(revision, record.as_ref());
                Ok(Outcome::Response(change_result(call, intent, object, existing, written)))
            }
            Err(Conflict { own: Some(record), .. }) if was == 0 && matches!(intent, Intent::Create(_)) => {
                let deleting = record.is_some_and(|entry| entry.record.is_deleting());
                Ok(Outcome::name_conflict(&object, deleting))
            }
            Err(Conflict { own, others }) => {
                if others {
                    // The next attempt reads the other objects in their current state.
                    self.cache.sync().await.map_err(|error| store_error(&error))?;
                }
                Ok(Outcome::Conflict(own))
            }
        }
    }
}

/// The conditions that failed.
struct Conflict {
    /// The object's current record, if its own condition failed.
    own: Option<Option<Entry>>,
    /// Whether the condition of another object may have failed.
    others: bool,
}

/// Writes one object, if it is unchanged since it was read and all other conditions hold.
async fn commit(
    cache: &WatchCache,
    was: Revision,
    op: Op,
    extras: Txn,
) -> Result<Result<Revision, Conflict>, ApiError> {
    let mut compares = Vec::with_capacity(1 + extras.compares.len());
    compares.push(Compare { key: op.key().to_owned(), modified: was });
    compares.extend(extras.compares);
    let others = compares.len() > 1;
    let mut ops = Vec::with_capacity(1 + extras.ops.len());
    ops.push(op);
    ops.extend(extras.ops);
    match cache.commit(Txn { compares, ops }).await {
        Ok(store::Outcome::Committed(revision)) => Ok(Ok(revision)),
        Ok(store::Outcome::Conflict(entries)) => {
            let record = entries.into_iter().next().flatten();
            let own = (record.as_ref().map_or(0, |entry| entry.modified) != was).then_some(record);
            Ok(Err(Conflict { own, others }))
        }
        Err(error) => Err(store_error(&error)),
    }
}

/// The result of [`mark_and_remove`].
enum MarkOutcome {
    Removed(Revision),
    Conflict(Conflict),
    /// Another writer added finalizers in between.
    Held(Option<Entry>),
}

/// Marks an object as deleted and removes it, whatever other writers change in between. The caller spawns it, so that
/// it is never cancelled halfway.
async fn mark_and_remove(
    cache: Arc<WatchCache>,
    key: String,
    was: Revision,
    mark: Op,
    extras: Txn,
) -> Result<MarkOutcome, ApiError> {
    let Txn { compares, ops } = extras;
    let mut marked = match commit(&cache, was, mark, Txn { compares, ops: Vec::new() }).await? {
        Ok(revision) => revision,
        Err(conflict) => return Ok(MarkOutcome::Conflict(conflict)),
    };
    for _ in 0..TRIES_MAX {
        let removal = Txn { compares: Vec::new(), ops: ops.clone() };
        match commit(&cache, marked, Op::Delete { key: key.clone() }, removal).await? {
            Ok(revision) => return Ok(MarkOutcome::Removed(revision)),
            Err(Conflict { own: Some(Some(entry)), .. }) => {
                let object = cache.cached_entry(&entry).shared();
                if !object::is_deleting(&object) || !object::finalizers(&object).is_empty() {
                    return Ok(MarkOutcome::Held(Some(entry)));
                }
                marked = entry.modified;
            }
            // Another writer removed it.
            Err(_) => return Ok(MarkOutcome::Removed(marked)),
        }
    }
    Ok(MarkOutcome::Held(cache.store().get(&key, None).await.map_err(|error| store_error(&error))?))
}
