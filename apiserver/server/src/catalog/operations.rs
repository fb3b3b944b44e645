//! The operations of OpenAPI v3: which paths a row has, what each method takes and answers. As upstream writes them, so
//! that generated clients get the same names.

use std::collections::BTreeSet;

use machinery_api::schema::built_in;
use serde_json::{Map, Value, json};

use super::openapi::{list_of, reference};
use super::schemas::META;
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind, Verb};

pub(super) const OBJECT: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
const LIST: &[&str] = &[
    "application/json",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/yaml",
];
const TEXT: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml", "text/plain"];
/// Of a resource that brings its schema.
const CUSTOM: &[&str] = &["application/json", "application/yaml"];
const CUSTOM_PATCHES: &[&str] =
    &["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

type Parameters = &'static [(&'static str, &'static str)];
const WRITE: Parameters = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const FORCE: Parameters = &[("force", "boolean")];
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
const GET_CUSTOM: Parameters = &[("resourceVersion", "string")];
const PROXY: Parameters = &[("path", "string")];
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
    /// By a method, whether the path goes on.
    Proxy(&'static str, bool),
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
    json!({ "name": name, "in": "query", "description": about(name), "schema": { "type": kind, "uniqueItems": true } })
}

/// What a parameter does, in a sentence.
fn about(name: &str) -> &'static str {
    match name {
        "allowWatchBookmarks" => {
            "Asks for BOOKMARK events, which carry only the resourceVersion that the watch has reached."
        }
        "command" => "The command and its arguments, one parameter each; no shell reads them.",
        "container" => "The container; may be left out where the pod has only one.",
        "continue" => "The token of the previous page of a list.",
        "dryRun" => "`All` runs every stage of the request but writes nothing.",
        "fieldManager" => "The name under which the changed fields are recorded.",
        "fieldSelector" => "Restricts the objects to those whose fields match.",
        "fieldValidation" => "What becomes of unknown and doubled fields: Ignore, Warn or Strict.",
        "follow" => "Keeps the stream open for lines that are still to come.",
        "force" => "Takes over fields that another manager owns, in an apply request.",
        "gracePeriodSeconds" => "Seconds until the object is deleted; 0 deletes at once.",
        "ignoreStoreReadErrorWithClusterBreakingPotential" => {
            "Deletes an object that can't be read from storage, without its finalizers."
        }
        "insecureSkipTLSVerifyBackend" => "Does not verify the certificate of the kubelet that is asked.",
        "labelSelector" => "Restricts the objects to those whose labels match.",
        "limit" => "The most objects that an answer holds; the rest follows with continue.",
        "limitBytes" => "The most bytes of log that are sent.",
        "orphanDependents" => "Deprecated in favor of propagationPolicy: whether dependents stay.",
        "path" => "The path that the request is passed on to.",
        "ports" => "The ports that are forwarded.",
        "pretty" => "Whether JSON is indented.",
        "previous" => "Shows the log of the container's previous run.",
        "propagationPolicy" => "What becomes of dependents: Orphan, Background or Foreground.",
        "resourceVersion" => "The state of the cluster that the answer must be from, by resourceVersionMatch.",
        "resourceVersionMatch" => "How resourceVersion is meant: Exact or NotOlderThan.",
        "sendInitialEvents" => "Begins a watch with the objects that are there and a bookmark after them.",
        "shardSelector" => "Restricts the objects to ranges of the hash of a field.",
        "sinceSeconds" => "Shows lines that are at most this many seconds old.",
        "stderr" => "Whether the standard error stream is redirected.",
        "stdin" => "Whether the standard input stream is redirected.",
        "stdout" => "Whether the standard output stream is redirected.",
        "stream" => "Which stream is shown: All, Stdout or Stderr.",
        "tailLines" => "Shows this many lines from the end of the log.",
        "timeoutSeconds" => "The longest that a list or watch lasts.",
        "timestamps" => "Begins each line with its time.",
        "tty" => "Whether a terminal is allocated.",
        "watch" => "Streams changes of the objects in place of a list.",
        _ => "",
    }
}

fn in_path(name: &str, kind: &str) -> Value {
    let description = match name {
        "name" => format!("name of the {kind}"),
        "path" => "the path that the request is passed on to".to_owned(),
        _ => "the object's namespace".to_owned(),
    };
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string", "uniqueItems": true } })
}

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

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
    // What brings its schema is watched by lists' paths only.
    if row.verbs.contains(&Verb::Watch) && row.openapi.is_none() {
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
            SubresourceKind::Proxy(_) => METHODS.map(|method| Does::Proxy(method, false)).into(),
            _ => sub.verbs.iter().map(|verb| Does::Verb(*verb)).collect(),
        };
        on(&format!("{within}/{{name}}/{}", sub.name), &does, Some(sub), paths);
        if matches!(sub.what, SubresourceKind::Proxy(_)) {
            let below = METHODS.map(|method| Does::Proxy(method, true));
            on(&format!("{within}/{{name}}/{}/{{path}}", sub.name), &below, Some(sub), paths);
        }
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
    let types = row.schema.made().map_or(&**built_in(), |made| made.get().types);
    types.of_kind(group, version, kind).map_or_else(|| row.schema.name(), |found| &found.of.name)
}

fn operation(row: &ResourceInfo, tag: &str, path: &str, does: Does, sub: Option<&Subresource>) -> Operation {
    // Upstream names a resource's own kind for every subresource of what brings its schema.
    let of = kind_of(row, sub.filter(|_| row.openapi.is_none()));
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
        Does::Proxy(method, _) => (method, "connect", "connect"),
        Does::WatchOne => ("get", "watch", "watch"),
        Does::WatchList => ("get", "watchlist", "watch"),
    };
    let status = || reference(&format!("{META}Status"));
    let custom = row.openapi.is_some();
    let (objects, lists) = if custom { (CUSTOM, CUSTOM) } else { (OBJECT, LIST) };
    let responses = match does {
        Does::Verb(Verb::Create) => answers(&[ok, created, accepted], objects, &own),
        Does::Verb(Verb::Patch) if custom => answers(&[ok], objects, &own),
        Does::Verb(Verb::Update | Verb::Patch) => answers(&[ok, created], objects, &own),
        Does::Verb(Verb::Delete) => {
            let answer = if row.strategy.delete_answers_object() { own.clone() } else { status() };
            answers(&[ok, accepted], objects, &answer)
        }
        Does::Verb(Verb::DeleteCollection) => answers(&[ok], objects, &status()),
        Does::Verb(Verb::List) => answers(&[ok], lists, &reference(&list_of(row))),
        Does::Verb(Verb::Get | Verb::Watch) => answers(&[ok], objects, &own),
        Does::Log => answers(&[ok], TEXT, &json!({ "type": "string" })),
        Does::Connect(_) | Does::Proxy(..) => answers(&[ok], &["*/*"], &json!({ "type": "string" })),
        Does::WatchOne | Does::WatchList => answers(&[ok], lists, &reference(&format!("{META}WatchEvent"))),
    };
    let everywhere = row.namespaced && !path.contains("{namespace}");
    let scope = if row.namespaced && !everywhere { "Namespaced" } else { "" };
    let how = match does {
        Does::Verb(Verb::DeleteCollection) => "Collection".to_owned(),
        Does::Connect(Verb::Create) => "Post".to_owned(),
        Does::Connect(_) => "Get".to_owned(),
        Does::Proxy(method, _) => capital(method),
        _ => String::new(),
    };
    let name = format!(
        "{word}{}{how}{scope}{}{}{}{}{}",
        id(tag),
        row.kind,
        if does == Does::WatchList { "List" } else { "" },
        if everywhere { "ForAllNamespaces" } else { "" },
        sub.map_or_else(String::new, |sub| capital(sub.name)),
        if matches!(does, Does::Proxy(_, true)) { "WithPath" } else { "" },
    );
    let mut described = json!({
        "tags": [tag],
        "description": said(does, action, &row.kind, sub),
        "operationId": name,
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": { "group": of.0, "version": of.1, "kind": of.2 },
    });
    let body = |media: &[&str], schema: &Value| json!({ "content": content(media, schema), "required": true });
    let taken_as = if custom { CUSTOM } else { &["*/*"] };
    match does {
        Does::Verb(Verb::Create | Verb::Update) => described["requestBody"] = body(taken_as, &own),
        Does::Verb(Verb::Patch) => {
            let patches = if custom { CUSTOM_PATCHES } else { PATCHES };
            described["requestBody"] = body(patches, &reference(&format!("{META}Patch")));
        }
        Does::Verb(Verb::DeleteCollection) if custom => {}
        Does::Verb(Verb::Delete | Verb::DeleteCollection) => {
            let options = reference(&format!("{META}DeleteOptions"));
            described["requestBody"] = json!({ "content": content(taken_as, &options) });
        }
        _ => {}
    }
    let taken = taken(does, custom, sub);
    let mut parameters: Vec<Value> =
        taken.iter().flat_map(|p| p.iter()).map(|(name, kind)| query(name, kind)).collect();
    if !matches!(does, Does::Proxy(..) | Does::Connect(_)) {
        parameters.push(query("pretty", "string"));
    }
    let named = ["name", "namespace", "path"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    parameters.extend(named.map(|name| in_path(name, of.2)));
    parameters.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Operation { method, described, parameters }
}

/// What an operation takes in its query.
fn taken(does: Does, custom: bool, sub: Option<&Subresource>) -> &'static [Parameters] {
    match does {
        Does::Verb(Verb::Patch) => &[WRITE, FORCE],
        Does::Verb(Verb::Create | Verb::Update) => &[WRITE],
        Does::Verb(Verb::Delete) => &[DELETE],
        Does::Verb(Verb::DeleteCollection) if custom => &[SELECT, WATCH],
        Does::Verb(Verb::DeleteCollection) => &[DELETE, SELECT],
        Does::Verb(Verb::List) | Does::WatchOne | Does::WatchList => &[SELECT, WATCH],
        Does::Log => &[LOG],
        Does::Proxy(..) => &[PROXY],
        Does::Connect(_) => match sub.map(|sub| sub.name) {
            Some("exec") => &[STREAMS, COMMAND],
            Some("attach") => &[STREAMS],
            _ => &[FORWARD],
        },
        Does::Verb(Verb::Get) if custom => &[GET_CUSTOM],
        Does::Verb(Verb::Get | Verb::Watch) => &[],
    }
}

/// What an operation does, for people.
fn said(does: Does, action: &str, kind: &str, sub: Option<&Subresource>) -> String {
    let part = sub.map_or_else(String::new, |sub| format!("{} of a ", sub.name));
    match does {
        Does::WatchOne => format!("watch one {kind}; deprecated: watch a list with a field selector"),
        Does::WatchList => format!("watch {kind} objects; deprecated: use the list's watch parameter"),
        Does::Verb(Verb::List) => format!("list or watch {kind} objects"),
        Does::Verb(Verb::DeleteCollection) => format!("delete the {kind} objects that are selected"),
        Does::Verb(Verb::Create) if sub.is_none() => format!("create a {kind}"),
        Does::Verb(Verb::Update) => format!("replace the {part}{kind}"),
        Does::Verb(Verb::Get) | Does::Log => format!("read the {part}{kind}"),
        Does::Connect(_) | Does::Proxy(..) => format!("connect to the {part}{kind}"),
        _ => format!("{action} the {part}{kind}"),
    }
}
