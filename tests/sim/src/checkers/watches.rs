//! A watch is a replay of the list: from its initial state, each change that matches its selector arrives once, in
//! order, and their result equals the list at each bookmark.

use std::collections::BTreeMap;

use apiserver_storage::store::Revision;
use serde::Deserialize;

use crate::history::{KeyChange, Version};
use crate::parsed_request::ParsedRequest;
use crate::world::World;

/// The annotation of the bookmark that ends a streamed initial list (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[derive(Deserialize)]
struct EventLine {
    r#type: String,
    object: WatchedObject,
}

#[derive(Deserialize)]
struct WatchedObject {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    resource_version: String,
    annotations: BTreeMap<String, String>,
}

/// A field selector, of those that components use.
#[derive(Debug, Clone, PartialEq)]
enum Filter {
    All,
    Node(String),
    Name(String),
    /// An unsupported selector: only the order is checked.
    Unknown,
}

impl Filter {
    fn of(parsed: &ParsedRequest) -> Self {
        if !parsed.query("labelSelector").is_empty() {
            return Self::Unknown;
        }
        match parsed.query("fieldSelector") {
            "" => Self::All,
            field => match field.split_once('=') {
                Some(("spec.nodeName", node)) => Self::Node(node.into()),
                Some(("metadata.name", name)) => Self::Name(name.into()),
                _ => Self::Unknown,
            },
        }
    }

    fn shows(&self, version: &Version) -> bool {
        let value = version.value();
        match self {
            Self::All => true,
            Self::Node(node) => value["spec"]["nodeName"] == **node,
            Self::Name(name) => value["metadata"]["name"] == **name,
            Self::Unknown => false,
        }
    }

    fn shows_step(&self, step: &KeyChange) -> bool {
        step.old.iter().chain(&step.new).any(|version| self.shows(version))
    }
}

/// The replayed state of one watch.
pub(crate) struct Replay {
    prefix: String,
    below: String,
    filter: Filter,
    /// The revision when the request reached the server: a streamed initial list may not be older.
    begun: Revision,
    /// `None` during the initial list, or if the watch's start is unknown.
    at: Option<Revision>,
    state: BTreeMap<String, Revision>,
    /// Whether it starts with a streamed initial list.
    initial: bool,
    started: bool,
    /// The beginning of an incomplete line.
    rest: Vec<u8>,
}

impl Replay {
    pub(crate) fn new(parsed: &ParsedRequest, begun: Revision) -> Self {
        let initial = parsed.query("sendInitialEvents") == "true";
        let from = parsed.query("resourceVersion").parse().ok().filter(|from| *from > 0 && !initial);
        Self {
            prefix: parsed.prefix.clone().unwrap_or_default(),
            below: parsed.below().unwrap_or_default(),
            filter: Filter::of(parsed),
            begun,
            at: from,
            state: BTreeMap::new(),
            initial,
            started: false,
            rest: Vec::new(),
        }
    }

    /// Key prefix of its objects.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Checks a piece of the stream against the history; returns a summary for the log.
    pub(crate) fn piece(&mut self, world: &World, id: u64, link: &str, piece: &[u8]) -> String {
        if !std::mem::replace(&mut self.started, true)
            && let Some(from) = self.at
        {
            self.state = self.expected(world, from);
        }
        self.rest.extend_from_slice(piece);
        let mut summary = Vec::new();
        let mut rest = std::mem::take(&mut self.rest);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.rest = rest.split_off(whole);
        for line in rest.split_inclusive(|byte| *byte == b'\n') {
            match serde_json::from_slice::<EventLine>(line) {
                Ok(line) => {
                    let Metadata { namespace, name, resource_version, .. } = &line.object.metadata;
                    summary.push(format!("{} {namespace}/{name}@{resource_version}", line.r#type));
                    if let Err(problem) = self.line(world, &line) {
                        let about = format!("watch #{id} of {link} below {}", self.below);
                        world.record_violation(format!(
                            "{about}: {} {namespace}/{name}@{resource_version}: {problem}",
                            line.r#type
                        ));
                    }
                }
                Err(error) => world.record_violation(format!("watch #{id} of {link} cannot be read: {error}")),
            }
        }
        summary.join(", ")
    }

    fn expected(&self, world: &World, at: Revision) -> BTreeMap<String, Revision> {
        let there = world.history.below(&self.below, at).into_iter();
        let shown = there.filter(|(_, version)| self.filter.shows(version));
        shown.map(|(key, version)| (key.to_string(), version.revision)).collect()
    }

    fn line(&mut self, world: &World, line: &EventLine) -> Result<(), String> {
        if line.r#type == "ERROR" {
            self.at = None;
            self.initial = false;
            return Ok(());
        }
        let metadata = &line.object.metadata;
        let revision: Revision = metadata.resource_version.parse().map_err(|_| "it has no resourceVersion")?;
        let slash = if metadata.namespace.is_empty() { "" } else { "/" };
        let key = format!("{}{}{slash}{}", self.prefix, metadata.namespace, metadata.name);
        if self.initial {
            return self.initial_line(world, line, key, revision);
        }
        let Some(at) = self.at else { return Ok(()) };
        if revision < at {
            return Err(format!("it comes after {at}"));
        }
        let missed = world.history.changes(&self.below, at, revision);
        let missed = missed.iter().find(|step| {
            let reported = step.revision == revision && line.r#type != "BOOKMARK";
            !reported && self.filter.shows_step(step)
        });
        if let Some(missed) = missed {
            self.at = None;
            return Err(format!("{} changed at {}, and this watch never said so", missed.key, missed.revision));
        }
        self.at = Some(revision);
        let known = self.state.get(&key).copied();
        match (line.r#type.as_str(), known) {
            ("BOOKMARK", _) => {
                let expected = self.expected(world, revision);
                if self.filter != Filter::Unknown && expected != self.state {
                    return Err(format!("the watch comes to {:?}, the list is {expected:?}", self.state));
                }
            }
            _ if self.filter == Filter::Unknown => {}
            ("ADDED", None) => drop(self.state.insert(key, revision)),
            ("MODIFIED", Some(before)) if before < revision => drop(self.state.insert(key, revision)),
            ("DELETED", Some(_)) => drop(self.state.remove(&key)),
            (_, known) => return Err(format!("the client knows {known:?}")),
        }
        Ok(())
    }

    fn initial_line(&mut self, world: &World, line: &EventLine, key: String, revision: Revision) -> Result<(), String> {
        match line.r#type.as_str() {
            "ADDED" => {
                if self.state.insert(key, revision).is_some() {
                    return Err("it comes twice in the first state".into());
                }
            }
            "BOOKMARK" if line.object.metadata.annotations.contains_key(INITIAL_EVENTS_END) => {
                self.initial = false;
                self.at = Some(revision);
                let expected = self.expected(world, revision);
                if revision < self.begun {
                    return Err(format!("the first state is older than the request, {}", self.begun));
                }
                if self.filter != Filter::Unknown && expected != self.state {
                    return Err(format!("the first state is {:?}, the list {expected:?}", self.state));
                }
            }
            _ => return Err("it is no part of a first state".into()),
        }
        Ok(())
    }
}
