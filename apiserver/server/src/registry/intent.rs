//! The intent of a write as data, and the change that each kind of write makes of the existing object.
//!
//! [`Registry::draft`] builds the document for admission (the object, or the Scale or Binding of a subresource);
//! [`Registry::resolve`] builds the change from it. Both are synchronous: each decides from one state.

use std::sync::Arc;

use machinery_api::ApiError;
use machinery_api::apply::Managers;
use serde_json::Value;

use super::object::{self, metadata_mut};
use super::write::{Change, Existing};
use super::{PatchType, Registry, RequestScope, binding, body, check_uid, create, delete, eviction, fields, scale};
use crate::admission::{Operation, Options};
use crate::request::options::DeleteOptions;
use apiserver_resources::SubresourceKind;
use machinery_api::schema::FieldValidation;

/// The object of a request body. It is decoded once, and again for an optimistic retry, which is rare, instead of being
/// copied for every request.
pub struct RequestObject<'a> {
    decoded: Option<Value>,
    decode_again: &'a (dyn Fn() -> Result<Value, ApiError> + Send + Sync),
}

impl<'a> RequestObject<'a> {
    /// Takes the decoded object, and how to decode it again.
    pub fn new(decoded: Value, decode_again: &'a (dyn Fn() -> Result<Value, ApiError> + Send + Sync)) -> Self {
        Self { decoded: Some(decoded), decode_again }
    }

    fn take(&mut self) -> Result<Value, ApiError> {
        self.decoded.take().map_or_else(self.decode_again, Ok)
    }
}

/// The intent of a write.
pub(super) enum Intent<'a> {
    /// Creates an object.
    Create(RequestObject<'a>),
    /// Replaces the object (PUT), or creates it for kinds that allow create on update.
    Replace(RequestObject<'a>),
    /// Replaces the object's Scale.
    ReplaceScale(RequestObject<'a>),
    /// Patches the object in its current state.
    Patch {
        /// The kind of patch.
        kind: PatchType,
        /// The patch's body.
        patch: &'a [u8],
        /// The validation of unknown fields in the result.
        validation: FieldValidation,
    },
    /// Applies a configuration to the object or its Scale; creates the object if it doesn't exist.
    Apply {
        /// The patch's body.
        patch: &'a [u8],
        /// Whether it takes over fields of other managers.
        force: bool,
        /// The validation of duplicate keys.
        validation: FieldValidation,
    },
    /// Patches the object's Scale.
    PatchScale {
        /// The kind of patch.
        kind: PatchType,
        /// The patch's body.
        patch: &'a [u8],
        /// The validation of unknown fields in the result.
        validation: FieldValidation,
    },
    /// Assigns a pod to the node of a Binding.
    Bind(RequestObject<'a>),
    /// Deletes the object.
    Delete(DeleteOptions),
    /// Sets the disruption condition of an evicted pod, if the preconditions hold: the server's own write.
    SetDisruption(DeleteOptions),
    /// Creates a default object, or replaces it if it has a resourceVersion: the server's own write.
    InstallDefault(&'a Value),
    /// Removes a default object, so that another can be created: the server's own write.
    RemoveDefault,
}

impl Intent<'_> {
    /// Whether admission and validation apply: to everything but the server's own writes.
    pub(super) fn is_admitted(&self) -> bool {
        match self {
            Self::InstallDefault(_) | Self::RemoveDefault | Self::SetDisruption(_) => false,
            Self::Delete(options) => !options.of_eviction,
            _ => true,
        }
    }

    /// Drops the version precondition once the deletion has begun: the rest of it applies to any version.
    pub(super) fn forget_version(&mut self) {
        if let Self::Delete(options) = self {
            options.resource_version = None;
        }
    }
}

/// The input of mutating admission.
pub(super) struct Draft {
    /// The object, or the document of a subresource.
    pub(super) document: Value,
    /// The existing object or document.
    pub(super) old: Option<Arc<Value>>,
    /// The admission operation.
    pub(super) operation: Operation,
    /// The name in the path, or of the new object if it is known.
    pub(super) name: String,
    /// Whether a PUT or an apply creates an object, which needs authorization for `create`.
    pub(super) creates_by_update: bool,
    /// The managers of the document after the write; for a subresource other than Scale, those of the object.
    pub(super) managers: Managers,
}

/// The result of [`Registry::resolve`].
pub(super) struct Resolved {
    pub(super) change: Change,
    /// The object for validating admission, if it isn't the stored one.
    pub(super) document: Option<Value>,
    /// The object with the client's empty values, which the stored form drops; built-in plugins see them.
    pub(super) given: Option<Value>,
    /// The existing object or document.
    pub(super) old: Option<Arc<Value>>,
}

/// The existing managers, for writes that change none of them.
fn existing_managers(existing: Option<&Existing>) -> Managers {
    existing.map_or_else(Managers::default, |existing| existing.cached.managers().clone())
}

impl Draft {
    fn create(document: Value, name: String) -> Self {
        let operation = Operation::Create;
        Self { document, old: None, operation, name, creates_by_update: false, managers: Managers::default() }
    }

    fn update(document: Value, old: &Existing, call: &RequestScope<'_>) -> Self {
        let old = Some(old.value.clone());
        Self { old, operation: Operation::Update, ..Self::create(document, call.name.to_owned()) }
    }

    fn scale(document: Value, old: &Existing, call: &RequestScope<'_>) -> Self {
        let old_scale = Some(Arc::new(scale::of(call.row, &old.value)));
        Self { old: old_scale, ..Self::update(document, old, call) }
    }

    fn managed(self, managers: Managers) -> Self {
        Self { managers, ..self }
    }
}

impl Registry {
    /// Builds the document for admission.
    pub(super) fn draft(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let dry_run = options.dry_run();
        match intent {
            Intent::Create(requested) => Self::draft_created(call, requested, options),
            Intent::Replace(requested) => {
                let mut object = requested.take()?;
                object::match_namespace(&mut object, call.object_namespace())?;
                object::match_name(&object, call.name)?;
                let sent = fields::take_managed_fields(&mut object);
                object::dedup_owners(&mut object, &mut call.warnings, false);
                let Some(old) = existing else {
                    let draft = Self::draft_new(call, object, dry_run)?;
                    let managers = fields::managers_after_write(call, options, None, &draft.document, sent);
                    return Ok(draft.managed(managers));
                };
                check_uid(call, &object, &old.value, dry_run)?;
                let managers = fields::managers_after_write(call, options, existing, &object, sent);
                Ok(Draft::update(object, old, call).managed(managers))
            }
            Intent::Patch { kind, patch, validation } => {
                Self::draft_patched(call, (*kind, patch, *validation), existing, options)
            }
            Intent::Apply { patch, force, validation } => {
                self.draft_applied(call, (patch, *force, *validation), existing, options)
            }
            Intent::ReplaceScale(requested) => {
                let mut scale = requested.take()?;
                object::match_namespace(&mut scale, call.object_namespace())?;
                object::match_name(&scale, call.name)?;
                let old = existing.ok_or_else(|| call.not_found())?;
                drop(fields::take_managed_fields(&mut scale));
                let managers = fields::managers_after_scale(call, options, old, &scale);
                Ok(Draft::scale(scale, old, call).managed(managers))
            }
            Intent::PatchScale { kind, patch, validation } => {
                let old = existing.ok_or_else(|| call.not_found())?;
                let mut scale = scale::patched(call, &old.value, *kind, patch, *validation)?;
                drop(fields::take_managed_fields(&mut scale));
                let managers = fields::managers_after_scale(call, options, old, &scale);
                Ok(Draft::scale(scale, old, call).managed(managers))
            }
            Intent::Bind(requested) => {
                let mut binding = requested.take()?;
                object::match_namespace(&mut binding, call.object_namespace())?;
                Ok(Draft::create(binding, call.name.to_owned()).managed(existing_managers(existing)))
            }
            Intent::Delete(_) => {
                // Admission is not called for an object that doesn't exist.
                let old = Some(existing.ok_or_else(|| call.not_found())?.value.clone());
                let draft = Draft::create(Value::Null, call.name.to_owned());
                Ok(Draft { old, operation: Operation::Delete, managers: existing_managers(existing), ..draft })
            }
            Intent::InstallDefault(object) => {
                let managers = fields::managers_after_install(call, existing, object);
                Ok(Draft::create((*object).clone(), call.name.to_owned()).managed(managers))
            }
            Intent::SetDisruption(options) => {
                let old = existing.ok_or_else(|| call.not_found())?;
                let new = eviction::with_disruption(call, &old.value, old.modified(), options)?;
                Ok(Draft::update(new, old, call).managed(existing_managers(existing)))
            }
            Intent::RemoveDefault => Ok(Draft::create(Value::Null, call.name.to_owned())),
        }
    }

    /// A new object from a create.
    fn draft_created(
        call: &mut RequestScope<'_>,
        requested: &mut RequestObject<'_>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let mut object = requested.take()?;
        let sent = fields::take_managed_fields(&mut object);
        create::strip_system_fields(&mut object);
        object::match_namespace(&mut object, call.object_namespace())?;
        object::dedup_owners(&mut object, &mut call.warnings, false);
        let name = object::text(&object, "name").to_owned();
        let managers = fields::managers_after_write(call, options, None, &object, sent);
        Ok(Draft::create(object, name).managed(managers))
    }

    /// The result of a patch.
    fn draft_patched(
        call: &mut RequestScope<'_>,
        (kind, patch, validation): (PatchType, &[u8], FieldValidation),
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let old = existing.ok_or_else(|| call.not_found())?;
        let managed = fields::touches_managers(kind, patch).then(|| fields::object_with_managers(old));
        let current = managed.as_ref().unwrap_or(&old.value);
        let mut new = body::patched(call.row, kind, patch, current, validation, &mut call.warnings)?;
        let sent = fields::take_managed_fields(&mut new);
        object::match_namespace(&mut new, call.object_namespace())?;
        object::match_name(&new, call.name)?;
        let managers = fields::managers_after_write(call, options, existing, &new, sent);
        object::dedup_owners(&mut new, &mut call.warnings, true);
        Ok(Draft::update(new, old, call).managed(managers))
    }

    /// The result of an apply to the object or its Scale, or a new object.
    fn draft_applied(
        &self,
        call: &mut RequestScope<'_>,
        patch: (&[u8], bool, FieldValidation),
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        if existing.is_none() && call.subresource.is_some() {
            return Err(call.not_found());
        }
        let scales = call.subresource.is_some_and(|s| s.what == SubresourceKind::Scale);
        let (mut object, managers) = fields::apply_patch(call, options, existing, patch)?;
        if existing.is_none() {
            fields::check_new_uid(call, &object)?;
        }
        object::match_namespace(&mut object, call.object_namespace())?;
        object::match_name(&object, call.name)?;
        if scales {
            let old = existing.ok_or_else(|| call.not_found())?;
            return Ok(Draft::scale(object, old, call).managed(managers));
        }
        body::default(call.row, &mut object);
        object::dedup_owners(&mut object, &mut call.warnings, true);
        let Some(old) = existing else {
            create::strip_system_fields(&mut object);
            metadata_mut(&mut object).remove("resourceVersion");
            let draft = Draft::create(object, call.name.to_owned()).managed(managers);
            return Ok(Draft { creates_by_update: true, ..draft });
        };
        Ok(Draft::update(object, old, call).managed(managers))
    }

    /// A new object from a PUT, for kinds that allow create on update. As upstream, this also works through a
    /// subresource; the kind's strategy drops the fields that such an object cannot have.
    fn draft_new(call: &RequestScope<'_>, mut object: Value, dry_run: bool) -> Result<Draft, ApiError> {
        if !call.subresource.is_none_or(|s| s.what == SubresourceKind::Status) || !call.row.strategy.create_on_update()
        {
            return Err(call.not_found());
        }
        check_uid(call, &object, &Value::Null, dry_run)?;
        object::client_version(&object)?;
        let metadata = metadata_mut(&mut object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            metadata.remove(field);
        }
        if !dry_run {
            metadata.remove("resourceVersion");
        }
        Ok(Draft { creates_by_update: true, ..Draft::create(object, call.name.to_owned()) })
    }

    /// Builds the change of the object.
    pub(super) fn resolve(
        &self,
        call: &mut RequestScope<'_>,
        intent: &Intent<'_>,
        draft: Draft,
        existing: Option<&Existing>,
        dry_run: bool,
    ) -> Result<Resolved, ApiError> {
        let Draft { document, old, .. } = draft;
        let scales = call.subresource.is_some_and(|s| s.what == SubresourceKind::Scale);
        let of_object = |change: Change, old: Option<Arc<Value>>| Resolved { change, document: None, given: None, old };
        Ok(match (intent, existing) {
            (Intent::ReplaceScale(_) | Intent::PatchScale { .. } | Intent::Apply { .. }, Some(existing)) if scales => {
                let new = scale::scaled(call.row, &existing.value, &document)?;
                if matches!(intent, Intent::ReplaceScale(_)) {
                    check_uid(call, &new, &existing.value, dry_run)?;
                }
                let change = self.changed_object(call, new, existing, dry_run)?;
                let document = change.object().map(|object| scale::of(call.row, object));
                Resolved { change, document, given: None, old }
            }
            (Intent::Create(_), _) | (Intent::Replace(_) | Intent::Apply { .. }, None) => {
                let (change, given) = self.new_object(call, document, dry_run)?;
                Resolved { given, ..of_object(change, None) }
            }
            (
                Intent::Replace(_) | Intent::Patch { .. } | Intent::Apply { .. } | Intent::SetDisruption(_),
                Some(existing),
            ) => of_object(self.changed_object(call, document, existing, dry_run)?, old),
            (Intent::Bind(_), existing) => {
                let change = binding::bind(call, &document, existing, dry_run)?;
                Resolved { document: Some(document), ..of_object(change, None) }
            }
            (Intent::Delete(options), Some(existing)) => {
                Resolved { document: Some(Value::Null), ..of_object(delete::change(call, existing, options)?, old) }
            }
            (Intent::InstallDefault(_), existing) => of_object(self.default_object(call, document, existing), None),
            (Intent::RemoveDefault, Some(_)) => of_object(Change::Remove(None), None),
            (Intent::RemoveDefault, None) => of_object(Change::Keep, None),
            _ => return Err(call.not_found()),
        })
    }
}
