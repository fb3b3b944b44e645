//! The outcome of an attempt to write: a response, or the reason for another attempt.

use apiserver_schema::apply::Managers;
use apiserver_storage::store::{Entry, Record, Revision};
use serde_json::Value;

use super::change::{Existing, ObjectChange};
use super::intent::Intent;
use super::{Registry, RequestScope, ResponseObject, VerbResult, binding, delete, fields, object, scale};

/// The outcome of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The write is done.
    Response(VerbResult),
    /// An object with the name exists already.
    NameConflict {
        name: String,
        /// Whether the existing object is being deleted.
        deleting: bool,
        /// Whether the new object has a `generateName`.
        has_generate_name: bool,
        /// Whether the name was generated, so that another one can be.
        generated: bool,
    },
    /// A condition failed. Contains the object's current record if its own condition did.
    Conflict(Option<Option<Entry>>),
}

impl Outcome {
    /// The outcome of a create whose name exists.
    pub(super) fn name_conflict(change: &ObjectChange, deleting: bool) -> Self {
        let (object, generated) = match change {
            ObjectChange::Create { object, generated, .. } => (object, *generated),
            _ => (&Value::Null, false),
        };
        let has_generate_name = !object::text(object, "generateName").is_empty();
        Self::NameConflict { name: object::text(object, "name").to_owned(), deleting, has_generate_name, generated }
    }
}

/// Whether a change was written.
pub(super) enum WriteStatus<'a> {
    /// Not written, or a removal: the managers for the response.
    NotWritten(&'a Managers),
    /// Written at a revision, with the record if the object remains.
    At(Revision, Option<&'a Record>),
}

/// The response to a change that was written, or would have been.
pub(super) fn change_result(
    call: &RequestScope<'_>,
    intent: &Intent<'_>,
    change: ObjectChange,
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
        (ObjectChange::Create { object, .. }, Some((revision, stored))) => {
            write_result(call, intent, 201, Registry::stored_as(row, object, stored, revision))
        }
        (ObjectChange::Create { mut object, version, .. }, _) => {
            // A dry run returns the client's resourceVersion: only the store would reject it.
            if let Some(given_version) = version {
                object::metadata_mut(&mut object).insert("resourceVersion".into(), given_version);
            }
            write_result(call, intent, 201, ResponseObject::Value(fields::with_managed_fields(object, &managers)))
        }
        (ObjectChange::Update(object) | ObjectChange::MarkAndRemove(object), Some((revision, stored))) => {
            write_result(call, intent, 200, Registry::stored_as(row, object, stored, revision))
        }
        (
            ObjectChange::Update(object) | ObjectChange::MarkAndRemove(object) | ObjectChange::Remove(Some(object)),
            _,
        ) => {
            let shown = fields::with_managed_fields(object::versioned(object, old_version), &managers);
            write_result(call, intent, 200, ResponseObject::Value(shown))
        }
        (ObjectChange::Remove(None) | ObjectChange::Keep, _) => match existing {
            Some(existing) => write_result(call, intent, 200, ResponseObject::Cached(existing.shown.clone())),
            None => VerbResult::Nothing,
        },
    }
}

/// The response of this kind of write for an object.
pub(super) fn write_result(
    call: &RequestScope<'_>,
    intent: &Intent<'_>,
    code: u16,
    shown: ResponseObject,
) -> VerbResult {
    match intent {
        Intent::Bind(_) => binding::success(),
        Intent::Delete(options) => VerbResult::Object(delete::marked_code(options), shown),
        _ if call.is_scale() => scale::shown(call.row, VerbResult::Object(code, shown)),
        _ => VerbResult::Object(code, shown),
    }
}
