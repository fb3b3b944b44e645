//! WebAssembly plugins: arguments of the kind `WasmPluginArgs` make a plugin a WebAssembly component.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use machinery_api::quantity::Quantity;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::errors::{Errors, Path};
use super::fields::{self, FieldTable};
use crate::wasm::{FailurePolicy, WasmPlugin};

const API_VERSION: &str = "scheduler.coracle.dev/v1";
const KIND: &str = "WasmPluginArgs";
/// The extension points of WebAssembly plugins.
pub(super) const POINTS: &[&str] = &["filter", "score"];
/// The maximum number of WebAssembly plugins in a profile: each is called for each of the profile's pods.
pub(super) const PLUGINS_MAX: usize = 16;
const NAME_MAX: usize = 63;
const POLICIES: [&str; 2] = ["Fail", "Ignore"];

const TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum timeout of a call: the pod waits for it, and so do the other pods of its profile.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const MEMORY: u64 = 64 << 20;
const MEMORY_MIN: u64 = 1 << 20;
const MEMORY_MAX: u64 = 4 << 30;

const FIELDS: FieldTable =
    &[("", &["apiVersion", "kind", "module", "config", "failurePolicy", "timeout", "memory", "fuel"])];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WasmArgs {
    #[serde(default)]
    module: String,
    config: Option<Value>,
    failure_policy: Option<String>,
    timeout: Option<String>,
    #[serde(default, deserialize_with = "quantity")]
    memory: Option<String>,
    fuel: Option<i64>,
}

/// A quantity, which may be a JSON number, as in every Kubernetes API.
fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(D::Error::custom("memory: must be a quantity")),
    }
}

/// Whether arguments define a WebAssembly plugin.
pub(super) fn is_meant(args: &Value) -> bool {
    args["kind"] == KIND
}

/// Interns a name for the life of the process. The number of names is bounded by the files read.
fn intern(name: &str) -> &'static str {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.push(kept);
    kept
}

/// Reads the arguments of a plugin. The plugin has no extension point yet.
pub(super) fn read(name: &str, value: &Value, place: &str, path: &Path, errors: &mut Errors) -> Option<WasmPlugin> {
    let group = value["apiVersion"].as_str().unwrap_or_default();
    if group != API_VERSION {
        errors.plain(format!("{place}: no kind {KIND:?} is registered for version {group:?}"));
        return None;
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(inner) {
        let why = "a plugin's name has 1 to 63 letters, digits, '-', '_' and '.'";
        errors.invalid_text(path, &crate::wasm::wire::single_line(name), why);
        return None;
    }
    let unknown = fields::unknown(value, FIELDS);
    if !unknown.is_empty() {
        errors.plain(format!(
            "strict decoding error: {place}: strict decoding error: decoding args for plugin {name}: strict decoding error: {}",
            unknown.join(", ")
        ));
        return None;
    }
    match serde_json::from_value::<WasmArgs>(value.clone()) {
        Ok(given) => Some(made(name, given, path, errors)),
        Err(error) => {
            errors.plain(format!("{place}: decoding args for plugin {name}: {error}"));
            None
        }
    }
}

fn made(name: &str, given: WasmArgs, path: &Path, errors: &mut Errors) -> WasmPlugin {
    if given.module.is_empty() {
        errors.required(&path.child("module"), "the file of a component");
    }
    let failure_policy = match given.failure_policy.as_deref() {
        None | Some("Fail") => FailurePolicy::Fail,
        Some("Ignore") => FailurePolicy::Ignore,
        Some(other) => {
            errors.unsupported(&path.child("failurePolicy"), other, &POLICIES);
            FailurePolicy::Fail
        }
    };
    let timeout = given.timeout.as_deref().map_or(TIMEOUT, |text| {
        let read = text.parse::<SignedDuration>().ok().and_then(|given| Duration::try_from(given).ok());
        read.filter(|given| !given.is_zero() && *given <= TIMEOUT_MAX).unwrap_or_else(|| {
            errors.invalid_text(&path.child("timeout"), text, "must be a duration of at most 1m, such as 500ms");
            TIMEOUT
        })
    });
    let memory_bytes = given.memory.as_deref().map_or(MEMORY, |text| {
        let read = Quantity::parse(text).ok().and_then(|quantity| u64::try_from(quantity.value()).ok());
        read.filter(|bytes| (MEMORY_MIN..=MEMORY_MAX).contains(bytes)).unwrap_or_else(|| {
            errors.invalid_text(&path.child("memory"), text, "must be a quantity from 1Mi to 4Gi");
            MEMORY
        })
    });
    let fuel = given.fuel.and_then(|fuel| {
        let read = u64::try_from(fuel).ok().filter(|fuel| *fuel > 0);
        if read.is_none() {
            errors.invalid(&path.child("fuel"), fuel, "must be greater than 0");
        }
        read
    });
    let config = match given.config {
        None => String::new(),
        Some(Value::String(text)) => text,
        // Config that isn't a string is passed as JSON.
        Some(other) => other.to_string(),
    };
    let module = PathBuf::from(given.module);
    WasmPlugin {
        name: intern(name),
        module,
        config,
        failure_policy,
        timeout,
        memory_bytes,
        fuel,
        filters: false,
        weight: None,
    }
}
