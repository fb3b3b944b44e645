//! Validates subresources, columns, selectable fields and conversion of a definition.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::one_of;
use super::options::Options;
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{get, items, text, texts};
use crate::rules;
use crate::webhook_client::validate_client;

const COLUMN_TYPES: &str = "boolean,date,integer,number,string";
const COLUMN_FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";
/// Maximum number of selectable fields.
pub(super) const SELECTABLE_MAX: usize = 8;

fn simple_path(errors: &mut ErrorList, path: &str, at: &Path<'_>) -> bool {
    if !path.is_empty() && !path.starts_with('.') {
        errors.invalid(at, path, "must be a simple json path starting with .");
        return false;
    }
    !path.is_empty()
}

pub(super) fn subresources(errors: &mut ErrorList, subresources: &Value, at: &Path<'_>) {
    let scale = get(subresources, "scale");
    if !scale.is_object() {
        return;
    }
    for (key, place, root, why) in [
        ("specReplicasPath", "scale.specReplicasPath", ".spec.", "should be a json path under .spec"),
        ("statusReplicasPath", "scale.statusReplicasPath", ".status.", "should be a json path under .status"),
    ] {
        let (at, path) = (at.child(place), text(scale, key));
        if path.is_empty() {
            errors.required(&at, "");
        } else if simple_path(errors, path, &at) && !path.starts_with(root) {
            errors.invalid(&at, path, why);
        }
    }
    let (at, path) = (at.child("scale.labelSelectorPath"), text(scale, "labelSelectorPath"));
    if simple_path(errors, path, &at) && !path.starts_with(".spec.") && !path.starts_with(".status.") {
        errors.invalid(&at, path, "should be a json path under either .spec or .status");
    }
}

pub(super) fn columns(errors: &mut ErrorList, columns: &Value, at: &Path<'_>) {
    for (i, column) in columns.as_array().into_iter().flatten().enumerate() {
        let at = at.index(i);
        if text(column, "name").is_empty() {
            errors.required(&at.child("name"), "");
        }
        let kind = text(column, "type");
        let why = format!("must be one of {COLUMN_TYPES}");
        if kind.is_empty() {
            errors.required(&at.child("type"), &why);
        } else if !COLUMN_TYPES.split(',').any(|known| known == kind) {
            errors.invalid(&at.child("type"), kind, &why);
        }
        let format = text(column, "format");
        if !format.is_empty() && !COLUMN_FORMATS.split(',').any(|known| known == format) {
            errors.invalid(&at.child("format"), format, &format!("must be one of {COLUMN_FORMATS}"));
        }
        let path = text(column, "jsonPath");
        if path.is_empty() {
            errors.required(&at.child("JSONPath"), "");
        } else {
            simple_path(errors, path, &at.child("JSONPath"));
        }
    }
}

pub(super) fn selectable(errors: &mut ErrorList, fields: &Value, schema: &Value, at: &Path<'_>, many: bool) {
    let mut seen: Vec<String> = Vec::new();
    for (i, field) in fields.as_array().into_iter().flatten().enumerate() {
        let at = at.index(i);
        let at = at.child("jsonPath");
        let path = text(field, "jsonPath");
        if path.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let (parts, found) = match super::field_path::parse(path, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(&at, path, &format!("is an invalid path: {why}"));
                continue;
            }
        };
        if parts.first().is_some_and(|part| part == "metadata") {
            errors.invalid(&at, path, "must not point to fields in metadata");
        }
        if !matches!(text(found, "type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats \
                       are allowed.";
            errors.invalid(&at, path, why);
        }
        let whole = parts.join(".");
        if seen.contains(&whole) {
            errors.duplicate(&at, path);
        } else {
            seen.push(whole);
        }
    }
    if seen.len() > SELECTABLE_MAX && !many {
        errors.too_many(at, seen.len(), SELECTABLE_MAX);
    }
}

pub(super) fn conversion(errors: &mut ErrorList, conversion: &Value, options: &Options, at: &Path<'_>) {
    if !conversion.is_object() {
        return;
    }
    let strategy = text(conversion, "strategy");
    one_of(errors, &at.child("strategy"), strategy, &["None", "Webhook"]);
    let webhook = get(conversion, "webhook");
    let client = get(webhook, "clientConfig");
    let versions = items(webhook, "conversionReviewVersions");
    let (client_at, versions_at) = (at.child("webhookClientConfig"), at.child("conversionReviewVersions"));
    if strategy != "Webhook" {
        if client.is_object() {
            errors.forbidden(&client_at, "should not be set when strategy is not set to Webhook");
        }
        if !versions.is_empty() {
            errors.forbidden(&versions_at, "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    if client.is_object() {
        validate_client(errors, client, &client_at);
        let bundle = text(client, "caBundle");
        if !bundle.is_empty()
            && !options.lenient_bundle
            && let Some(why) = ca_bundle(bundle)
        {
            errors.invalid(&client_at.child("caBundle"), bundle, &why);
        }
    } else {
        errors.required(&client_at, "required when strategy is set to Webhook");
    }
    review_versions(errors, webhook, options, &versions_at);
}

fn review_versions(errors: &mut ErrorList, webhook: &Value, options: &Options, at: &Path<'_>) {
    let versions: Vec<&str> = texts(webhook, "conversionReviewVersions").collect();
    if versions.is_empty() {
        return errors.required(at, "");
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid(&at.index(i), *version, "duplicate version");
            continue;
        }
        errors.invalid_each(&at.index(i), version, rules::dns_1035_label(version));
    }
    if options.requires_review_version && !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        errors.add(|| FieldError::invalid(at, versions.clone(), "must include at least one of v1, v1beta1"));
    }
}

/// Why a base64-encoded CA bundle is invalid.
pub(super) fn ca_bundle(bundle: &str) -> Option<String> {
    const NONE: &str = "unable to load root certificates: unable to parse bytes as PEM block";
    let Ok(bytes) = STANDARD.decode(bundle) else { return Some(NONE.into()) };
    let text = String::from_utf8_lossy(&bytes);
    let begins = text.matches("-----BEGIN CERTIFICATE-----").count();
    let bodies = text.split("-----BEGIN CERTIFICATE-----").skip(1).filter_map(|part| {
        let body = part.split_once("-----END CERTIFICATE-----")?.0;
        let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        STANDARD.decode(body).ok().filter(|der| der.first() == Some(&0x30))
    });
    (begins == 0 || bodies.count() != begins).then(|| NONE.to_owned())
}
