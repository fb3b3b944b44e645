//! OpenAPI v3 operations: the paths of a resource, and the parameters and responses of each method. Names are
//! upstream's, so that generated clients have the same names.

use std::collections::BTreeSet;

use apiserver_schema::built_in;
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
/// Of a custom resource.
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

/// The action of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OperationKind {
    Verb(Verb),
    Log,
    Connect(Verb),
    /// Method, and whether a path follows.
    Proxy(&'static str, bool),
    /// Deprecated watch paths.
    WatchOne,
    WatchList,
}

/// One operation of a path, with all its parameters.
struct Operation {
    method: &'static str,
    described: Value,
    parameters: Vec<Value>,
}

/// `apps`, `rbacAuthorization`; `core` for the empty group.
pub(super) fn short_group(group: &str) -> String {
    if group.is_empty() {
        return "core".into();
    }
    let mut parts = group.trim_end_matches(".k8s.io").split('.');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| name + &capital(part))
}

/// Converts `apps_v1` to `AppsV1`.
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

/// The responses for some codes, all of one type.
pub(super) fn responses(codes: &[(&str, &str)], media: &[&str], schema: &Value) -> Value {
    let mut all: Map<String, Value> = codes
        .iter()
        .map(|(code, text)| ((*code).to_owned(), json!({ "description": text, "content": content(media, schema) })))
        .collect();
    all.insert("401".into(), json!({ "description": "Unauthorized" }));
    all.into()
}

/// The responses of a discovery document.
pub(super) fn discovery_responses() -> Value {
    responses(&[("200", "OK")], OBJECT, &reference(&format!("{META}APIResourceList")))
}

fn query(name: &str, kind: &str) -> Value {
    json!({ "name": name, "in": "query", "description": parameter_description(name), "schema": { "type": kind, "uniqueItems": true } })
}

/// The description of a parameter.
fn parameter_description(name: &str) -> &'static str {
    match name {
        "allowWatchBookmarks" => {
            "Requests BOOKMARK events, which carry only the resourceVersion that the watch has reached."
        }
        "command" => "The command and its arguments, one parameter each; no shell reads them.",
        "container" => "The container; may be left out where the pod has only one.",
        "continue" => "The token of the previous page of a list.",
        "dryRun" => "`All` runs every stage of the request but writes nothing.",
        "fieldManager" => "The name under which the changed fields are recorded.",
        "fieldSelector" => "Restricts the objects to those whose fields match.",
        "fieldValidation" => "The handling of unknown and duplicate fields: Ignore, Warn or Strict.",
        "follow" => "Keeps the stream open for new lines.",
        "force" => "Takes over fields that another manager owns, in an apply request.",
        "gracePeriodSeconds" => "Seconds until the object is deleted; 0 deletes at once.",
        "ignoreStoreReadErrorWithClusterBreakingPotential" => {
            "Deletes an object that can't be read from storage, without its finalizers."
        }
        "insecureSkipTLSVerifyBackend" => "Does not verify the certificate of the kubelet.",
        "labelSelector" => "Restricts the objects to those whose labels match.",
        "limit" => "The maximum number of objects in a response; continue returns the rest.",
        "limitBytes" => "The maximum number of bytes of log that are sent.",
        "orphanDependents" => "Deprecated in favor of propagationPolicy: whether dependents stay.",
        "path" => "The path that the request is proxied to.",
        "ports" => "The ports that are forwarded.",
        "pretty" => "Whether JSON is indented.",
        "previous" => "Shows the log of the container's previous run.",
        "propagationPolicy" => "The handling of dependents: Orphan, Background or Foreground.",
        "resourceVersion" => "The state of the cluster that the answer must be from, by resourceVersionMatch.",
        "resourceVersionMatch" => "The meaning of resourceVersion: Exact or NotOlderThan.",
        "sendInitialEvents" => "Starts a watch with the existing objects, followed by a bookmark.",
        "shardSelector" => "Restricts the objects to ranges of the hash of a field.",
        "sinceSeconds" => "Shows lines that are at most this many seconds old.",
        "stderr" => "Whether the standard error stream is redirected.",
        "stdin" => "Whether the standard input stream is redirected.",
        "stdout" => "Whether the standard output stream is redirected.",
        "stream" => "Which stream is shown: All, Stdout or Stderr.",
        "tailLines" => "Shows this many lines from the end of the log.",
        "timeoutSeconds" => "The maximum duration of a list or watch.",
        "timestamps" => "Prefixes each line with its time.",
        "tty" => "Whether a terminal is allocated.",
        "watch" => "Streams changes of the objects in place of a list.",
        _ => "",
    }
}

fn in_path(name: &str, kind: &str) -> Value {
    let description = match name {
        "name" => format!("name of the {kind}"),
        "path" => "the path that the request is proxied to".to_owned(),
        _ => "the object's namespace".to_owned(),
    };
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string", "uniqueItems": true } })
}

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// Adds the paths of a resource and its subresources, and the required types to `wanted`.
pub(super) fn describe_row(
    row: &ResourceInfo,
    root: &str,
    tag: &str,
    paths: &mut Map<String, Value>,
    wanted: &mut BTreeSet<String>,
) {
    let space = if row.namespaced { "namespaces/{namespace}/" } else { "" };
    let within = format!("{root}/{space}{}", row.plural);
    let on = |path: &str, does: &[OperationKind], sub: Option<&Subresource>, paths: &mut Map<String, Value>| {
        let operations: Vec<Operation> = does.iter().map(|does| operation(row, tag, path, *does, sub)).collect();
        if !operations.is_empty() {
            paths.insert(path.to_owned(), item(operations));
        }
    };
    let of = |verbs: &[Verb]| -> Vec<OperationKind> {
        verbs.iter().filter(|verb| row.verbs.contains(verb)).map(|verb| OperationKind::Verb(*verb)).collect()
    };
    on(&within, &of(&[Verb::Create, Verb::List, Verb::DeleteCollection]), None, paths);
    on(&format!("{within}/{{name}}"), &of(&[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete]), None, paths);
    if row.namespaced {
        on(&format!("{root}/{}", row.plural), &of(&[Verb::List]), None, paths);
    }
    // Custom resources have no deprecated watch paths.
    if row.verbs.contains(&Verb::Watch) && row.openapi.is_none() {
        on(&format!("{root}/watch/{space}{}", row.plural), &[OperationKind::WatchList], None, paths);
        on(&format!("{root}/watch/{space}{}/{{name}}", row.plural), &[OperationKind::WatchOne], None, paths);
        if row.namespaced {
            on(&format!("{root}/watch/{}", row.plural), &[OperationKind::WatchList], None, paths);
        }
    }
    for sub in &row.subresources {
        wanted.insert(body_of(row, Some(sub)).into());
        let does: Vec<OperationKind> = match sub.what {
            SubresourceKind::Log => vec![OperationKind::Log],
            SubresourceKind::Connect => sub.verbs.iter().map(|verb| OperationKind::Connect(*verb)).collect(),
            SubresourceKind::Proxy(_) => METHODS.map(|method| OperationKind::Proxy(method, false)).into(),
            _ => sub.verbs.iter().map(|verb| OperationKind::Verb(*verb)).collect(),
        };
        on(&format!("{within}/{{name}}/{}", sub.name), &does, Some(sub), paths);
        if matches!(sub.what, SubresourceKind::Proxy(_)) {
            let below = METHODS.map(|method| OperationKind::Proxy(method, true));
            on(&format!("{within}/{{name}}/{}/{{path}}", sub.name), &below, Some(sub), paths);
        }
    }
}

/// Builds a path item. Parameters common to all operations are moved to the path.
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

fn operation(row: &ResourceInfo, tag: &str, path: &str, does: OperationKind, sub: Option<&Subresource>) -> Operation {
    // For custom resources, upstream uses the resource's own kind for every subresource.
    let of = kind_of(row, sub.filter(|_| row.openapi.is_none()));
    let own = reference(body_of(row, sub));
    let ok = ("200", "OK");
    let (created, accepted) = (("201", "Created"), ("202", "Accepted"));
    let (method, action, word) = match does {
        OperationKind::Verb(Verb::Create) => ("post", "post", "create"),
        OperationKind::Verb(Verb::Update) => ("put", "put", "replace"),
        OperationKind::Verb(Verb::Patch) => ("patch", "patch", "patch"),
        OperationKind::Verb(Verb::Delete) => ("delete", "delete", "delete"),
        OperationKind::Verb(Verb::DeleteCollection) => ("delete", "deletecollection", "delete"),
        OperationKind::Verb(Verb::List) => ("get", "list", "list"),
        OperationKind::Verb(Verb::Get | Verb::Watch) | OperationKind::Log => ("get", "get", "read"),
        OperationKind::Connect(Verb::Create) => ("post", "connect", "connect"),
        OperationKind::Connect(_) => ("get", "connect", "connect"),
        OperationKind::Proxy(method, _) => (method, "connect", "connect"),
        OperationKind::WatchOne => ("get", "watch", "watch"),
        OperationKind::WatchList => ("get", "watchlist", "watch"),
    };
    let status = || reference(&format!("{META}Status"));
    let custom = row.openapi.is_some();
    let (objects, lists) = if custom { (CUSTOM, CUSTOM) } else { (OBJECT, LIST) };
    let responses = match does {
        OperationKind::Verb(Verb::Create) => responses(&[ok, created, accepted], objects, &own),
        OperationKind::Verb(Verb::Patch) if custom => responses(&[ok], objects, &own),
        OperationKind::Verb(Verb::Update | Verb::Patch) => responses(&[ok, created], objects, &own),
        OperationKind::Verb(Verb::Delete) => {
            let answer = if row.strategy.delete_answers_object() { own.clone() } else { status() };
            responses(&[ok, accepted], objects, &answer)
        }
        OperationKind::Verb(Verb::DeleteCollection) => responses(&[ok], objects, &status()),
        OperationKind::Verb(Verb::List) => responses(&[ok], lists, &reference(&list_of(row))),
        OperationKind::Verb(Verb::Get | Verb::Watch) => responses(&[ok], objects, &own),
        OperationKind::Log => responses(&[ok], TEXT, &json!({ "type": "string" })),
        OperationKind::Connect(_) | OperationKind::Proxy(..) => {
            responses(&[ok], &["*/*"], &json!({ "type": "string" }))
        }
        OperationKind::WatchOne | OperationKind::WatchList => {
            responses(&[ok], lists, &reference(&format!("{META}WatchEvent")))
        }
    };
    let everywhere = row.namespaced && !path.contains("{namespace}");
    let scope = if row.namespaced && !everywhere { "Namespaced" } else { "" };
    let how = match does {
        OperationKind::Verb(Verb::DeleteCollection) => "Collection".to_owned(),
        OperationKind::Connect(Verb::Create) => "Post".to_owned(),
        OperationKind::Connect(_) => "Get".to_owned(),
        OperationKind::Proxy(method, _) => capital(method),
        _ => String::new(),
    };
    let name = format!(
        "{word}{}{how}{scope}{}{}{}{}{}",
        id(tag),
        row.kind,
        if does == OperationKind::WatchList { "List" } else { "" },
        if everywhere { "ForAllNamespaces" } else { "" },
        sub.map_or_else(String::new, |sub| capital(sub.name)),
        if matches!(does, OperationKind::Proxy(_, true)) { "WithPath" } else { "" },
    );
    let mut described = json!({
        "tags": [tag],
        "description": description(does, action, &row.kind, sub),
        "operationId": name,
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": { "group": of.0, "version": of.1, "kind": of.2 },
    });
    let body = |media: &[&str], schema: &Value| json!({ "content": content(media, schema), "required": true });
    let body_media = if custom { CUSTOM } else { &["*/*"] };
    match does {
        OperationKind::Verb(Verb::Create | Verb::Update) => described["requestBody"] = body(body_media, &own),
        OperationKind::Verb(Verb::Patch) => {
            let patches = if custom { CUSTOM_PATCHES } else { PATCHES };
            described["requestBody"] = body(patches, &reference(&format!("{META}Patch")));
        }
        OperationKind::Verb(Verb::DeleteCollection) if custom => {}
        OperationKind::Verb(Verb::Delete | Verb::DeleteCollection) => {
            let options = reference(&format!("{META}DeleteOptions"));
            described["requestBody"] = json!({ "content": content(body_media, &options) });
        }
        _ => {}
    }
    let queries = query_parameters(does, custom, sub);
    let mut parameters: Vec<Value> =
        queries.iter().flat_map(|p| p.iter()).map(|(name, kind)| query(name, kind)).collect();
    if !matches!(does, OperationKind::Proxy(..) | OperationKind::Connect(_)) {
        parameters.push(query("pretty", "string"));
    }
    let named = ["name", "namespace", "path"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    parameters.extend(named.map(|name| in_path(name, of.2)));
    parameters.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Operation { method, described, parameters }
}

/// The query parameters of an operation.
fn query_parameters(does: OperationKind, custom: bool, sub: Option<&Subresource>) -> &'static [Parameters] {
    match does {
        OperationKind::Verb(Verb::Patch) => &[WRITE, FORCE],
        OperationKind::Verb(Verb::Create | Verb::Update) => &[WRITE],
        OperationKind::Verb(Verb::Delete) => &[DELETE],
        OperationKind::Verb(Verb::DeleteCollection) if custom => &[SELECT, WATCH],
        OperationKind::Verb(Verb::DeleteCollection) => &[DELETE, SELECT],
        OperationKind::Verb(Verb::List) | OperationKind::WatchOne | OperationKind::WatchList => &[SELECT, WATCH],
        OperationKind::Log => &[LOG],
        OperationKind::Proxy(..) => &[PROXY],
        OperationKind::Connect(_) => match sub.map(|sub| sub.name) {
            Some("exec") => &[STREAMS, COMMAND],
            Some("attach") => &[STREAMS],
            _ => &[FORWARD],
        },
        OperationKind::Verb(Verb::Get) if custom => &[GET_CUSTOM],
        OperationKind::Verb(Verb::Get | Verb::Watch) => &[],
    }
}

/// The description of an operation.
fn description(does: OperationKind, action: &str, kind: &str, sub: Option<&Subresource>) -> String {
    let part = sub.map_or_else(String::new, |sub| format!("{} of a ", sub.name));
    match does {
        OperationKind::WatchOne => format!("watch one {kind}; deprecated: watch a list with a field selector"),
        OperationKind::WatchList => format!("watch {kind} objects; deprecated: use the list's watch parameter"),
        OperationKind::Verb(Verb::List) => format!("list or watch {kind} objects"),
        OperationKind::Verb(Verb::DeleteCollection) => format!("delete the {kind} objects that are selected"),
        OperationKind::Verb(Verb::Create) if sub.is_none() => format!("create a {kind}"),
        OperationKind::Verb(Verb::Update) => format!("replace the {part}{kind}"),
        OperationKind::Verb(Verb::Get) | OperationKind::Log => format!("read the {part}{kind}"),
        OperationKind::Connect(_) | OperationKind::Proxy(..) => format!("connect to the {part}{kind}"),
        _ => format!("{action} the {part}{kind}"),
    }
}
