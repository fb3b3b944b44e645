//! A watch is a replay of the list: from the state that it began with, each change that its selector shows comes once, in
//! order, and what follows from them is the list at each bookmark.

use std::collections::BTreeMap;

use apiserver_storage::store::Revision;
use serde::Deserialize;

use crate::asked::Asked;
use crate::history::{Step, Version};
use crate::world::World;

/// The annotation of the bookmark that ends a streamed first state (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[derive(Deserialize)]
struct Line {
    r#type: String,
    object: Shown,
}

#[derive(Deserialize)]
struct Shown {
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

/// What a field selector wants, of those that components use.
#[derive(Debug, Clone, PartialEq)]
enum Filter {
    All,
    Node(String),
    Name(String),
    /// One that this checker doesn't know: only order is checked.
    Unknown,
}

impl Filter {
    fn of(asked: &Asked) -> Self {
        if !asked.query("labelSelector").is_empty() {
            return Self::Unknown;
        }
        match asked.query("fieldSelector") {
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

    fn shows_step(&self, step: &Step) -> bool {
        step.old.iter().chain(&step.new).any(|version| self.shows(version))
    }
}

/// What one watch has shown so far.
pub(crate) struct Replay {
    prefix: String,
    below: String,
    filter: Filter,
    /// Where the request reached the server: a streamed first state may not be older.
    begun: Revision,
    /// None: the first state is still coming, or it isn't known where the watch began.
    at: Option<Revision>,
    state: BTreeMap<String, Revision>,
    /// Begins with a streamed first state.
    initial: bool,
    started: bool,
    /// The rest of a line.
    rest: Vec<u8>,
}

impl Replay {
    pub(crate) fn new(asked: &Asked, begun: Revision) -> Self {
        let initial = asked.query("sendInitialEvents") == "true";
        let from = asked.query("resourceVersion").parse().ok().filter(|from| *from > 0 && !initial);
        Self {
            prefix: asked.prefix.clone().unwrap_or_default(),
            below: asked.below().unwrap_or_default(),
            filter: Filter::of(asked),
            begun,
            at: from,
            state: BTreeMap::new(),
            initial,
            started: false,
            rest: Vec::new(),
        }
    }

    /// What the keys of its objects begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Holds a piece of the stream to the history; answers a summary for the log.
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
            match serde_json::from_slice::<Line>(line) {
                Ok(line) => {
                    let Metadata { namespace, name, resource_version, .. } = &line.object.metadata;
                    summary.push(format!("{} {namespace}/{name}@{resource_version}", line.r#type));
                    if let Err(problem) = self.line(world, &line) {
                        let about = format!("watch #{id} of {link} below {}", self.below);
                        world.violated(format!(
                            "{about}: {} {namespace}/{name}@{resource_version}: {problem}",
                            line.r#type
                        ));
                    }
                }
                Err(error) => world.violated(format!("watch #{id} of {link} cannot be read: {error}")),
            }
        }
        summary.join(", ")
    }

    fn expected(&self, world: &World, at: Revision) -> BTreeMap<String, Revision> {
        let there = world.history.below(&self.below, at).into_iter();
        let shown = there.filter(|(_, version)| self.filter.shows(version));
        shown.map(|(key, version)| (key.to_string(), version.revision)).collect()
    }

    fn line(&mut self, world: &World, line: &Line) -> Result<(), String> {
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
            let told = step.revision == revision && line.r#type != "BOOKMARK";
            !told && self.filter.shows_step(step)
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

    fn initial_line(&mut self, world: &World, line: &Line, key: String, revision: Revision) -> Result<(), String> {
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
