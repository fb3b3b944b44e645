//! Validation of definitions, in upstream's order and words. Upstream validates its internal form, in which values
//! that all versions share appear once at the top: paths reflect that (`spec.validation`).

mod defaults;
mod field_path;
mod go_format;
mod options;
mod parts;
mod rules;
mod schema;
mod structural;

use machinery_api::selector::is_printable;
use serde_json::Value;

use super::conditions::{self, APPROVAL, Approval, ESTABLISHED, MISSING_APPROVAL};
use super::schema::is_known_format;
use crate::field::{ErrorList, FieldError, Path, go_json, quoted};
use crate::read::{flag, get, items, text, texts};

use options::Options;
pub(crate) use schema::is_keyword;

const SPEC: Path<'static> = Path::root("spec");
const STATUS: Path<'static> = Path::root("status");

/// A version's schema, or null.
pub(crate) fn schema_of(version: &Value) -> &Value {
    get(get(version, "schema"), "openAPIV3Schema")
}

/// Whether the text is a base64-encoded bundle of certificates.
pub(crate) fn is_ca_bundle(bundle: &str) -> bool {
    parts::ca_bundle(bundle).is_none()
}

/// Validates a new definition, except its metadata.
pub(super) fn created(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    let wanted = format!("{}.{}", text(get(spec, "names"), "plural"), text(spec, "group"));
    let name = crate::read::name(object);
    // A missing name is reported with the other metadata.
    if !name.is_empty() && name != wanted {
        errors.invalid(&Path::root("metadata.name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    let options = Options { lenient_bundle: true, ..Options::STRICT };
    self::spec(errors, spec, &options);
    names(errors, get(get(object, "status"), "acceptedNames"), &STATUS.child("acceptedNames"));
    stored_versions(errors, object);
    approval(errors, object, None);
    preserves_unknown(errors, spec, None);
}

/// Validates an update.
pub(super) fn updated(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (spec, old_spec) = (get(new, "spec"), get(old, "spec"));
    let is_established = conditions::is_true(old, ESTABLISHED);
    let options = Options::of_update(spec, old_spec, is_established);
    self::spec(errors, spec, &options);
    let names_at = SPEC.child("names");
    if is_established {
        errors.immutable(&SPEC.child("scope"), get(spec, "scope"), get(old_spec, "scope"));
        let kind = |spec| get(get(spec, "names"), "kind");
        errors.immutable(&names_at.child("kind"), kind(spec), kind(old_spec));
    }
    errors.immutable(&SPEC.child("group"), get(spec, "group"), get(old_spec, "group"));
    let plural = |spec| get(get(spec, "names"), "plural");
    errors.immutable(&names_at.child("plural"), plural(spec), plural(old_spec));
    names(errors, get(get(new, "status"), "acceptedNames"), &STATUS.child("acceptedNames"));
    stored_versions(errors, new);
    approval(errors, new, Some(old));
    preserves_unknown(errors, spec, Some(old_spec));
}

/// Validates a status update.
pub(super) fn status(errors: &mut ErrorList, new: &Value) {
    names(errors, get(get(new, "status"), "acceptedNames"), &STATUS.child("acceptedNames"));
}

/// The message of the condition `NonStructuralSchema`; `None` if all schemas are structural.
pub(super) fn structural_message(definition: &Value) -> Option<String> {
    let spec = get(definition, "spec");
    let mut all = Vec::new();
    if flag(spec, "preserveUnknownFields") {
        all.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_owned());
    }
    let versions = SPEC.child("versions");
    for (i, version) in items(spec, "versions").iter().enumerate() {
        let schema = schema_of(version);
        if schema.is_object() {
            let at = versions.index(i);
            let at = at.child("schema");
            let errors = structural::validate(schema, &at.child("openAPIV3Schema"));
            all.extend(errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)));
        }
    }
    match all.len() {
        0 => None,
        1 => all.pop(),
        _ => Some(format!("[{}]", all.join(", "))),
    }
}

/// A value that all versions share, which is at the top of the internal form.
fn shared_value<'a>(versions: &'a [Value], key: &str) -> Option<&'a Value> {
    let first = get(versions.first()?, key);
    versions.iter().all(|version| get(version, key) == first).then_some(first)
}

/// The checks that the whole definition requires, in addition to those of the update.
fn whole_definition(errors: &mut ErrorList, spec: &Value, options: &Options) -> Options {
    let preserves = flag(spec, "preserveUnknownFields");
    let all = items(spec, "versions");
    let at = SPEC.child("versions");
    for (i, version) in all.iter().enumerate() {
        let needs = options.requires_schema || (flag(version, "served") && !preserves);
        if schema_of(version).is_null() && needs {
            let why = if options.requires_schema { "" } else { "because otherwise all fields are pruned" };
            errors.required(&at.index(i).child("schema").child("openAPIV3Schema"), why);
        }
    }
    let has =
        |pred: &mut dyn FnMut(&Value) -> bool| all.iter().any(|version| schema::any(schema_of(version), &mut *pred));
    let has_defaults = has(&mut |schema| !get(schema, "default").is_null());
    if has_defaults && preserves {
        let why = "must be false in order to use defaults in the schema";
        errors.invalid(&SPEC.child("preserveUnknownFields"), true, why);
    }
    let requires = !preserves || has_defaults || has(&mut schema::has_extensions);
    Options { requires_structure: options.requires_structure || requires, ..options.clone() }
}

fn spec(errors: &mut ErrorList, spec: &Value, options: &Options) {
    let group = text(spec, "group");
    let group_at = SPEC.child("group");
    let why = crate::rules::dns_subdomain(group);
    if group.is_empty() {
        errors.required(&group_at, "");
    } else if !why.is_empty() {
        errors.invalid(&group_at, group, &why.join(","));
    } else if !group.contains('.') {
        errors.invalid(&group_at, group, "should be a domain with at least one dot");
    }
    one_of(errors, &SPEC.child("scope"), text(spec, "scope"), &["Cluster", "Namespaced"]);
    let all = items(spec, "versions");
    let options = &whole_definition(errors, spec, options);
    versions(errors, spec, options);
    let name = |key: &str| text(get(spec, "names"), key);
    let names_at = SPEC.child("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        if name(key).is_empty() {
            errors.required(&names_at.child(key), "");
        }
    }
    names(errors, get(spec, "names"), &names_at);
    let has_status = all.iter().any(|version| !get(get(version, "subresources"), "status").is_null());
    if let Some(validation) = shared_value(all, "schema").filter(|schema| schema.is_object()) {
        let options = options.of_version(all.first().map_or("", |version| text(version, "name")));
        schema::validation(errors, validation, has_status, &options, &SPEC.child("validation"));
    }
    if let Some(subresources) = shared_value(all, "subresources") {
        parts::subresources(errors, subresources, &SPEC.child("subresources"));
    }
    if let Some(columns) = shared_value(all, "additionalPrinterColumns") {
        parts::columns(errors, columns, &SPEC.child("additionalPrinterColumns"));
    }
    if let Some(fields) =
        shared_value(all, "selectableFields").filter(|fields| fields.as_array().is_some_and(|f| !f.is_empty()))
    {
        let fields_at = SPEC.child("selectableFields");
        match shared_value(all, "schema").filter(|schema| schema.is_object()) {
            None => errors.invalid(&fields_at, "", "may only be set when validations.schema is included"),
            Some(schema) => {
                let schema = get(schema, "openAPIV3Schema");
                parts::selectable(errors, fields, schema, &fields_at, options.allows_many_fields(""));
            }
        }
    }
    let strategy = text(get(spec, "conversion"), "strategy");
    if flag(spec, "preserveUnknownFields") && get(spec, "conversion").is_object() && strategy != "None" {
        let why = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&SPEC.child("conversion").child("strategy"), strategy, why);
    }
    parts::conversion(errors, get(spec, "conversion"), options, &SPEC.child("conversion"));
}

fn versions(errors: &mut ErrorList, spec: &Value, options: &Options) {
    let all = items(spec, "versions");
    let at = SPEC.child("versions");
    let own = |key: &str| shared_value(all, key).is_none();
    let (schemas, subresources, columns, fields) =
        (own("schema"), own("subresources"), own("additionalPrinterColumns"), own("selectableFields"));
    for (i, version) in all.iter().enumerate() {
        let at = at.index(i);
        let name = text(version, "name");
        let why = crate::rules::dns_1035_label(name);
        if !why.is_empty() {
            errors.invalid(&at.child("name"), name, &why.join(","));
        }
        deprecation(errors, version, &at.child("deprecationWarning"));
        if schemas {
            let has_status = !get(get(version, "subresources"), "status").is_null();
            schema::validation(
                errors,
                get(version, "schema"),
                has_status,
                &options.of_version(name),
                &at.child("schema"),
            );
        }
        if subresources {
            parts::subresources(errors, get(version, "subresources"), &at.child("subresources"));
        }
        if columns {
            parts::columns(errors, get(version, "additionalPrinterColumns"), &at.child("additionalPrinterColumns"));
        }
        if fields && !items(version, "selectableFields").is_empty() {
            let fields = get(version, "selectableFields");
            let (allowed, at, schema) =
                (options.allows_many_fields(name), at.child("selectableFields"), schema_of(version));
            match schema.is_object() && schemas {
                // Shared schemas are not checked per version; upstream's message is inverted.
                true => parts::selectable(errors, fields, schema, &at, allowed),
                false => {
                    errors.invalid(&at, "", "may only be set when `version.schema.openAPIV3Schema` is not included")
                }
            }
        }
    }
    let mut seen: Vec<&str> = all.iter().map(|version| text(version, "name")).collect();
    seen.sort_unstable();
    if seen.windows(2).any(|two| two[0] == two[1]) {
        errors.add(|| FieldError::invalid_shown(&at, &go_format::versions(spec), "must contain unique version names"));
    }
    if all.iter().filter(|version| flag(version, "storage")).count() != 1 {
        errors.add(|| {
            FieldError::invalid_shown(
                &at,
                &go_format::versions(spec),
                "must have exactly one version marked as storage version",
            )
        });
    }
    if let Some(first) = all.first().map(|version| text(version, "name")).filter(|name| !name.is_empty()) {
        let why = crate::rules::dns_1035_label(first);
        if !why.is_empty() {
            errors.invalid(&SPEC.child("version"), first, &why.join(","));
        }
    }
}

fn one_of(errors: &mut ErrorList, at: &Path<'_>, value: &str, accepted: &[&str]) {
    if value.is_empty() {
        errors.required(at, "");
    } else if !accepted.contains(&value) {
        errors.not_supported(at, value, accepted);
    }
}

fn deprecation(errors: &mut ErrorList, version: &Value, at: &Path<'_>) {
    let warning = get(version, "deprecationWarning");
    let Some(warning_text) = warning.as_str() else { return };
    // Upstream's value is a pointer, which it prints as JSON.
    let mut invalid = |why: &str| errors.add(|| FieldError::invalid_shown(at, &go_json(warning), why));
    if !flag(version, "deprecated") {
        return invalid("can only be set for deprecated versions");
    }
    if warning_text.len() > 256 {
        invalid("must be <= 256 characters long");
    }
    if warning_text.is_empty() {
        invalid("must not be an empty string");
    }
    if let Some((i, _)) = warning_text.char_indices().find(|(_, c)| !is_printable(*c)) {
        let why = format!("must only contain printable UTF-8 characters; non-printable character found at index {i}");
        invalid(&why);
    }
}

fn names(errors: &mut ErrorList, names: &Value, at: &Path<'_>) {
    let mut label = |at: &Path<'_>, value: &str, folded: bool| {
        let why = if folded {
            crate::rules::dns_1035_label(&value.to_lowercase())
        } else {
            crate::rules::dns_1035_label(value)
        };
        if !value.is_empty() && !why.is_empty() {
            let before = if folded { "may have mixed case, but should otherwise match: " } else { "" };
            errors.invalid(at, value, &format!("{before}{}", why.join(",")));
        }
    };
    label(&at.child("plural"), text(names, "plural"), false);
    label(&at.child("singular"), text(names, "singular"), false);
    label(&at.child("kind"), text(names, "kind"), true);
    label(&at.child("listKind"), text(names, "listKind"), true);
    let each = |errors: &mut ErrorList, key: &str| {
        let at = at.child(key);
        for (i, name) in texts(names, key).enumerate() {
            let why = crate::rules::dns_1035_label(name);
            if !why.is_empty() {
                errors.invalid(&at.index(i), name, &why.join(","));
            }
        }
    };
    each(errors, "shortNames");
    let kind = text(names, "kind");
    if !kind.is_empty() && kind == text(names, "listKind") {
        errors.invalid(&at.child("listKind"), kind, "kind and listKind may not be the same");
    }
    each(errors, "categories");
}

fn stored_versions(errors: &mut ErrorList, object: &Value) {
    let at = STATUS.child("storedVersions");
    let stored: Vec<&str> = texts(get(object, "status"), "storedVersions").collect();
    let shown = || get(get(object, "status"), "storedVersions").clone();
    if stored.is_empty() {
        return errors.add(|| FieldError::invalid(&at, shown(), "must have at least one stored version"));
    }
    let versions = items(get(object, "spec"), "versions");
    let mut left = stored.clone();
    for version in versions {
        let name = text(version, "name");
        let before = left.len();
        // Duplicate names are stored once.
        left.retain(|stored| *stored != name);
        if flag(version, "storage") && left.len() == before {
            errors.add(|| FieldError::invalid(&at, shown(), &format!("must have the storage version {name}")));
        }
    }
    for (i, stored) in stored.iter().enumerate() {
        if !versions.iter().any(|version| text(version, "name") == *stored) {
            let why = format!(
                "missing from spec.versions; {stored} was previously a storage version, and must remain in spec.versions until \
                 a storage migration ensures no data remains persisted in {stored} and removes {stored} from \
                 status.storedVersions"
            );
            errors.invalid(&at.index(i), *stored, &why);
        }
    }
}

fn approval(errors: &mut ErrorList, new: &Value, old: Option<&Value>) {
    if !conditions::is_protected(text(get(new, "spec"), "group")) {
        return;
    }
    let approval = conditions::approval(new);
    let before = old.map(conditions::approval);
    if before.is_some_and(|before| std::mem::discriminant(&before) == std::mem::discriminant(&approval)) {
        return;
    }
    let annotations = Path::root("metadata.annotations");
    let at = annotations.key(APPROVAL);
    match approval {
        Approval::Missing => errors.required(&at, MISSING_APPROVAL),
        Approval::Invalid(why) => errors.invalid(&at, text(get(get(new, "metadata"), "annotations"), APPROVAL), &why),
        Approval::Bypassed(_) | Approval::Approved(_) => {}
    }
}

fn preserves_unknown(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    if flag(spec, "preserveUnknownFields") && !old.is_some_and(|old| flag(old, "preserveUnknownFields")) {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&SPEC.child("preserveUnknownFields"), true, why);
    }
}

/// Unrecognized formats that the old definition doesn't have.
pub(super) fn format_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(unknown_formats).unwrap_or_default();
    let new = unknown_formats(new).into_iter().filter(|format| !before.contains(format));
    new.map(|format| format!("unrecognized format {}", quoted(&format))).collect()
}

fn unknown_formats(object: &Value) -> Vec<String> {
    let versions = items(get(object, "spec"), "versions");
    let mut found = Vec::new();
    let mut look = |schema: &Value| {
        let (kind, format) = (text(schema, "type"), text(schema, "format"));
        if !format.is_empty() && !is_known_format(kind, format) {
            found.push(format.to_owned());
        }
        false
    };
    match shared_value(versions, "schema") {
        Some(schema) => {
            schema::any(get(schema, "openAPIV3Schema"), &mut look);
        }
        None => versions.iter().for_each(|version| {
            schema::any(schema_of(version), &mut look);
        }),
    }
    found
}

#[cfg(test)]
mod tests;
