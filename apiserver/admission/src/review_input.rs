//! The request as webhooks and policies receive it: the options of its verb, and objects with their managed fields. Pure.

use apiserver_schema::apply::Managers;
use serde_json::{Map, Value, json};

use super::{Operation, Options, Request};
use apiserver_resources::options::{DeleteOptions, Propagation, WriteOptions};

/// The options of the request's verb, for reviews and expressions.
pub(super) fn options(request: &Request<'_>) -> Value {
    if request.operation == Operation::Connect {
        return Value::Null;
    }
    let mut options = match request.options {
        Options::Write(options) => write_options(request.operation, options),
        Options::Delete(options) => delete_options(options),
    };
    options["apiVersion"] = json!("meta.k8s.io/v1");
    if request.options.dry_run() {
        options["dryRun"] = json!(["All"]);
    }
    options
}

fn write_options(operation: Operation, options: &WriteOptions) -> Value {
    let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
    let mut value = json!({"kind": kind});
    if !options.field_manager.is_empty() {
        value["fieldManager"] = json!(options.field_manager);
    }
    if let Some(validation) = options.requested_validation() {
        value["fieldValidation"] = json!(validation);
    }
    value
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut value = json!({"kind": "DeleteOptions"});
    if let Some(seconds) = options.grace_seconds {
        value["gracePeriodSeconds"] = json!(seconds);
    }
    let policy = options.propagation.map(|policy| match policy {
        Propagation::Background => "Background",
        Propagation::Foreground => "Foreground",
        Propagation::Orphan => "Orphan",
    });
    if let Some(policy) = policy {
        value["propagationPolicy"] = json!(policy);
    }
    if let Some(orphan) = options.orphan_dependents {
        value["orphanDependents"] = json!(orphan);
    }
    for (field, wanted) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
        if let Some(wanted) = wanted {
            value["preconditions"][field] = json!(wanted);
        }
    }
    value
}

/// The user of the request, without empty fields.
pub(super) fn user(request: &Request<'_>) -> Value {
    let mut user = Map::new();
    for (field, text) in [("username", &request.user.name), ("uid", &request.user.uid)] {
        if !text.is_empty() {
            user.insert(field.into(), json!(text));
        }
    }
    if !request.user.groups.is_empty() {
        user.insert("groups".into(), json!(request.user.groups));
    }
    if !request.user.extra.is_empty() {
        user.insert("extra".into(), json!(request.user.extra));
    }
    user.into()
}

/// Adds managed fields to an object.
pub(super) fn with_managers(mut object: Value, managers: &Managers) -> Value {
    if let (Some(metadata), Some(value)) =
        (object.get_mut("metadata").and_then(Value::as_object_mut), managers.to_value())
    {
        metadata.insert("managedFields".into(), value);
    }
    object
}
