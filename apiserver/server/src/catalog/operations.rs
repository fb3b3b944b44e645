//! The operations of OpenAPI v3: which paths a row has, what each method takes and answers. As upstream writes them, so
//! that generated clients get the same names; what the server doesn't do (apply) is left out.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::openapi::{list_of, reference};
use super::schemas::META;
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind, Verb};

const OBJECT: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const LIST: &[&str] = &[
    "application/json",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/yaml",
];
const TEXT: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml", "text/plain"];
const PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

type Parameters = &'static [(&'static str, &'static str)];
const WRITE: Parameters = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE: Parameters = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const SELECT: Parameters = &[
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];
const WATCH: Parameters = &[("allowWatchBookmarks", "boolean"), ("watch", "boolean")];
const FORWARD: Parameters = &[("ports", "integer")];
const STREAMS: Parameters =
    &[("container", "string"), ("stderr", "boolean"), ("stdin", "boolean"), ("stdout", "boolean"), ("tty", "boolean")];
const COMMAND: Parameters = &[("command", "string")];
const LOG: Parameters = &[
    ("container", "string"),
    ("follow", "boolean"),
    ("insecureSkipTLSVerifyBackend", "boolean"),
    ("limitBytes", "integer"),
    ("previous", "boolean"),
    ("sinceSeconds", "integer"),
    ("stream", "string"),
    ("tailLines", "integer"),
    ("timestamps", "boolean"),
];

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Verb(Verb),
    Log,
    Connect(Verb),
    /// By one of the deprecated paths.
    WatchOne,
    WatchList,
}

/// One operation of a path, with all its parameters.
struct Operation {
    method: &'static str,
    described: Value,
    parameters: Vec<Value>,
}

/// `apps`, `rbacAuthorization`; `core` where there is none.
pub(super) fn short_group(group: &str) -> String {
    if group.is_empty() {
        return "core".into();
    }
    let mut parts = group.trim_end_matches(".k8s.io").split('.');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| name + &capital(part))
}

/// `apps_v1` becomes `AppsV1`.
pub(super) fn id(tag: &str) -> String {
    tag.split('_').map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map(|c| c.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn content(media: &[&str], schema: &Value) -> Value {
    media.iter().map(|media| ((*media).to_owned(), json!({ "schema": schema }))).collect::<Map<_, _>>().into()
}

/// The answers of some codes, all of one type.
pub(super) fn answers(codes: &[(&str, &str)], media: &[&str], schema: &Value) -> Value {
    let mut all: Map<String, Value> = codes
        .iter()
        .map(|(code, said)| ((*code).to_owned(), json!({ "description": said, "content": content(media, schema) })))
        .collect();
    all.insert("401".into(), json!({ "description": "Unauthorized" }));
    all.into()
}

/// Those of a discovery document.
pub(super) fn discovery_answers() -> Value {
    answers(&[("200", "OK")], OBJECT, &reference(&format!("{META}APIResourceList")))
}

fn query(name: &str, kind: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": { "type": kind, "uniqueItems": true } })
}

fn in_path(name: &str, kind: &str) -> Value {
    let description = if name == "name" { format!("name of the {kind}") } else { "the object's namespace".to_owned() };
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string", "uniqueItems": true } })
}

/// The paths of a row and of its subresources; the types that they need are added to `wanted`.
pub(super) fn describe_row(
    row: &ResourceInfo,
    root: &str,
    tag: &str,
    paths: &mut Map<String, Value>,
    wanted: &mut BTreeSet<String>,
) {
    let space = if row.namespaced { "namespaces/{namespace}/" } else { "" };
    let within = format!("{root}/{space}{}", row.plural);
    let on = |path: &str, does: &[Does], sub: Option<&Subresource>, paths: &mut Map<String, Value>| {
        let operations: Vec<Operation> = does.iter().map(|does| operation(row, tag, path, *does, sub)).collect();
        if !operations.is_empty() {
            paths.insert(path.to_owned(), item(operations));
        }
    };
    let of = |verbs: &[Verb]| -> Vec<Does> {
        verbs.iter().filter(|verb| row.verbs.contains(verb)).map(|verb| Does::Verb(*verb)).collect()
    };
    on(&within, &of(&[Verb::Create, Verb::List, Verb::DeleteCollection]), None, paths);
    on(&format!("{within}/{{name}}"), &of(&[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete]), None, paths);
    if row.namespaced {
        on(&format!("{root}/{}", row.plural), &of(&[Verb::List]), None, paths);
    }
    if row.verbs.contains(&Verb::Watch) {
        on(&format!("{root}/watch/{space}{}", row.plural), &[Does::WatchList], None, paths);
        on(&format!("{root}/watch/{space}{}/{{name}}", row.plural), &[Does::WatchOne], None, paths);
        if row.namespaced {
            on(&format!("{root}/watch/{}", row.plural), &[Does::WatchList], None, paths);
        }
    }
    for sub in &row.subresources {
        wanted.insert(body_of(row, Some(sub)).into());
        let does: Vec<Does> = match sub.what {
            SubresourceKind::Log => vec![Does::Log],
            SubresourceKind::Connect => sub.verbs.iter().map(|verb| Does::Connect(*verb)).collect(),
            _ => sub.verbs.iter().map(|verb| Does::Verb(*verb)).collect(),
        };
        on(&format!("{within}/{{name}}/{}", sub.name), &does, Some(sub), paths);
    }
}

/// A path: what all its operations take stands there once.
fn item(operations: Vec<Operation>) -> Value {
    let common: Vec<Value> = match operations.split_first() {
        Some((first, rest)) => {
            let in_all = |p: &&Value| rest.iter().all(|other| other.parameters.contains(p));
            first.parameters.iter().filter(in_all).cloned().collect()
        }
        None => Vec::new(),
    };
    let mut item = Map::new();
    for mut operation in operations {
        let own: Vec<Value> = operation.parameters.into_iter().filter(|p| !common.contains(p)).collect();
        if !own.is_empty() {
            operation.described["parameters"] = own.into();
        }
        item.insert(operation.method.into(), operation.described);
    }
    item.insert("parameters".into(), common.into());
    item.into()
}

fn kind_of<'a>(row: &'a ResourceInfo, sub: Option<&Subresource>) -> (&'a str, &'a str, &'a str) {
    let own = (&*row.group, &*row.version, &*row.kind);
    sub.filter(|sub| sub.what != SubresourceKind::Log).and_then(|sub| sub.body).unwrap_or(own)
}

fn body_of<'a>(row: &'a ResourceInfo, sub: Option<&Subresource>) -> &'a str {
    let (group, version, kind) = kind_of(row, sub);
    row.schema.get().types.of_kind(group, version, kind).map_or_else(|| row.schema.name(), |found| &found.of.name)
}

fn operation(row: &ResourceInfo, tag: &str, path: &str, does: Does, sub: Option<&Subresource>) -> Operation {
    let of = kind_of(row, sub);
    let own = reference(body_of(row, sub));
    let ok = ("200", "OK");
    let (created, accepted) = (("201", "Created"), ("202", "Accepted"));
    let (method, action, word) = match does {
        Does::Verb(Verb::Create) => ("post", "post", "create"),
        Does::Verb(Verb::Update) => ("put", "put", "replace"),
        Does::Verb(Verb::Patch) => ("patch", "patch", "patch"),
        Does::Verb(Verb::Delete) => ("delete", "delete", "delete"),
        Does::Verb(Verb::DeleteCollection) => ("delete", "deletecollection", "delete"),
        Does::Verb(Verb::List) => ("get", "list", "list"),
        Does::Verb(Verb::Get | Verb::Watch) | Does::Log => ("get", "get", "read"),
        Does::Connect(Verb::Create) => ("post", "connect", "connect"),
        Does::Connect(_) => ("get", "connect", "connect"),
        Does::WatchOne => ("get", "watch", "watch"),
        Does::WatchList => ("get", "watchlist", "watch"),
    };
    let status = || reference(&format!("{META}Status"));
    let responses = match does {
        Does::Verb(Verb::Create) => answers(&[ok, created, accepted], OBJECT, &own),
        Does::Verb(Verb::Update | Verb::Patch) => answers(&[ok, created], OBJECT, &own),
        Does::Verb(Verb::Delete) => {
            let answer = if row.strategy.delete_answers_object() { own.clone() } else { status() };
            answers(&[ok, accepted], OBJECT, &answer)
        }
        Does::Verb(Verb::DeleteCollection) => answers(&[ok], OBJECT, &status()),
        Does::Verb(Verb::List) => answers(&[ok], LIST, &reference(&list_of(row))),
        Does::Verb(Verb::Get | Verb::Watch) => answers(&[ok], OBJECT, &own),
        Does::Log => answers(&[ok], TEXT, &json!({ "type": "string" })),
        Does::Connect(_) => answers(&[ok], &["*/*"], &json!({ "type": "string" })),
        Does::WatchOne | Does::WatchList => answers(&[ok], LIST, &reference(&format!("{META}WatchEvent"))),
    };
    let everywhere = row.namespaced && !path.contains("{namespace}");
    let scope = if row.namespaced && !everywhere { "Namespaced" } else { "" };
    let how = match does {
        Does::Verb(Verb::DeleteCollection) => "Collection",
        Does::Connect(Verb::Create) => "Post",
        Does::Connect(_) => "Get",
        _ => "",
    };
    let name = format!(
        "{word}{}{how}{scope}{}{}{}{}",
        id(tag),
        row.kind,
        if does == Does::WatchList { "List" } else { "" },
        if everywhere { "ForAllNamespaces" } else { "" },
        sub.map_or_else(String::new, |sub| capital(sub.name)),
    );
    let mut described = json!({
        "tags": [tag],
        "operationId": name,
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": { "group": of.0, "version": of.1, "kind": of.2 },
    });
    let body = |media: &[&str], schema: &Value| json!({ "content": content(media, schema), "required": true });
    match does {
        Does::Verb(Verb::Create | Verb::Update) => described["requestBody"] = body(&["*/*"], &own),
        Does::Verb(Verb::Patch) => described["requestBody"] = body(PATCHES, &reference(&format!("{META}Patch"))),
        Does::Verb(Verb::Delete | Verb::DeleteCollection) => {
            let options = reference(&format!("{META}DeleteOptions"));
            described["requestBody"] = json!({ "content": content(&["*/*"], &options) });
        }
        _ => {}
    }
    let taken: &[Parameters] = match does {
        Does::Verb(Verb::Create | Verb::Update | Verb::Patch) => &[WRITE],
        Does::Verb(Verb::Delete) => &[DELETE],
        Does::Verb(Verb::DeleteCollection) => &[DELETE, SELECT],
        Does::Verb(Verb::List) | Does::WatchOne | Does::WatchList => &[SELECT, WATCH],
        Does::Log => &[LOG],
        Does::Connect(_) => match sub.map(|sub| sub.name) {
            Some("exec") => &[STREAMS, COMMAND],
            Some("attach") => &[STREAMS],
            _ => &[FORWARD],
        },
        Does::Verb(Verb::Get | Verb::Watch) => &[],
    };
    let mut parameters: Vec<Value> =
        taken.iter().flat_map(|p| p.iter()).map(|(name, kind)| query(name, kind)).collect();
    parameters.push(query("pretty", "string"));
    let named = ["name", "namespace"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    parameters.extend(named.map(|name| in_path(name, of.2)));
    parameters.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Operation { method, described, parameters }
}
