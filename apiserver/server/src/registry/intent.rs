//! What a write wants, as data, and what each kind of write makes of the object that is there.
//!
//! [`Registry::draft`] makes the document that admission sees (the object, or the Scale or Binding that a subresource takes);
//! [`Registry::resolve`] makes the change of it. Neither waits: what they decide is decided in one piece.

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

/// The object of a request's body: decoded once, and once more for the rare attempt that comes after a conflict, instead of
/// being copied for every request.
pub struct Wanted<'a> {
    decoded: Option<Value>,
    again: &'a (dyn Fn() -> Result<Value, ApiError> + Send + Sync),
}

impl<'a> Wanted<'a> {
    /// The decoded object, and how to decode it again.
    pub fn new(decoded: Value, again: &'a (dyn Fn() -> Result<Value, ApiError> + Send + Sync)) -> Self {
        Self { decoded: Some(decoded), again }
    }

    fn take(&mut self) -> Result<Value, ApiError> {
        self.decoded.take().map_or_else(self.again, Ok)
    }
}

/// What a write wants.
pub(super) enum Intent<'a> {
    /// A new object.
    Create(Wanted<'a>),
    /// The object to be this one (PUT), or a new one where the kind is made by PUT.
    Replace(Wanted<'a>),
    /// The object's Scale to be this one.
    ReplaceScale(Wanted<'a>),
    /// A patch of the object as it is at the moment of the write.
    Patch {
        /// Which kind of patch.
        kind: PatchType,
        /// Its body.
        patch: &'a [u8],
        /// How unknown fields of the result are met.
        validation: FieldValidation,
    },
    /// A configuration to be applied to the object, or to its Scale; the object is made where it isn't there.
    Apply {
        /// The patch's body.
        patch: &'a [u8],
        /// Whether it takes fields from other managers.
        force: bool,
        /// How keys are met that stand in it twice.
        validation: FieldValidation,
    },
    /// A patch of its Scale.
    PatchScale {
        /// Which kind of patch.
        kind: PatchType,
        /// Its body.
        patch: &'a [u8],
        /// How unknown fields of the result are met.
        validation: FieldValidation,
    },
    /// A pod to run on the node that a Binding names.
    Bind(Wanted<'a>),
    /// The object to go.
    Delete(DeleteOptions),
    /// A pod to say that it is evicted, if it is the one that these options mean: the server's own write.
    Disrupt(DeleteOptions),
    /// A default object to be there, or to be this one where it carries a resourceVersion: the server's own write.
    Install(&'a Value),
    /// A default object to go, so that another can take its place: the server's own write.
    Evict,
}

impl Intent<'_> {
    /// Whether admission and validation look at it: at everything but the server's own writes.
    pub(super) fn is_admitted(&self) -> bool {
        match self {
            Self::Install(_) | Self::Evict | Self::Disrupt(_) => false,
            Self::Delete(options) => !options.of_eviction,
            _ => true,
        }
    }

    /// A deletion has begun: what is left of it is done whatever the object has become.
    pub(super) fn forget_version(&mut self) {
        if let Self::Delete(options) = self {
            options.resource_version = None;
        }
    }
}

/// What admission sees first.
pub(super) struct Draft {
    /// The object, or what a subresource takes instead of it.
    pub(super) document: Value,
    /// The same of what is there.
    pub(super) old: Option<Arc<Value>>,
    /// What is done.
    pub(super) operation: Operation,
    /// The name of the path, or of the new object as far as it is known.
    pub(super) name: String,
    /// Whether a PUT or an apply makes a new object, which wants the right to create it.
    pub(super) creates_by_update: bool,
    /// Who manages which fields of the document then; of the object, where a subresource takes something else than a Scale.
    pub(super) managers: Managers,
}

/// What an attempt comes to.
pub(super) struct Resolved {
    pub(super) change: Change,
    /// What validating admission sees where that isn't the object.
    pub(super) document: Option<Value>,
    /// The object with what a client wrote empty, which is absent where it is stored: the server's own plugins see that.
    pub(super) given: Option<Value>,
    /// The same of what is there.
    pub(super) old: Option<Arc<Value>>,
}

/// The managers that are there, for what changes none of them.
fn kept(existing: Option<&Existing>) -> Managers {
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
    /// The document that is admitted.
    pub(super) fn draft(
        &self,
        call: &mut RequestScope<'_>,
        intent: &mut Intent<'_>,
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let dry_run = options.dry_run();
        match intent {
            Intent::Create(wanted) => Self::draft_created(call, wanted, options),
            Intent::Replace(wanted) => {
                let mut object = wanted.take()?;
                object::match_namespace(&mut object, call.object_namespace())?;
                object::match_name(&object, call.name)?;
                let sent = fields::take(&mut object);
                object::dedup_owners(&mut object, &mut call.warnings, false);
                let Some(old) = existing else {
                    let draft = Self::draft_new(call, object, dry_run)?;
                    let managers = fields::written(call, options, None, &draft.document, sent);
                    return Ok(draft.managed(managers));
                };
                check_uid(call, &object, &old.value, dry_run)?;
                let managers = fields::written(call, options, existing, &object, sent);
                Ok(Draft::update(object, old, call).managed(managers))
            }
            Intent::Patch { kind, patch, validation } => {
                Self::draft_patched(call, (*kind, patch, *validation), existing, options)
            }
            Intent::Apply { patch, force, validation } => {
                self.draft_applied(call, (patch, *force, *validation), existing, options)
            }
            Intent::ReplaceScale(wanted) => {
                let mut scale = wanted.take()?;
                object::match_namespace(&mut scale, call.object_namespace())?;
                object::match_name(&scale, call.name)?;
                let old = existing.ok_or_else(|| call.not_found())?;
                drop(fields::take(&mut scale));
                let managers = fields::scaled(call, options, old, &scale);
                Ok(Draft::scale(scale, old, call).managed(managers))
            }
            Intent::PatchScale { kind, patch, validation } => {
                let old = existing.ok_or_else(|| call.not_found())?;
                let mut scale = scale::patched(call, &old.value, *kind, patch, *validation)?;
                drop(fields::take(&mut scale));
                let managers = fields::scaled(call, options, old, &scale);
                Ok(Draft::scale(scale, old, call).managed(managers))
            }
            Intent::Bind(wanted) => {
                let mut binding = wanted.take()?;
                object::match_namespace(&mut binding, call.object_namespace())?;
                Ok(Draft::create(binding, call.name.to_owned()).managed(kept(existing)))
            }
            Intent::Delete(_) => {
                // Nobody is asked whether what isn't there may go.
                let old = Some(existing.ok_or_else(|| call.not_found())?.value.clone());
                let draft = Draft::create(Value::Null, call.name.to_owned());
                Ok(Draft { old, operation: Operation::Delete, managers: kept(existing), ..draft })
            }
            Intent::Install(object) => {
                let managers = fields::installed(call, existing, object);
                Ok(Draft::create((*object).clone(), call.name.to_owned()).managed(managers))
            }
            Intent::Disrupt(options) => {
                let old = existing.ok_or_else(|| call.not_found())?;
                let new = eviction::disrupted(call, &old.value, old.modified(), options)?;
                Ok(Draft::update(new, old, call).managed(kept(existing)))
            }
            Intent::Evict => Ok(Draft::create(Value::Null, call.name.to_owned())),
        }
    }

    /// A new object as the client says it.
    fn draft_created(
        call: &mut RequestScope<'_>,
        wanted: &mut Wanted<'_>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let mut object = wanted.take()?;
        let sent = fields::take(&mut object);
        create::strip(&mut object);
        object::match_namespace(&mut object, call.object_namespace())?;
        object::dedup_owners(&mut object, &mut call.warnings, false);
        let name = object::text(&object, "name").to_owned();
        let managers = fields::written(call, options, None, &object, sent);
        Ok(Draft::create(object, name).managed(managers))
    }

    /// What a patch makes of the object.
    fn draft_patched(
        call: &mut RequestScope<'_>,
        (kind, patch, validation): (PatchType, &[u8], FieldValidation),
        existing: Option<&Existing>,
        options: &Options<'_>,
    ) -> Result<Draft, ApiError> {
        let old = existing.ok_or_else(|| call.not_found())?;
        let managed = fields::concerns(kind, patch).then(|| fields::with_managers(old));
        let current = managed.as_ref().unwrap_or(&old.value);
        let mut new = body::patched(call.row, kind, patch, current, validation, &mut call.warnings)?;
        let sent = fields::take(&mut new);
        object::match_namespace(&mut new, call.object_namespace())?;
        object::match_name(&new, call.name)?;
        let managers = fields::written(call, options, existing, &new, sent);
        object::dedup_owners(&mut new, &mut call.warnings, true);
        Ok(Draft::update(new, old, call).managed(managers))
    }

    /// What an apply makes of the object or of its Scale, or a new object.
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
        let (mut object, managers) = fields::applied(call, options, existing, patch)?;
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
            create::strip(&mut object);
            metadata_mut(&mut object).remove("resourceVersion");
            let draft = Draft::create(object, call.name.to_owned()).managed(managers);
            return Ok(Draft { creates_by_update: true, ..draft });
        };
        Ok(Draft::update(object, old, call).managed(managers))
    }

    /// A PUT of an object that isn't there: a new one for the kinds that are made so. As upstream, also through a subresource;
    /// the kind's strategy says what such an object is not given.
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

    /// What becomes of the object.
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
            (Intent::Replace(_) | Intent::Patch { .. } | Intent::Apply { .. } | Intent::Disrupt(_), Some(existing)) => {
                of_object(self.changed_object(call, document, existing, dry_run)?, old)
            }
            (Intent::Bind(_), existing) => {
                let change = binding::bind(call, &document, existing, dry_run)?;
                Resolved { document: Some(document), ..of_object(change, None) }
            }
            (Intent::Delete(options), Some(existing)) => {
                Resolved { document: Some(Value::Null), ..of_object(delete::change(call, existing, options)?, old) }
            }
            (Intent::Install(_), existing) => of_object(self.default_object(call, document, existing), None),
            (Intent::Evict, Some(_)) => of_object(Change::Remove(None), None),
            (Intent::Evict, None) => of_object(Change::Keep, None),
            _ => return Err(call.not_found()),
        })
    }
}
