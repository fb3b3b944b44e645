//! Commits a write in one transaction, on the condition that everything it was decided from is unchanged.

use std::sync::Arc;

use apiserver_storage::cache::WatchCache;
use apiserver_storage::store::{Compare, Entry, Op, Outcome, Revision, Txn};
use machinery_api::ApiError;

use super::{TRIES_MAX, object, store_error};

/// The conditions that failed.
pub(super) struct Conflict {
    /// The object's current record, if its own condition failed.
    pub(super) own: Option<Option<Entry>>,
    /// Whether the condition of another object may have failed.
    pub(super) others: bool,
}

/// Writes one object, if it is unchanged since it was read and all other conditions hold.
pub(super) async fn commit(
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
        Ok(Outcome::Committed(revision)) => Ok(Ok(revision)),
        Ok(Outcome::Conflict(entries)) => {
            let record = entries.into_iter().next().flatten();
            let own = (record.as_ref().map_or(0, |entry| entry.modified) != was).then_some(record);
            Ok(Err(Conflict { own, others }))
        }
        Err(error) => Err(store_error(&error)),
    }
}

/// The result of [`mark_and_remove`].
pub(super) enum MarkOutcome {
    Removed(Revision),
    Conflict(Conflict),
    /// Another writer added finalizers in between.
    Held(Option<Entry>),
}

/// Marks an object as deleted and removes it, whatever other writers change in between. The caller spawns it, so that
/// it is never cancelled halfway.
pub(super) async fn mark_and_remove(
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
