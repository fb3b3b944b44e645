//! The draft of a write: the document that admission receives, with its managed fields.
//!
//! The draft owns the managed fields from its construction to the record. A draft of a Scale maps them at both ends:
//! [`Draft::scale`] derives those of the Scale from the workload's, and [`Draft::managers`] merges them back.

use std::sync::Arc;

use apiserver_schema::apply::Managers;
use machinery_api::ApiError;
use serde_json::Value;

use super::change::{Existing, ObjectChange};
use super::{RequestScope, fields, object, scale};
use apiserver_admission::{Effects, Operation};

/// The document of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DocumentKind {
    /// The object itself.
    Object,
    /// The Scale of the object.
    Scale,
    /// A Binding, which has no managed fields.
    Binding,
    /// Null: the object is deleted.
    Deletion,
}

impl DocumentKind {
    /// The document that validating admission receives.
    pub(super) fn validated<'a>(self, document: &'a Value, change: &'a ObjectChange) -> &'a Value {
        match self {
            Self::Object => change.object().unwrap_or(&Value::Null),
            Self::Scale | Self::Binding | Self::Deletion => document,
        }
    }
}

/// The input of admission, and its results.
pub(super) struct Draft {
    pub(super) kind: DocumentKind,
    /// The object, or the document of a subresource.
    pub(super) document: Value,
    /// The object with the client's empty values, which the stored form drops; built-in plugins see them.
    pub(super) given: Option<Value>,
    /// The existing object or document.
    pub(super) old: Option<Arc<Value>>,
    /// The admission operation.
    pub(super) operation: Operation,
    /// The name in the path, or of the new object if it is known.
    pub(super) name: String,
    /// Whether a PUT or an apply creates an object, which needs authorization for `create`.
    pub(super) creates_by_update: bool,
    /// The managed fields of the document, the warnings, and what admission adds to the transaction.
    pub(super) effects: Effects,
}

impl Draft {
    /// A new object with its managers.
    pub(super) fn create(document: Value, name: String, managers: Managers) -> Self {
        let mut effects = Effects::default();
        effects.managed.new = managers;
        Self {
            kind: DocumentKind::Object,
            document,
            given: None,
            old: None,
            operation: Operation::Create,
            name,
            creates_by_update: false,
            effects,
        }
    }

    /// The existing object after an update, with the managers after it.
    pub(super) fn update(document: Value, old: &Existing, call: &RequestScope<'_>, managers: Managers) -> Self {
        let mut draft = Self::create(document, call.name.to_owned(), managers);
        draft.effects.managed.old = old.managers();
        Self { old: Some(old.value.clone()), operation: Operation::Update, ..draft }
    }

    /// The existing object's Scale after an update, with the managers of the Scale after it.
    pub(super) fn scale(document: Value, old: &Existing, call: &RequestScope<'_>, managers: Managers) -> Self {
        let mut draft = Self::update(document, old, call, managers);
        draft.effects.managed.old = fields::managers_of_scale(call, old);
        let old = Some(Arc::new(scale::of(call.row, &old.value)));
        Self { kind: DocumentKind::Scale, old, ..draft }
    }

    /// A Binding of the object.
    pub(super) fn binding(document: Value, call: &RequestScope<'_>) -> Self {
        let draft = Self::create(document, call.name.to_owned(), Managers::default());
        Self { kind: DocumentKind::Binding, ..draft }
    }

    /// The deletion of the existing object.
    pub(super) fn deletion(old: &Existing, call: &RequestScope<'_>) -> Self {
        let draft = Self::update(Value::Null, old, call, old.managers());
        Self { kind: DocumentKind::Deletion, operation: Operation::Delete, ..draft }
    }

    /// The object's managers after the write.
    pub(super) fn managers(&self, call: &RequestScope<'_>, existing: Option<&Existing>) -> Managers {
        let managers = &self.effects.managed.new;
        match (self.kind, existing) {
            (DocumentKind::Scale, Some(existing)) => fields::merge_scale_managers(call, existing, managers),
            (DocumentKind::Binding, existing) => existing.map_or_else(Managers::default, Existing::managers),
            _ => managers.clone(),
        }
    }

    /// Rejects a webhook's change of the object's name or namespace.
    pub(super) fn ensure_identity_unchanged(&mut self, call: &RequestScope<'_>) -> Result<(), ApiError> {
        if self.document.is_object() {
            object::match_namespace(&mut self.document, call.object_namespace())?;
            if self.creates_by_update || self.operation == Operation::Update {
                object::match_name(&self.document, call.name)?;
            }
        }
        Ok(())
    }
}
