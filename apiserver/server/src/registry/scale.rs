//! The scale subresource: maps `autoscaling/v1 Scale` to a workload's replicas and back. Writes take the common write
//! path.

use machinery_api::ApiError;
use machinery_api::error::GroupResource;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::object;
use super::{PatchType, Registry, RequestObject, RequestScope, ResponseObject, VerbResult, invalid};
use apiserver_resources::field::{ErrorList, Path};
use apiserver_resources::options::WriteOptions;
use apiserver_resources::{ResourceInfo, metadata};
use apiserver_schema::FieldValidation;

/// The group, version and kind of a Scale.
pub const KIND: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

/// The Scale of a row's object.
#[must_use]
pub fn of(row: &ResourceInfo, object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object::field(object, field) {
            metadata[field] = value.clone();
        }
    }
    let own = row.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let replicas = count(own.map_or("/spec/replicas", |own| &own.spec));
    // As upstream, 0 replicas are omitted in the spec and shown in the status.
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    let mut status = json!({"replicas": count(own.map_or("/status/replicas", |own| &own.status))});
    let selector = match own {
        Some(own) if own.selector.is_empty() => String::new(),
        Some(own) => object.pointer(&own.selector).and_then(Value::as_str).unwrap_or_default().to_owned(),
        None => apiserver_resources::cells::any_selector(&object["spec"]["selector"]),
    };
    if !selector.is_empty() && selector != "<none>" {
        status["selector"] = json!(selector);
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

/// The workload with a Scale's replicas.
pub(super) fn scaled(row: &ResourceInfo, current: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    let own = row.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    let mut errors = ErrorList::new();
    metadata::validate_create(&mut errors, metadata::KindTraits::resource(row), scale);
    // A custom resource's own validation checks this.
    errors.non_negative(&Path::root("spec").child("replicas"), Some(replicas).filter(|_| own.is_none()));
    invalid(GroupResource::new("autoscaling", "Scale"), object::text(scale, "name"), &mut errors)?;
    let mut new = current.clone();
    match own {
        Some(own) if own.set(&mut new, replicas) => {}
        Some(own) => return Err(ApiError::BadRequest(format!("{} of the object can't be set", own.spec_path))),
        None => new["spec"]["replicas"] = json!(replicas),
    }
    let metadata = object::metadata_mut(&mut new);
    // For a custom resource, a Scale without a version applies to the current one.
    if own.is_none() {
        metadata.remove("resourceVersion");
    }
    for field in ["resourceVersion", "uid"] {
        let wanted = object::text(scale, field);
        if !wanted.is_empty() {
            metadata.insert(field.into(), json!(wanted));
        }
    }
    Ok(new)
}

/// Converts the object of a response into its Scale.
pub(super) fn shown(row: &ResourceInfo, answer: VerbResult) -> VerbResult {
    match answer {
        VerbResult::Object(code, shown) => {
            let value = match shown {
                ResponseObject::Cached(cached) => of(row, &cached.shared()),
                ResponseObject::Stored(record, revision) => {
                    let value = serde_json::from_slice(&record.body()).unwrap_or(Value::Null);
                    of(row, &object::versioned(value, revision))
                }
                ResponseObject::Value(value) => of(row, &value),
            };
            VerbResult::Object(code, ResponseObject::Value(value))
        }
        other => other,
    }
}

impl Registry {
    /// Gets the Scale of the path's object.
    pub async fn get_scale(&self, call: &RequestScope<'_>, version: &str) -> Result<VerbResult, ApiError> {
        let found = self.get(call, version).await?;
        if let (Some(own), VerbResult::Object(_, object)) =
            (call.row.custom.as_ref().and_then(|custom| custom.scale.as_ref()), &found)
        {
            let is_set = match object {
                ResponseObject::Cached(cached) => cached.shared().pointer(&own.spec).is_some(),
                ResponseObject::Value(value) => value.pointer(&own.spec).is_some(),
                ResponseObject::Stored(..) => true,
            };
            if !is_set {
                let path = apiserver_resources::field::quoted(&own.spec_path);
                return Err(ApiError::Internal(format!("the spec replicas field {path} does not exist")));
            }
        }
        Ok(shown(call.row, found))
    }

    /// PUT of a Scale.
    pub async fn put_scale(
        &self,
        call: &mut RequestScope<'_>,
        body: Body<'_>,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        let validation = options.field_validation;
        let scale = body::of_type(KIND, body, validation, &mut call.warnings)?;
        let again = || body::of_type(KIND, body, validation, &mut Vec::new());
        self.update(call, RequestObject::new(scale, &again), options).await
    }
}

/// The object's Scale after a patch. A patch without a version applies to the current one.
pub(super) fn patched(
    call: &RequestScope<'_>,
    current: &Value,
    kind: PatchType,
    patch: &[u8],
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let mut scale = body::patched_type(KIND, kind, patch, &of(call.row, current), validation, warnings)?;
    object::match_namespace(&mut scale, call.object_namespace())?;
    object::match_name(&scale, call.name)?;
    if let Err(why) = object::uid(current).meets(object::uid_precondition(&scale)) {
        let named = GroupResource::new(&*call.row.group, format!("{}/scale", call.row.plural));
        return Err(ApiError::Conflict(named, call.name.to_owned(), why));
    }
    Ok(scale)
}
