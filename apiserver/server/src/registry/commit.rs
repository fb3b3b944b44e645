//! The transaction of a write, on the condition that everything is still as it was when it was decided.

use std::sync::Arc;

use apiserver_storage::cache::WatchCache;
use apiserver_storage::store::{Compare, Entry, Op, Outcome, Revision, Txn};
use machinery_api::ApiError;

use super::{TRIES_MAX, object, store_error};

/// Which condition failed.
pub(super) struct Conflict {
    /// The object's own record, if that was it.
    pub(super) own: Option<Option<Entry>>,
    /// Whether another one may have failed.
    pub(super) others: bool,
}

/// One write of an object, if it is still as it was read and all other conditions hold.
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

/// What became of an object that was to be marked and to go at once.
pub(super) enum Marked {
    Removed(Revision),
    Conflict(Conflict),
    /// Somebody gave it finalizers in between.
    Held(Option<Entry>),
}

/// Marks an object and removes it whatever it has become in between. It runs to its end by itself: what began is finished.
pub(super) async fn mark_and_remove(
    cache: Arc<WatchCache>,
    key: String,
    was: Revision,
    mark: Op,
    extras: Txn,
) -> Result<Marked, ApiError> {
    let Txn { compares, ops } = extras;
    let mut marked = match commit(&cache, was, mark, Txn { compares, ops: Vec::new() }).await? {
        Ok(revision) => revision,
        Err(conflict) => return Ok(Marked::Conflict(conflict)),
    };
    for _ in 0..TRIES_MAX {
        let removal = Txn { compares: Vec::new(), ops: ops.clone() };
        match commit(&cache, marked, Op::Delete { key: key.clone() }, removal).await? {
            Ok(revision) => return Ok(Marked::Removed(revision)),
            Err(Conflict { own: Some(Some(entry)), .. }) => {
                let object = cache.parsed(&entry).shared();
                if !object::is_deleting(&object) || !object::finalizers(&object).is_empty() {
                    return Ok(Marked::Held(Some(entry)));
                }
                marked = entry.modified;
            }
            // Somebody else removed it.
            Err(_) => return Ok(Marked::Removed(marked)),
        }
    }
    Ok(Marked::Held(cache.store().get(&key, None).await.map_err(|error| store_error(&error))?))
}
