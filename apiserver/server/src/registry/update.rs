//! Update: the change that a PUT, a patch, or a write of a subresource makes of the existing object.

use machinery_api::ApiError;
use serde_json::{Value, json};

use super::body::Empty;
use super::change::{Existing, ObjectChange};
use super::intent::{Intent, RequestObject};
use super::object::{self, metadata_mut};
use super::{PatchType, Registry, RequestScope, VerbResult, body, invalid};
use apiserver_admission::Options;
use apiserver_resources::field::ErrorList;
use apiserver_resources::options::WriteOptions;
use apiserver_resources::{Context, Deletion, ResourceInfo, SubresourceKind, metadata};

impl Registry {
    /// Replaces the object of the path with a decoded and defaulted one.
    pub async fn update(
        &self,
        call: &mut RequestScope<'_>,
        object: RequestObject<'_>,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        self.write(call, &mut Intent::Replace(object), Options::Write(options)).await
    }

    /// The server's own PUT of an object.
    pub(crate) async fn replace(
        &self,
        call: &mut RequestScope<'_>,
        object: serde_json::Value,
        options: Options<'_>,
    ) -> Result<VerbResult, ApiError> {
        let again = || Ok(object.clone());
        self.write(call, &mut Intent::Replace(RequestObject::new(object.clone(), &again)), options).await
    }

    /// Patches the object of the path in its current state.
    pub async fn patch(
        &self,
        call: &mut RequestScope<'_>,
        kind: PatchType,
        patch: &[u8],
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        let mut intent = Intent::Patch { kind, patch, validation: options.field_validation };
        self.write(call, &mut intent, Options::Write(options)).await
    }

    /// Applies a configuration to the object of the path, or creates it.
    pub async fn apply(
        &self,
        call: &mut RequestScope<'_>,
        patch: &[u8],
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        let mut intent = Intent::Apply { patch, force: options.force, validation: options.field_validation };
        self.write(call, &mut intent, Options::Write(options)).await
    }

    /// Builds the changed object from the admitted document.
    pub(super) fn changed_object(
        &self,
        call: &RequestScope<'_>,
        mut new: Value,
        existing: &Existing,
        dry_run: bool,
        warnings: &mut Vec<String>,
    ) -> Result<ObjectChange, ApiError> {
        let (row, old) = (call.row, &*existing.value);
        let version = object::client_version(&new)?;
        if version == 0 && !row.strategy.unconditional_update() {
            let cause = machinery_api::Cause {
                reason: "FieldValueInvalid".into(),
                message: "Invalid value: 0: must be specified for an update".into(),
                field: "metadata.resourceVersion".into(),
            };
            return Err(ApiError::Invalid(call.resource(), call.name.to_owned(), vec![cause]));
        }
        if version != 0 && version != existing.modified() {
            return Err(call.modified());
        }
        let subresource = effective_subresource(call);
        let context = self.context(call, subresource);
        let explicit_empties = match subresource {
            "" => Self::prepared_empties(row, &context, &new, old),
            _ => Vec::new(),
        };
        self.prepare(call, &mut new, old);
        let mut errors = ErrorList::new();
        row.strategy.validate_first(&context, &new, Some(old), &mut errors);
        invalid(call.kind(), call.name, &mut errors)?;
        row.strategy.allocate(&self.allocation(subresource, dry_run), &mut new, Some(old))?;
        let traits = metadata::KindTraits::resource(row);
        metadata::validate_update(&mut errors, traits, subresource, &new, old);
        let checked = body::with_empties(&new, explicit_empties);
        row.strategy.validate(&context, &checked, Some(old), &mut errors);
        // A request rejected for another reason has these, too.
        warnings.append(&mut errors.warnings);
        invalid(call.kind(), call.name, &mut errors)?;
        if subresource != "status" {
            warnings.extend(row.strategy.warnings(&new, Some(old)));
        }
        Ok(if ends_deletion(row, &new, old) { ObjectChange::Remove(Some(new)) } else { ObjectChange::Update(new) })
    }

    /// The client's empty lists and maps, without those that the kind's preparation drops.
    fn prepared_empties(row: &ResourceInfo, context: &Context<'_>, new: &Value, old: &Value) -> Vec<Empty> {
        let given = body::explicit_empties(row, new);
        if given.is_empty() {
            return given;
        }
        let mut prepared = new.clone();
        row.strategy.prepare_update(context, &mut prepared, old);
        body::explicit_empties(row, &prepared)
    }

    /// Restores the metadata that an update cannot change, and runs the kind's own preparation.
    fn prepare(&self, call: &RequestScope<'_>, new: &mut Value, old: &Value) {
        let row = call.row;
        object::set_generation(new, object::generation(old));
        let context = self.context(call, effective_subresource(call));
        let given = if row.strategy.generation_counts_empty() { body::explicit_empties(row, new) } else { Vec::new() };
        body::normalise(row, new);
        let emptied = body::drops_empties(&given, new);
        row.strategy.prepare_update(&context, new, old);
        body::normalise(row, new);
        let metadata = metadata_mut(new);
        metadata.remove("selfLink");
        // An update without a resourceVersion applies to the current one.
        metadata.insert("resourceVersion".into(), json!(object::text(old, "resourceVersion")));
        if metadata.get("uid").and_then(Value::as_str).unwrap_or("").is_empty() {
            metadata.insert("uid".into(), json!(object::text(old, "uid")));
        }
        for (field, always) in
            [("creationTimestamp", true), ("deletionTimestamp", true), ("deletionGracePeriodSeconds", false)]
        {
            if let Some(value) = object::field(old, field)
                && (always || metadata.get(field).is_none_or(Value::is_null))
            {
                metadata.insert(field.into(), value.clone());
            }
        }
        let part = call.subresource.is_some_and(|s| s.what == SubresourceKind::Part);
        let counts = row.strategy.counts_generation() && (part || effective_subresource(call).is_empty());
        if counts && (emptied || row.strategy.generation_changes(new, old)) {
            object::set_generation(new, object::generation(old) + 1);
        }
    }
}

/// The subresource for strategies: a scale is a change of the object itself.
fn effective_subresource(call: &RequestScope<'_>) -> &'static str {
    match call.subresource.map(|s| s.what) {
        None | Some(SubresourceKind::Scale) => "",
        Some(_) => call.subresource_name(),
    }
}

/// Whether this change removes the last thing that a deletion waited for.
fn ends_deletion(row: &ResourceInfo, new: &Value, old: &Value) -> bool {
    object::finalizers(new).is_empty()
        && object::is_deleting(old)
        && object::field(old, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
        && (row.deletion != Deletion::Finalized || new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty))
}
