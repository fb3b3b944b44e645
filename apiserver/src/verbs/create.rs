//! Create: a new object under its own or a generated name.

use crate::admission::Operation;
use machinery::api::ApiError;
use machinery::api::error::Status;
use serde_json::{Value, json};

use super::object::{self, metadata_mut};
use super::options::WriteOptions;
use super::{Answer, Call, NAME_SUFFIX_LETTERS, NAME_TRIES_MAX, Shown, Verbs, body, invalid, key};
use crate::resources::metadata;

/// The longest prefix that a generated name keeps (upstream: a name of at most 63 letters).
const GENERATED_PREFIX_BYTES_MAX: usize = 63 - NAME_SUFFIX_LETTERS;

impl Verbs {
    /// Creates a decoded and defaulted object.
    pub async fn create(
        &self,
        call: &mut Call<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        {
            let metadata = metadata_mut(&mut object);
            for field in SYSTEM_FIELDS {
                metadata.remove(*field);
            }
        }
        object::match_namespace(&mut object, call.object_namespace())?;
        object::dedup_owners(&mut object, &mut call.warnings, false);
        let given = object::text(&object, "name").to_owned();
        let review = call.review(Operation::Create, &given, options.dry_run);
        self.admit(&review, &mut object, None).await?;
        let (shown, _) = self.insert(call, object, options).await?;
        Ok(Answer::Object(201, shown))
    }

    /// The rest of a create, after mutating admission; also for a PUT that creates.
    pub(super) async fn insert(
        &self,
        call: &mut Call<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<(Shown, String), ApiError> {
        let row = call.row;
        {
            let metadata = metadata_mut(&mut object);
            metadata.insert("creationTimestamp".into(), json!(object::time(call.now)));
            metadata.insert("uid".into(), json!(self.env.uid()));
        }
        let prefix = object::text(&object, "generateName").to_owned();
        let generates = object::text(&object, "name").is_empty() && !prefix.is_empty();
        let mut tries = if generates { NAME_TRIES_MAX } else { 1 };
        let original = generates.then(|| object.clone());
        loop {
            if generates {
                let kept = object::text(&object, "generateName");
                let mut end = kept.len().min(GENERATED_PREFIX_BYTES_MAX);
                while !kept.is_char_boundary(end) {
                    end -= 1;
                }
                let name = format!("{}{}", &kept[..end], self.env.name_suffix(NAME_SUFFIX_LETTERS));
                metadata_mut(&mut object).insert("name".into(), json!(name));
            }
            let version = object::client_version(&object).unwrap_or(0);
            let said = metadata_mut(&mut object).remove("resourceVersion");
            let allocates = row.plural == "services";
            let _guard = if allocates { Some(self.allocating.lock().await) } else { None };
            {
                let context = self.context(call, call.subresource_name());
                row.strategy.prepare_create(&context, &mut object);
                let empties = body::empties(row, &object);
                let given = if empties.is_empty() { Value::Null } else { object.clone() };
                body::normalise(row, &mut object);
                if row.strategy.counts_generation() {
                    object::set_generation(&mut object, 1);
                }
                let first = row.strategy.validate_first(&context, &object, None);
                invalid(call.kind(), object::text(&object, "name"), first)?;
                if allocates {
                    self.allocator.allocate(&*self.objects, &mut object, None, options.dry_run)?;
                    body::normalise(row, &mut object);
                }
                let name = object::text(&object, "name");
                let mut errors = Vec::new();
                if !row.strategy.orders_metadata() {
                    errors = metadata::validate_create(row, &object);
                }
                let checked = body::with_empties(&object, &given, &empties);
                errors.extend(row.strategy.validate(&context, &checked));
                invalid(call.kind(), name, errors)?;
            }
            let warnings = row.strategy.warnings(&object, None);
            call.warnings.extend(warnings);
            let name = object::text(&object, "name").to_owned();
            {
                let review = call.review(Operation::Create, &name, options.dry_run);
                self.admission.validate(&review, &*self.objects, &object, None)?;
            }
            if version != 0 && !options.dry_run {
                return Err(ApiError::BadRequest("resourceVersion should not be set on objects to be created".into()));
            }
            let key = key(row, call.object_namespace(), &name);
            let taken = loop {
                if let Some(existing) = self.cache.get(&key) {
                    break existing.is_deleting();
                }
                if options.dry_run {
                    // It comes back as it was said: only the store would mind.
                    if let Some(said) = said.filter(|said| said.as_str() != Some("")) {
                        metadata_mut(&mut object).insert("resourceVersion".into(), said);
                    }
                    return Ok((Shown::Value(object), name));
                }
                let stored = Self::encode(row, &object)?;
                let done = self.put(row, &key, 0, stored.clone()).await?;
                if let Some(revision) = done {
                    return Ok((Self::stored_as(row, object, &stored, revision), name));
                }
            };
            tries -= 1;
            match &original {
                Some(original) if tries > 0 => object.clone_from(original),
                _ => return Err(exists(call, &name, taken, !prefix.is_empty())),
            }
        }
    }
}

/// What a client never decides about a new object.
const SYSTEM_FIELDS: &[&str] =
    &["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"];

/// `generates`: the object asks for a generated name, whether or not it got one.
fn exists(call: &Call<'_>, name: &str, deleting: bool, generates: bool) -> ApiError {
    let plain = ApiError::AlreadyExists(call.resource(), name.to_owned());
    if !deleting && !generates {
        return plain;
    }
    let Status { mut message, details, .. } = plain.status();
    let mut details = details.unwrap_or_default();
    if generates {
        message.push_str(", the server was not able to generate a unique name for the object");
        details.retry_after_seconds = 1;
    }
    if deleting {
        message = format!("object is being deleted: {message}");
    }
    ApiError::Other(Box::new(Status::failure(409, "AlreadyExists", message).with(details)))
}
