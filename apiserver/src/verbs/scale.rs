//! The scale subresource: `autoscaling/v1 Scale` over a workload's replicas.

use machinery::api::error::Named;
use machinery::api::{ApiError, Cause};
use serde_json::{Value, json};

use super::body::{self, Body};
use super::object;
use super::options::WriteOptions;
use super::update::Manner;
use super::{Answer, Call, PatchType, Shown, Verbs};

/// Its group, version and kind.
pub const KIND: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

/// The Scale of a workload.
#[must_use]
pub fn of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object::field(object, field) {
            metadata[field] = value.clone();
        }
    }
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
    // As upstream: no replicas are left out in the spec and shown in the status.
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let selector = crate::resources::cells::selector(&object["spec"]["selector"]);
    if !selector.is_empty() && selector != "<none>" {
        status["selector"] = json!(selector);
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

/// The workload with a Scale's wish in it.
fn scaled(current: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".into(),
        };
        let name = object::text(scale, "name").to_owned();
        return Err(ApiError::Invalid(Named::new("autoscaling", "Scale"), name, vec![cause]));
    }
    let mut new = current.clone();
    new["spec"]["replicas"] = json!(replicas);
    let metadata = object::metadata_mut(&mut new);
    metadata.remove("resourceVersion");
    for field in ["resourceVersion", "uid"] {
        let wanted = object::text(scale, field);
        if !wanted.is_empty() {
            metadata.insert(field.into(), json!(wanted));
        }
    }
    Ok(new)
}

fn shown(answer: Answer) -> Answer {
    match answer {
        Answer::Object(code, shown) => {
            let value = match shown {
                Shown::Cached(cached) => of(&cached.shared()),
                Shown::Bytes(bytes) => of(&serde_json::from_slice(&bytes).unwrap_or(Value::Null)),
                Shown::Value(value) => of(&value),
            };
            Answer::Object(code, Shown::Value(value))
        }
        other => other,
    }
}

impl Verbs {
    /// The Scale of the object of the path.
    pub async fn get_scale(&self, call: &Call<'_>, version: &str) -> Result<Answer, ApiError> {
        Ok(shown(self.get(call, version).await?))
    }

    /// PUT of a decoded Scale.
    pub async fn update_scale(
        &self,
        call: &mut Call<'_>,
        mut scale: Value,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        object::match_namespace(&mut scale, call.object_namespace())?;
        object::match_name(&scale, call.name)?;
        let mut make = |current: Option<&Value>, _: &mut Vec<String>| scaled(current.unwrap_or(&Value::Null), &scale);
        Ok(shown(self.change(call, &mut make, Manner::PutPart, options).await?))
    }

    /// A patch of the Scale.
    pub async fn patch_scale(
        &self,
        call: &mut Call<'_>,
        kind: PatchType,
        patch: &[u8],
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let (name, namespace) = (call.name.to_owned(), call.object_namespace().to_owned());
        let validation = options.field_validation;
        let mut make = |current: Option<&Value>, warnings: &mut Vec<String>| {
            let current = current.unwrap_or(&Value::Null);
            let mut scale = body::patched_type(KIND, kind, patch, &of(current), validation, warnings)?;
            object::match_namespace(&mut scale, &namespace)?;
            object::match_name(&scale, &name)?;
            // A patch that says nothing about the version means the one that it was applied to.
            scaled(current, &scale)
        };
        Ok(shown(self.change(call, &mut make, Manner::Patch, options).await?))
    }

    /// PUT of a Scale's body.
    pub async fn put_scale(
        &self,
        call: &mut Call<'_>,
        body: Body<'_>,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let scale = body::of_type(KIND, body, options.field_validation, &mut call.warnings)?;
        self.update_scale(call, scale, options).await
    }
}
