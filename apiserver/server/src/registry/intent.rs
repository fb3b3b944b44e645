//! The intent of a write as data, and the change that each kind of write makes of the existing object.
//!
//! [`Registry::draft`] builds the draft for admission (the object, or the Scale or Binding of a subresource);
//! [`Registry::resolve`] builds the change from it. Both are synchronous: each decides from one state.

use apiserver_schema::apply::Managers;
use machinery_api::ApiError;
use serde_json::Value;

use super::change::{Existing, ObjectChange};
use super::draft::{DocumentKind, Draft};
use super::object::{self, metadata_mut};
use super::{PatchType, Registry, RequestScope, binding, body, check_uid, create, delete, eviction, fields, scale};
use apiserver_admission::Options;
use apiserver_resources::SubresourceKind;
use apiserver_resources::options::DeleteOptions;
use apiserver_schema::FieldValidation;

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
    /// Replaces the object (PUT) or its Scale, or creates the object for kinds that allow create on update.
    Replace(RequestObject<'a>),
    /// Patches the object in its current state, or its Scale.
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

impl Registry {
    /// Builds the draft for admission.
    pub(super) fn draft(
        call: &RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        options: &Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, ApiError> {
        match intent {
            Intent::Create(requested) => Self::draft_created(call, requested.take()?, options, warnings),
            Intent::Replace(requested) => Self::draft_replaced(call, requested.take()?, existing, options, warnings),
            Intent::Patch { kind, patch, validation } if call.is_scale() => {
                let old = existing.ok_or_else(|| call.not_found())?;
                let mut scale = scale::patched(call, &old.value, *kind, patch, *validation, warnings)?;
                drop(fields::take_managed_fields(&mut scale));
                Ok(Self::draft_scaled(call, scale, old, options))
            }
            Intent::Patch { kind, patch, validation } => {
                Self::draft_patched(call, (*kind, patch, *validation), existing, options, warnings)
            }
            Intent::Apply { patch, force, validation } => {
                Self::draft_applied(call, (patch, *force, *validation), existing, options, warnings)
            }
            Intent::Bind(requested) => {
                let mut binding = requested.take()?;
                object::match_namespace(&mut binding, call.object_namespace())?;
                Ok(Draft::binding(binding, call))
            }
            // Admission is not called for an object that doesn't exist.
            Intent::Delete(_) => Ok(Draft::deletion(existing.ok_or_else(|| call.not_found())?, call)),
            Intent::InstallDefault(object) => {
                let managers = fields::managers_after_install(call, existing, object);
                Ok(Draft::create((*object).clone(), call.name.to_owned(), managers))
            }
            Intent::SetDisruption(options) => {
                let old = existing.ok_or_else(|| call.not_found())?;
                let new = eviction::with_disruption(call, &old.value, old.modified(), options)?;
                Ok(Draft::update(new, old, call, old.managers()))
            }
            Intent::RemoveDefault => Ok(Draft::create(Value::Null, call.name.to_owned(), Managers::default())),
        }
    }

    /// A new object from a create.
    fn draft_created(
        call: &RequestScope<'_>,
        mut object: Value,
        options: &Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, ApiError> {
        let sent = fields::take_managed_fields(&mut object);
        create::strip_system_fields(&mut object);
        object::match_namespace(&mut object, call.object_namespace())?;
        object::dedup_owners(&mut object, warnings, false);
        let name = object::text(&object, "name").to_owned();
        let managers = fields::managers_after_write(call, options, None, &object, sent);
        Ok(Draft::create(object, name, managers))
    }

    /// The object or the Scale of a PUT.
    fn draft_replaced(
        call: &RequestScope<'_>,
        mut object: Value,
        existing: Option<&Existing>,
        options: &Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, ApiError> {
        let dry_run = options.dry_run();
        object::match_namespace(&mut object, call.object_namespace())?;
        object::match_name(&object, call.name)?;
        let sent = fields::take_managed_fields(&mut object);
        if call.is_scale() {
            let old = existing.ok_or_else(|| call.not_found())?;
            return Ok(Self::draft_scaled(call, object, old, options));
        }
        object::dedup_owners(&mut object, warnings, false);
        let Some(old) = existing else {
            let object = Self::new_replaced_object(call, object, dry_run)?;
            let managers = fields::managers_after_write(call, options, None, &object, sent);
            let draft = Draft::create(object, call.name.to_owned(), managers);
            return Ok(Draft { creates_by_update: true, ..draft });
        };
        check_uid(call, &object, &old.value, dry_run)?;
        let managers = fields::managers_after_write(call, options, existing, &object, sent);
        Ok(Draft::update(object, old, call, managers))
    }

    /// A Scale after a PUT or a patch of it.
    fn draft_scaled(call: &RequestScope<'_>, scale: Value, old: &Existing, options: &Options<'_>) -> Draft {
        let managers = fields::managers_after_scale(call, options, old, &scale);
        Draft::scale(scale, old, call, managers)
    }

    /// The result of a patch.
    fn draft_patched(
        call: &RequestScope<'_>,
        (kind, patch, validation): (PatchType, &[u8], FieldValidation),
        existing: Option<&Existing>,
        options: &Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, ApiError> {
        let old = existing.ok_or_else(|| call.not_found())?;
        let managed = fields::touches_managers(kind, patch).then(|| fields::object_with_managers(old));
        let current = managed.as_ref().unwrap_or(&old.value);
        let mut new = body::patched(call.row, kind, patch, current, validation, warnings)?;
        let sent = fields::take_managed_fields(&mut new);
        object::match_namespace(&mut new, call.object_namespace())?;
        object::match_name(&new, call.name)?;
        let managers = fields::managers_after_write(call, options, existing, &new, sent);
        object::dedup_owners(&mut new, warnings, true);
        Ok(Draft::update(new, old, call, managers))
    }

    /// The result of an apply to the object or its Scale, or a new object.
    fn draft_applied(
        call: &RequestScope<'_>,
        patch: (&[u8], bool, FieldValidation),
        existing: Option<&Existing>,
        options: &Options<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, ApiError> {
        if existing.is_none() && call.subresource.is_some() {
            return Err(call.not_found());
        }
        let (mut object, managers) = fields::apply_patch(call, options, existing, patch, warnings)?;
        if existing.is_none() {
            fields::check_new_uid(call, &object)?;
        }
        object::match_namespace(&mut object, call.object_namespace())?;
        object::match_name(&object, call.name)?;
        if let Some(old) = existing.filter(|_| call.is_scale()) {
            return Ok(Draft::scale(object, old, call, managers));
        }
        body::default(call.row, &mut object);
        object::dedup_owners(&mut object, warnings, true);
        let Some(old) = existing else {
            create::strip_system_fields(&mut object);
            metadata_mut(&mut object).remove("resourceVersion");
            let draft = Draft::create(object, call.name.to_owned(), managers);
            return Ok(Draft { creates_by_update: true, ..draft });
        };
        Ok(Draft::update(object, old, call, managers))
    }

    /// A new object from a PUT, for kinds that allow create on update. As upstream, this also works through a
    /// subresource; the kind's strategy drops the fields that such an object cannot have.
    fn new_replaced_object(call: &RequestScope<'_>, mut object: Value, dry_run: bool) -> Result<Value, ApiError> {
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
        Ok(object)
    }

    /// Builds the change of the object from its admitted draft.
    pub(super) fn resolve(
        &self,
        call: &RequestScope<'_>,
        intent: &Intent<'_>,
        draft: &mut Draft,
        existing: Option<&Existing>,
        dry_run: bool,
    ) -> Result<ObjectChange, ApiError> {
        let Draft { kind, document, given, effects, .. } = draft;
        let warnings = &mut effects.warnings;
        match (intent, existing) {
            (_, Some(existing)) if *kind == DocumentKind::Scale => {
                let new = scale::scaled(call.row, &existing.value, document)?;
                if matches!(intent, Intent::Replace(_)) {
                    check_uid(call, &new, &existing.value, dry_run)?;
                }
                let change = self.changed_object(call, new, existing, dry_run, warnings)?;
                *document = change.object().map(|object| scale::of(call.row, object)).unwrap_or_default();
                Ok(change)
            }
            (Intent::Create(_), _) | (Intent::Replace(_) | Intent::Apply { .. }, None) => {
                let (change, checked) = self.new_object(call, document.take(), dry_run, warnings)?;
                *given = checked;
                Ok(change)
            }
            (
                Intent::Replace(_) | Intent::Patch { .. } | Intent::Apply { .. } | Intent::SetDisruption(_),
                Some(existing),
            ) => self.changed_object(call, document.take(), existing, dry_run, warnings),
            (Intent::Bind(_), existing) => binding::bind(call, document, existing, dry_run),
            (Intent::Delete(options), Some(existing)) => delete::change(call, existing, options),
            (Intent::InstallDefault(_), existing) => Ok(self.default_object(call, document.take(), existing)),
            (Intent::RemoveDefault, Some(_)) => Ok(ObjectChange::Remove(None)),
            (Intent::RemoveDefault, None) => Ok(ObjectChange::Keep),
            _ => Err(call.not_found()),
        }
    }
}
