//! Create: a new object with its own or a generated name.

use std::borrow::Cow;

use machinery_api::ApiError;
use serde_json::{Value, json};

use super::change::ObjectChange;
use super::intent::{Intent, RequestObject};
use super::object::{self, metadata_mut};
use super::{Registry, RequestScope, VerbResult, body, invalid};
use apiserver_admission::Options;
use apiserver_resources::field::ErrorList;
use apiserver_resources::metadata;
use apiserver_resources::options::WriteOptions;

/// The maximum number of generated names per create (upstream's).
pub(super) const NAME_TRIES_MAX: usize = 8;
/// The number of random letters of a generated name.
const NAME_SUFFIX_LETTERS: usize = 5;
/// The maximum length of a prefix before truncation (upstream: a name of at most 63 letters).
const GENERATED_PREFIX_BYTES_MAX: usize = 63 - NAME_SUFFIX_LETTERS;

impl Registry {
    /// Creates a decoded and defaulted object.
    pub async fn create(
        &self,
        call: &mut RequestScope<'_>,
        object: RequestObject<'_>,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        self.write(call, &mut Intent::Create(object), Options::Write(options)).await
    }

    /// Builds the new object from the admitted document; also returns the object for validation, if that differs.
    pub(super) fn new_object(
        &self,
        call: &RequestScope<'_>,
        mut object: Value,
        dry_run: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(ObjectChange, Option<Value>), ApiError> {
        let row = call.row;
        let metadata = metadata_mut(&mut object);
        metadata.insert("creationTimestamp".into(), json!(object::time(call.now)));
        metadata.insert("uid".into(), json!(self.env.uid()));
        let version = metadata.remove("resourceVersion").filter(|version| version.as_str() != Some(""));
        let generated = self.generate_name(row.strategy.generates_names(), &mut object);
        let context = self.context(call, call.subresource_name());
        row.strategy.prepare_create(&context, &mut object);
        let explicit_empties = body::explicit_empties(row, &object);
        body::normalise(row, &mut object);
        if row.strategy.starts_generation() {
            object::set_generation(&mut object, 1);
        }
        let name = object::text(&object, "name");
        let mut errors = ErrorList::new();
        row.strategy.validate_first(&context, &object, None, &mut errors);
        invalid(call.kind(), name, &mut errors)?;
        let allocation = self.allocation(call.subresource_name(), dry_run);
        row.strategy.allocate(&allocation, &mut object, None)?;
        if !row.strategy.validates_metadata() {
            metadata::validate_create(&mut errors, metadata::KindTraits::resource(row), &object);
        }
        let checked = body::with_empties(&object, explicit_empties);
        row.strategy.validate(&context, &checked, None, &mut errors);
        invalid(call.kind(), object::text(&object, "name"), &mut errors)?;
        warnings.extend(row.strategy.warnings(&object, None));
        let checked = match checked {
            Cow::Borrowed(_) => None,
            Cow::Owned(checked) => Some(checked),
        };
        Ok((ObjectChange::Create { object, version, generated }, checked))
    }

    /// Generates a name from `generateName` if the object has none; returns whether it did.
    fn generate_name(&self, randomly: bool, object: &mut Value) -> bool {
        let prefix = object::text(object, "generateName");
        if prefix.is_empty() || !object::text(object, "name").is_empty() {
            return false;
        }
        if !randomly {
            let name = json!(prefix);
            metadata_mut(object).insert("name".into(), name);
            return true;
        }
        let mut end = prefix.len().min(GENERATED_PREFIX_BYTES_MAX);
        while !prefix.is_char_boundary(end) {
            end -= 1;
        }
        let name = format!("{}{}", &prefix[..end], self.env.name_suffix(NAME_SUFFIX_LETTERS));
        metadata_mut(object).insert("name".into(), json!(name));
        true
    }
}

/// Removes the fields that a client cannot set on a new object.
pub(super) fn strip_system_fields(object: &mut Value) {
    let metadata = metadata_mut(object);
    for field in SYSTEM_FIELDS {
        metadata.remove(*field);
    }
}

/// The metadata fields that a client cannot set on a new object.
const SYSTEM_FIELDS: &[&str] =
    &["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

/// 409 for an existing name. `generates`: the object has a `generateName`, whether or not its name was generated.
pub(super) fn already_exists(call: &RequestScope<'_>, name: &str, deleting: bool, generates: bool) -> ApiError {
    let (of, name) = (call.resource(), name.to_owned());
    match deleting || generates {
        true => ApiError::AlreadyExistsNow { of, name, deleting, generated: generates },
        false => ApiError::AlreadyExists(of, name),
    }
}
