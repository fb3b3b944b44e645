//! Events in two versions over one storage, whose version is core's.

use std::borrow::Cow;
use std::time::Duration;

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::cells::{WIDE_NAME, column, name, since, wide};
use crate::field::{ErrorList, FieldError, IMMUTABLE, Path};
use crate::metadata::{label_name, validate_all};
use crate::read::{default_to, fields, get, has, int, is_zero, object_mut, put, text, time};
use crate::rules::{self, NameRule};
use crate::{Column, Context, Deletion, MetadataChecks, Row, Storage, Strategy};

/// Upstream's default TTL.
const TTL: Duration = Duration::from_secs(3600);

pub(crate) static CORE: Row = Row {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    storage: Storage::Stored("events"),
    deletion: Deletion::WithoutDependents,
    ttl: Some(TTL),
    strategy: &Event { core: true },
    example: r#"apiVersion: v1
kind: Event
metadata: {name: example, namespace: default}
involvedObject: {apiVersion: v1, kind: Pod, name: web, namespace: default}
reason: Started
message: Started container web
type: Normal
source: {component: kubelet}
firstTimestamp: "2026-01-01T00:00:00Z"
lastTimestamp: "2026-01-01T00:00:00Z"
count: 1
"#,
    ..Row::NAMESPACED
};

pub(crate) static EVENTS: Row = Row {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.events.v1.Event",
    storage: Storage::Stored("events"),
    storage_version: false,
    deletion: Deletion::WithoutDependents,
    ttl: Some(TTL),
    strategy: &Event { core: false },
    example: r#"apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: example, namespace: default}
eventTime: "2026-01-01T00:00:00.000000Z"
reportingController: example.com/controller
reportingInstance: controller-1
action: Starting
reason: Started
type: Normal
note: Started container web
regarding: {apiVersion: v1, kind: Pod, name: web, namespace: default}
"#,
    ..Row::NAMESPACED
};

struct Event {
    core: bool,
}

const COLUMNS: &[Column] = &[
    column("Last Seen", "string"),
    column("Type", "string"),
    column("Reason", "string"),
    column("Object", "string"),
    wide("Subobject", "string"),
    wide("Source", "string"),
    column("Message", "string"),
    wide("First Seen", "string"),
    wide("Count", "string"),
    WIDE_NAME,
];
/// Fields with different names in core and events.k8s.io; the others have the same name.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];
/// Plain strings in Go: empty if absent.
const TEXTS: &[&str] = &["reason", "message", "type", "action", "reportingComponent", "reportingInstance"];
const INSTANCE_BYTES_MAX: usize = 128;
const ACTION_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 128;
const NOTE_BYTES_MAX: usize = 1024;
const CORE_LABELS: &[Text] = &[
    Text::Borrowed("involvedObject.kind"),
    Text::Borrowed("involvedObject.namespace"),
    Text::Borrowed("involvedObject.name"),
    Text::Borrowed("involvedObject.uid"),
    Text::Borrowed("involvedObject.apiVersion"),
    Text::Borrowed("involvedObject.resourceVersion"),
    Text::Borrowed("involvedObject.fieldPath"),
    Text::Borrowed("reason"),
    Text::Borrowed("reportingComponent"),
    Text::Borrowed("source"),
    Text::Borrowed("type"),
];
const NEW_LABELS: &[Text] = &[
    Text::Borrowed("regarding.kind"),
    Text::Borrowed("regarding.namespace"),
    Text::Borrowed("regarding.name"),
    Text::Borrowed("regarding.uid"),
    Text::Borrowed("regarding.apiVersion"),
    Text::Borrowed("regarding.resourceVersion"),
    Text::Borrowed("regarding.fieldPath"),
    Text::Borrowed("reason"),
    Text::Borrowed("reportingController"),
    Text::Borrowed("type"),
];

fn renamed(object: Value, api_version: &str, to_core: bool) -> Value {
    let Value::Object(map) = object else { return object };
    let mut out = Map::new();
    for (key, value) in map {
        let pair = NAMES.iter().find(|(core, new)| key == if to_core { *new } else { *core });
        let key = match pair {
            Some((core, _)) if to_core => (*core).to_owned(),
            Some((_, new)) => (*new).to_owned(),
            None => key,
        };
        out.insert(key, value);
    }
    out.insert("apiVersion".into(), json!(api_version));
    Value::Object(out)
}

fn to_core(object: &Value) -> Value {
    let mut core = renamed(object.clone(), "v1", true);
    fill_core(&mut core);
    core
}

/// Fields of an Event that Go's encoder writes even if they are empty.
fn fill_core(object: &mut Value) {
    object_mut(object, "involvedObject");
    object_mut(object, "source");
    let map = fields(object);
    for key in ["firstTimestamp", "lastTimestamp", "eventTime"] {
        map.entry(key).or_insert(Value::Null);
    }
    default_to(object, "reportingComponent", "");
    default_to(object, "reportingInstance", "");
}

fn fill_new(object: &mut Value) {
    object_mut(object, "regarding");
    object_mut(object, "deprecatedSource");
    let map = fields(object);
    for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "eventTime"] {
        map.entry(key).or_insert(Value::Null);
    }
    for key in ["reportingController", "reportingInstance"] {
        if text(object, key).is_empty() {
            put(object, key, Value::Null);
        }
    }
}

/// The rules of both versions, on the core form.
fn validate_core_form(errors: &mut ErrorList, event: &Value, core: bool) {
    let namespace = text(get(event, "metadata"), "namespace");
    let of = text(get(event, "involvedObject"), "namespace");
    let of_at = Path::root("involvedObject.namespace");
    let differs = "does not match event.namespace";
    if has(event, "eventTime") {
        if of.is_empty() && !["default", "kube-system"].contains(&namespace) {
            errors.invalid(&of_at, of, differs);
        }
        let reporter_at = Path::root(if core { "reportingComponent" } else { "reportingController" });
        let reporter = text(event, "reportingComponent");
        if reporter.is_empty() {
            errors.required(&reporter_at, "");
        }
        label_name(errors, reporter, &reporter_at);
        for (key, max, required) in [
            ("reportingInstance", INSTANCE_BYTES_MAX, true),
            ("action", ACTION_BYTES_MAX, true),
            ("reason", REASON_BYTES_MAX, true),
            ("message", NOTE_BYTES_MAX, false),
        ] {
            let length = text(event, key).len();
            if required && length == 0 {
                errors.required(&Path::root(key), "");
            }
            if length > max {
                errors.invalid(&Path::root(key), "", &format!("can have at most {max} characters"));
            }
        }
    } else if (of.is_empty() && !["", "default"].contains(&namespace)) || (!of.is_empty() && of != namespace) {
        errors.invalid(&of_at, of, differs);
    }
    errors.invalid_each(&Path::root("namespace"), namespace, rules::dns_subdomain(namespace));
}

fn series(errors: &mut ErrorList, event: &Value) {
    let series = get(event, "series");
    if series.is_null() {
        return;
    }
    if int(series, "count").unwrap_or(0) < 2 {
        errors.invalid(&Path::root("series.count"), "", "should be at least 2");
    }
    if !has(series, "lastObservedTime") {
        errors.required(&Path::root("series.lastObservedTime"), "");
    }
}

fn strict(errors: &mut ErrorList, event: &Value) {
    series(errors, event);
    if !has(event, "eventTime") {
        errors.required(&Path::root("eventTime"), "");
    }
    let kind = text(event, "type");
    if !["Normal", "Warning"].contains(&kind) {
        errors.invalid(&Path::root("type"), "", &format!("has invalid value: {kind}"));
    }
    for key in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if !is_zero(get(event, key)) {
            errors.invalid(&Path::root(key), "", "needs to be unset");
        }
    }
}

/// Structs in the form of upstream's internal types.
fn go_struct_of(key: &str, value: &Value) -> Option<String> {
    let of = |pairs: &[(&str, &str)]| {
        let parts: Vec<String> =
            pairs.iter().map(|(inner, outer)| format!("\"{inner}\":{}", Value::from(text(value, outer)))).collect();
        format!("{{{}}}", parts.join(","))
    };
    match key {
        _ if value.is_null() => None,
        "involvedObject" | "related" => Some(of(&[
            ("Kind", "kind"),
            ("Namespace", "namespace"),
            ("Name", "name"),
            ("UID", "uid"),
            ("APIVersion", "apiVersion"),
            ("ResourceVersion", "resourceVersion"),
            ("FieldPath", "fieldPath"),
        ])),
        "source" => Some(of(&[("Component", "component"), ("Host", "host")])),
        _ => None,
    }
}

fn strict_update(errors: &mut ErrorList, new: &Value, old: &Value) {
    if get(new, "series") != get(old, "series") {
        series(errors, new);
    }
    for key in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "reason",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        let (now, was) = (get(new, key), get(old, key));
        // An empty pointer field is not absent.
        let void = |value: &Value| is_zero(value) && !(key == "related" && value.is_object());
        if now != was && !(void(now) && void(was)) {
            let shown = if key == "reportingComponent" { "reportingController" } else { key };
            let path = Path::root(shown);
            match go_struct_of(key, now) {
                Some(value) => errors.add(|| FieldError::invalid_shown(&path, &value, IMMUTABLE)),
                None if now.is_null() && TEXTS.contains(&key) => errors.invalid(&path, "", IMMUTABLE),
                None if now.is_null() && key == "count" => errors.invalid(&path, 0, IMMUTABLE),
                None => errors.invalid(&path, now.clone(), IMMUTABLE),
            }
        }
    }
}

impl Strategy for Event {
    fn default(&self, object: &mut Value) {
        if self.core { fill_core(object) } else { fill_new(object) }
    }

    fn name_rule(&self) -> NameRule {
        if self.core { NameRule::PathSegment } else { NameRule::Subdomain }
    }

    fn checks_finalizers(&self) -> bool {
        !self.core
    }

    fn metadata_checks(&self) -> MetadataChecks {
        if self.core { MetadataChecks::None } else { MetadataChecks::Change }
    }

    fn validate_first(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if self.core && old.is_none() {
            validate_core_form(errors, object, true);
        }
    }

    fn validates_metadata(&self) -> bool {
        !self.core
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if self.core {
            if old.is_some() {
                validate_core_form(errors, object, true);
            }
            return;
        }
        let event = to_core(object);
        validate_core_form(errors, &event, false);
        match old {
            Some(old) => strict_update(errors, &event, &to_core(old)),
            None => {
                validate_all(errors, &EVENTS, object);
                strict(errors, &event);
            }
        }
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let event = if self.core { object.clone() } else { to_core(object) };
        let event = &event;
        let first = since(time(event, "firstTimestamp").or_else(|| time(event, "eventTime")), now);
        let mut last = time(event, "lastTimestamp").map_or_else(|| first.clone(), |last| since(Some(last), now));
        let mut count = int(event, "count").unwrap_or(0);
        let series = get(event, "series");
        if !series.is_null() {
            last = since(time(series, "lastObservedTime"), now);
            count = int(series, "count").unwrap_or(0);
        } else if count == 0 {
            count = 1;
        }
        let of = get(event, "involvedObject");
        let kind = text(of, "kind").to_lowercase();
        let target = match text(of, "name") {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let source = get(event, "source");
        let or = |own: &str, other: &str| if own.is_empty() { other.to_owned() } else { own.to_owned() };
        let component = or(text(source, "component"), text(event, "reportingComponent"));
        let host = or(text(source, "host"), text(event, "reportingInstance"));
        vec![
            json!(last),
            json!(text(event, "type")),
            json!(text(event, "reason")),
            json!(target),
            json!(text(of, "fieldPath")),
            json!(if host.is_empty() { component } else { format!("{component}, {host}") }),
            json!(text(event, "message").trim()),
            json!(first),
            json!(count),
            name(event),
        ]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        let event = if self.core { object.clone() } else { to_core(object) };
        let of = get(&event, "involvedObject");
        let parts = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
        let mut values: Vec<String> = parts.iter().map(|key| text(of, key).to_owned()).collect();
        let reporter = text(&event, "reportingComponent");
        values.push(text(&event, "reason").into());
        values.push(reporter.into());
        if self.core {
            let component = text(get(&event, "source"), "component");
            values.push(if component.is_empty() { reporter } else { component }.into());
        }
        values.push(text(&event, "type").into());
        values
    }

    fn selectable_labels(&self) -> &[Text] {
        if self.core { CORE_LABELS } else { NEW_LABELS }
    }

    fn stored_label<'a>(&self, label: &'a str) -> Cow<'a, str> {
        match label.strip_prefix("regarding.") {
            Some(rest) => Cow::Owned(format!("involvedObject.{rest}")),
            None if label == "reportingController" => Cow::Owned("reportingComponent".into()),
            None => Cow::Borrowed(label),
        }
    }

    fn read_storage_version(&self, object: Value) -> Value {
        if self.core {
            return object;
        }
        let mut new = renamed(object, "events.k8s.io/v1", false);
        fill_new(&mut new);
        new
    }

    fn write_storage_version(&self, object: Value) -> Value {
        if self.core { object } else { to_core(&object) }
    }
}
