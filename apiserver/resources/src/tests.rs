//! The whole table against upstream's answers: discovery, columns, and the causes of rejected objects.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::field::{ErrorList, FieldError};
use crate::metadata::KindTraits;
use crate::{Context, RESOURCES, Row, Storage, metadata};
use apiserver_schema::types::Text;
use apiserver_schema::{self as schema, FieldValidation, Media, Target, TypeRef, decode};

/// `discovery.json` and `columns.json` of upstream v1.36, restricted to this table.
static FACTS: &str = include_str!("testdata/facts.jsonl");

/// Objects that upstream rejects, from the recorded answers; `null` replaces parts of a cause that the record lacks.
static REJECTED: &str = include_str!("testdata/refused.jsonl");

fn context(subresource: &str) -> Context<'_> {
    Context { subresource, ..Context::of_server(Timestamp::UNIX_EPOCH) }
}

fn schema_of(row: &Row) -> TypeRef<'static> {
    schema::built_in().by_name(row.schema).unwrap_or_else(|| panic!("{} has no type", row.qualified()))
}

fn target(row: &Row) -> Target<'_> {
    Target { group: row.group, version: row.version, kind: row.kind, schema: schema_of(row) }
}

/// Decodes and defaults a request's body.
pub(crate) fn read(row: &Row, bytes: &[u8], media: Media) -> Value {
    let decoded = decode::body(bytes, media, &target(row), FieldValidation::Warn);
    let mut object = decoded.unwrap_or_else(|e| panic!("{}: {e}", row.qualified())).object;
    schema::default(schema_of(row), &mut object);
    row.strategy.default(&mut object);
    object
}

/// Sets metadata as `verbs` does before the strategy prepares the object.
fn new_object(row: &Row, namespace: &str, mut object: Value) -> Value {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    if let Some(generated) =
        object["metadata"]["generateName"].as_str().filter(|_| object["metadata"]["name"].is_null())
    {
        let suffix = if row.strategy.generates_names() { "abcde" } else { "" };
        object["metadata"]["name"] = json!(format!("{generated}{suffix}"));
    }
    if row.namespaced {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object["metadata"]["uid"] = json!("UID1");
    object["metadata"]["creationTimestamp"] = json!("1970-01-01T00:00:00Z");
    object
}

fn prepared(row: &Row, namespace: &str, object: Value) -> Value {
    if row.storage == Storage::Virtual {
        return object;
    }
    let mut object = new_object(row, namespace, object);
    if row.kind == "Pod" {
        // As admission does.
        object["spec"]["serviceAccountName"] = json!("default");
        object["spec"]["serviceAccount"] = json!("default");
    }
    row.strategy.prepare_create(&context(""), &mut object);
    schema::normalise(schema_of(row), &mut object).unwrap();
    object
}

fn created(row: &Row, object: &Value) -> Vec<FieldError> {
    let mut errors = ErrorList::new();
    row.strategy.validate_first(&context(""), object, None, &mut errors);
    if !errors.is_empty() {
        return errors.shown().to_vec();
    }
    if row.storage != Storage::Virtual && !row.strategy.validates_metadata() {
        metadata::validate_create(&mut errors, KindTraits::row(row), object);
    }
    row.strategy.validate(&context(""), object, None, &mut errors);
    errors.shown().to_vec()
}

fn updated(row: &Row, subresource: &str, mut new: Value, old: &Value) -> Vec<FieldError> {
    let mut old = old.clone();
    old["metadata"]["resourceVersion"] = json!("7");
    let old = &old;
    for field in ["namespace", "uid", "creationTimestamp", "resourceVersion"] {
        let kept = old["metadata"][field].clone();
        if !kept.is_null() && new["metadata"][field].is_null() {
            new["metadata"][field] = kept;
        }
    }
    let context = context(subresource);
    row.strategy.prepare_update(&context, &mut new, old);
    schema::normalise(schema_of(row), &mut new).unwrap();
    let mut errors = ErrorList::new();
    row.strategy.validate_first(&context, &new, Some(old), &mut errors);
    if !errors.is_empty() {
        return errors.shown().to_vec();
    }
    metadata::validate_update(&mut errors, KindTraits::row(row), subresource, &new, old);
    row.strategy.validate(&context, &new, Some(old), &mut errors);
    errors.shown().to_vec()
}

fn row_named(named: &str) -> &'static Row {
    let found = RESOURCES.iter().find(|row| format!("{} {}", row.api_version(), row.plural) == named);
    found.unwrap_or_else(|| panic!("no row {named}"))
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Facts {
    #[serde(default)]
    row: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    singular_name: String,
    verbs: Vec<String>,
    #[serde(default)]
    subresources: BTreeMap<String, Facts>,
    #[serde(default)]
    columns: Vec<(String, String, String, i32)>,
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}

fn facts_of(row: &Row) -> Facts {
    let verbs = |verbs: &[crate::Verb]| verbs.iter().map(|v| v.as_str().to_owned()).collect();
    let subresource = |sub: &crate::Subresource| {
        let (group, version, kind) = sub.body.unwrap_or(("", "", row.kind));
        Facts {
            row: String::new(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            namespaced: row.namespaced,
            short_names: Vec::new(),
            categories: Vec::new(),
            singular_name: String::new(),
            verbs: verbs(sub.verbs),
            subresources: BTreeMap::new(),
            columns: Vec::new(),
        }
    };
    let text = |text: &Text| text.clone().into_owned();
    let column = |c: &crate::Column| (text(&c.name), text(&c.kind), text(&c.format), c.priority);
    Facts {
        row: format!("{} {}", row.api_version(), row.plural),
        group: String::new(),
        version: String::new(),
        kind: row.kind.into(),
        namespaced: row.namespaced,
        short_names: owned(row.short_names),
        categories: owned(row.categories),
        singular_name: row.singular.into(),
        verbs: verbs(row.verbs),
        subresources: row.subresources.iter().map(|s| (s.name.into(), subresource(s))).collect(),
        columns: match row.storage {
            Storage::Stored(_) => row.strategy.columns().iter().map(column).collect(),
            Storage::Virtual => Vec::new(),
        },
    }
}

#[test]
fn rows_are_as_upstreams_discovery_and_tables_say() {
    let upstream: Vec<Facts> = FACTS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(upstream.len(), RESOURCES.len());
    for mut facts in upstream {
        // Upstream writes a subresource's group only if it differs from the resource's.
        for sub in facts.subresources.values_mut() {
            if sub.group.is_empty() && sub.kind != facts.kind {
                let group = row_named(&facts.row).subresources.iter().find_map(|s| s.body.filter(|b| b.2 == sub.kind));
                (sub.group, sub.version) = group.map(|b| (b.0.into(), b.1.into())).unwrap_or_default();
            }
        }
        assert_eq!(facts_of(row_named(&facts.row)), facts);
    }
}

#[test]
fn examples_are_taken_as_they_are() {
    for row in RESOURCES {
        let named = row.qualified();
        let object = read(row, row.example.as_bytes(), Media::Yaml);
        let mut again = object.clone();
        schema::default(schema_of(row), &mut again);
        row.strategy.default(&mut again);
        assert_eq!(again, object, "{named}: defaults of defaults");
        let object = prepared(row, "default", object);
        assert_eq!(created(row, &object), [], "{named}");
        if row.storage == Storage::Virtual {
            continue;
        }
        let mut settled = object.clone();
        row.strategy.default(&mut settled);
        assert_eq!(settled, object, "{named}: stored objects have all defaults");
        assert_eq!(updated(row, "", object.clone(), &object), [], "{named}: an update that changes nothing");
        assert_eq!(row.strategy.warnings(&object, None), Vec::<String>::new(), "{named}");
        let cells = row.strategy.cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), row.strategy.columns().len(), "{named}: cells");
        let (values, labels) = (row.strategy.selectable(&object), row.strategy.selectable_labels());
        assert_eq!(values.len(), labels.len(), "{named}: selectable fields");
        assert_eq!(
            row.strategy.read_storage_version(row.strategy.write_storage_version(object.clone())),
            object,
            "{named}: conversion"
        );
    }
}

#[test]
fn inert_kinds_are_documented() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/compatibility.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (_, table) = docs.split_once("### Served, and nothing acts on it yet").expect("the table of inert kinds");
    let table = table.split("\n#").next().unwrap_or_default();
    let kinds: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |"))
        .flat_map(|(kinds, _)| kinds.split(", "))
        .filter(|kind| !matches!(*kind, "kind"))
        .collect();
    let mut inert: Vec<&str> = RESOURCES.iter().filter(|row| row.inert.is_some()).map(|row| row.kind).collect();
    let mut documented = kinds.clone();
    inert.sort_unstable();
    inert.dedup();
    documented.sort_unstable();
    assert_eq!(documented, inert);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectedCase {
    case: String,
    row: String,
    #[serde(default)]
    sub: String,
    old: Option<Value>,
    body: Value,
    causes: Vec<(String, Option<String>, Option<String>)>,
}

#[test]
fn recorded_rejections_have_upstreams_causes() {
    let mut wrong = Vec::new();
    for line in REJECTED.lines() {
        let RejectedCase { case, row, sub, old, body, causes } = serde_json::from_str(line).unwrap();
        let row = row_named(&row);
        let as_sent = |body: &Value| read(row, body.to_string().as_bytes(), Media::Json);
        let errors = match old {
            None => created(row, &prepared(row, "ns", as_sent(&body))),
            Some(old) => updated(row, &sub, as_sent(&body), &prepared(row, "ns", as_sent(&old))),
        };
        let same = errors.len() == causes.len()
            && errors.iter().zip(&causes).all(|(error, (field, reason, message))| {
                error.field == *field
                    && reason.as_ref().is_none_or(|r| *r == error.reason)
                    && message.as_ref().is_none_or(|m| *m == error.message)
            });
        if !same {
            let upstream: String = causes.iter().map(|c| format!("\n    {c:?}")).collect();
            let here: String = errors.iter().map(|e| format!("\n    {e:?}")).collect();
            wrong.push(format!("{case} {body}\n  upstream:{upstream}\n  here:{here}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn ephemeral_containers_are_added_and_stay_as_they_are() {
    let row = row_named("v1 pods");
    let object = prepared(row, "default", read(row, row.example.as_bytes(), Media::Yaml));
    let with = |of: &Value, containers: Value| {
        let mut new = of.clone();
        new["spec"]["ephemeralContainers"] = containers;
        row.strategy.default(&mut new);
        new
    };
    let add = |containers: Value| with(&object, containers);
    let messages = |new: Value, old: &Value| -> Vec<String> {
        let errors = updated(row, "ephemeralcontainers", new, old);
        errors.into_iter().map(|error| error.message).collect()
    };
    let one = json!({"name": "look", "image": "i"});
    let looked_at = add(json!([one]));
    assert_eq!(messages(looked_at.clone(), &object), Vec::<String>::new());
    let mut more = add(json!([one, {"name": "again", "image": "i", "targetContainerName": "web"}]));
    more["spec"]["containers"][0]["image"] = json!("another");
    assert_eq!(messages(more, &looked_at), Vec::<String>::new(), "all else is kept as it is");
    for (containers, why) in [
        (json!([]), "existing ephemeral containers \"look\" may not be removed"),
        (json!([{"name": "look", "image": "j"}]), "existing ephemeral containers \"look\" may not be changed"),
        (json!([one, {"name": "web", "image": "i"}]), "Duplicate value"),
        (json!([one, {"name": "b", "image": "i", "targetContainerName": "c"}]), "Not found"),
        (
            json!([one, {"name": "b", "image": "i", "ports": [{"containerPort": 1}]}]),
            "cannot be set for an Ephemeral Container",
        ),
    ] {
        let message = messages(add(containers), &looked_at);
        assert!(message.iter().any(|message| message.contains(why)), "{why}: {message:?}");
    }
    let refused = updated(row, "", looked_at.clone(), &object);
    assert!(!refused.is_empty(), "by that subresource alone");
}

/// Upstream's OpenAPI.
#[test]
fn some_deletes_answer_the_object() {
    const ANSWERED: [&str; 16] = [
        "csidrivers",
        "csinodes",
        "deviceclasses",
        "persistentvolumeclaims",
        "persistentvolumes",
        "pods",
        "podtemplates",
        "resourceclaims",
        "resourceclaimtemplates",
        "resourcequotas",
        "resourceslices",
        "serviceaccounts",
        "services",
        "storageclasses",
        "volumeattachments",
        "volumeattributesclasses",
    ];
    for row in RESOURCES {
        assert_eq!(row.strategy.delete_answers_object(), ANSWERED.contains(&row.plural), "{}", row.plural);
    }
}

/// Upstream's answers: a status write can't change the deletion, and errors show templates in Go's form.
#[test]
fn a_status_does_not_delete_and_templates_are_shown_as_upstream_has_them() {
    let pod = row_named("v1 pods");
    let old = prepared(
        pod,
        "default",
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "i"}]}}),
    );
    let mut new = old.clone();
    new["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    assert_eq!(updated(pod, "status", new, &old), []);

    let job = row_named("batch/v1 jobs");
    let old = prepared(
        job,
        "default",
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {
        "spec": {"hostNetwork": true, "restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}}}),
    );
    let mut new = old.clone();
    new["spec"]["template"]["metadata"]["finalizers"] = json!(["a.b/c"]);
    let message = format!("{:?}", updated(job, "", new, &old)).replace('\\', "");
    for part in [
        r#""finalizers":["a.b/c"],"Spec":{"Volumes":null,"#,
        r#""SecurityContext":{"HostNetwork":true,"HostPID":false,"#,
    ] {
        assert!(message.contains(part), "{message}");
    }
}
