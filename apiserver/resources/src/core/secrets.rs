//! Secrets: `stringData` is merged into `data` and never stored; each `type` requires its own keys and is immutable.

use apiserver_schema::{self as schema, types::Text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::core::configmaps::{DATA_BYTES_MAX, decoded_bytes, validate_immutable};
use crate::field::{ErrorList, Path};
use crate::read::{default_zero_to, entries, get, object_mut, put, remove, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    storage: Storage::Stored("secrets"),
    strategy: &Secret,
    example: r#"apiVersion: v1
kind: Secret
metadata: {name: example}
data: {key: dmFsdWU=}
"#,
    ..Row::NAMESPACED
};

struct Secret;

const COLUMNS: &[Column] = &[NAME, column("Type", "string"), column("Data", "string"), AGE];
const DATA: Path<'static> = Path::root("data");
const TOKEN: &str = "kubernetes.io/service-account-token";
const TOKEN_ACCOUNT: &str = "kubernetes.io/service-account.name";
const TLS: &str = "kubernetes.io/tls";

fn bytes_of(object: &Value, key: &str) -> Option<Vec<u8>> {
    let text = get(get(object, "data"), key).as_str()?;
    STANDARD.decode(text).ok()
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let data = get(object, "data");
    let mut bytes = 0;
    for (key, value) in entries(object, "data") {
        errors.invalid_each(&DATA.key(key), key, rules::config_map_key(key));
        bytes += value.as_str().map_or(0, decoded_bytes);
    }
    if bytes > DATA_BYTES_MAX {
        errors.too_long(&DATA, DATA_BYTES_MAX);
    }
    let given = |key: &str| data.get(key).is_some();
    match text(object, "type") {
        TOKEN => {
            let notes = get(get(object, "metadata"), "annotations");
            if text(notes, TOKEN_ACCOUNT).is_empty() {
                errors.required(&Path::root("metadata.annotations").key(TOKEN_ACCOUNT), "");
            }
        }
        "kubernetes.io/dockercfg" => docker(errors, object, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => docker(errors, object, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !given("username") && !given("password") => {
            errors.required(&DATA.key("username"), "");
            errors.required(&DATA.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
            errors.required(&DATA.key("ssh-privatekey"), "");
        }
        TLS => {
            for key in ["tls.crt", "tls.key"] {
                if !given(key) {
                    errors.required(&DATA.key(key), "");
                }
            }
        }
        _ => {}
    }
}

fn docker(errors: &mut ErrorList, object: &Value, key: &str) {
    let at = DATA.key(key);
    let Some(bytes) = bytes_of(object, key) else { return errors.required(&at, "") };
    if let Some(why) = not_an_object(&bytes) {
        errors.invalid(&at, "<secret contents redacted>", &why);
    }
}

/// Why bytes are no JSON object, in the words of Go's decoder.
fn not_an_object(bytes: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => None,
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Number(_) => "number",
                _ => "bool",
            };
            Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
        }
        Err(error) => schema::json_fault(bytes).or_else(|| Some(error.to_string())),
    }
}

const SELECTABLE: &[Text] = &[Text::Borrowed("type")];

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        // `stringData` is merged into `data` and never returned.
        if let Some(Value::Object(texts)) = remove(object, "stringData")
            && !texts.is_empty()
        {
            let data = object_mut(object, "data");
            for (key, value) in texts {
                put(data, &key, json!(STANDARD.encode(value.as_str().unwrap_or(""))));
            }
        }
        default_zero_to(object, "type", "Opaque");
    }

    fn prepare_update(&self, _: &Context<'_>, new: &mut Value, old: &Value) {
        let kind = text(old, "type").to_owned();
        default_zero_to(new, "type", kind);
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Change
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if let Some(old) = old {
            errors.immutable(&Path::root("type"), get(object, "type"), get(old, "type"));
            validate_immutable(errors, object, old, &["data"]);
            crate::metadata::validate_all(errors, &ROW, object);
        }
        validate(errors, object);
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        if text(object, "type") != TLS {
            return Vec::new();
        }
        for (key, what) in [("tls.crt", "certificate"), ("tls.key", "key")] {
            let bytes = bytes_of(object, key).unwrap_or_default();
            if !String::from_utf8_lossy(&bytes).contains("-----BEGIN ") {
                return vec![format!("tls: failed to find any PEM data in {what} input")];
            }
        }
        Vec::new()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(text(object, "type")), json!(entries(object, "data").count()), age(object, now)]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![text(object, "type").into()]
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}
