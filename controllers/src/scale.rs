//! Resource mapping of kinds, the `scale` subresource, and the paths of both. Pure.

use machinery_api::GroupVersion;
use machinery_api::selector::LabelSelector;
use machinery_client::{Effect, Failure, Pass};
use serde_json::Value;

/// The maximum number of a group's versions that are searched for a kind.
const VERSIONS_MAX: usize = 16;

/// The end of a pass without a result: effects first, or a failure.
#[derive(Debug, PartialEq)]
pub(crate) enum Stop {
    Ask(Vec<Effect>),
    Failed(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// The answer to a GET; an effect if there is none yet.
pub(crate) fn fetch<'a>(pass: &'a Pass, path: &str) -> Result<Result<&'a Value, &'a Failure>, Stop> {
    let answer = pass.get_result(path).ok_or_else(|| Stop::Ask(vec![Effect::Get(path.to_owned())]))?;
    Ok(answer.as_deref())
}

/// The resource of a kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mapping {
    group: String,
    kind: String,
    /// `/api/v1`, `/apis/apps/v1`.
    root: String,
    plural: String,
}

impl Mapping {
    /// `pods`, `deployments.apps`.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of an object's scale.
    pub(crate) fn scale(&self, namespace: &str, name: &str) -> String {
        format!("{}/namespaces/{namespace}/{}/{}/scale", self.root, self.plural, encode(name))
    }
}

/// The resource of a kind: in the given version if it is served there, else in the first version of the group that
/// serves it. `known`: cached mappings.
pub(crate) fn mapping(pass: &Pass, known: &mut Vec<Mapping>, api_version: &str, kind: &str) -> Result<Mapping, Stop> {
    let GroupVersion { group, version } = GroupVersion::parse_checked(api_version)?;
    if let Some(found) = known.iter().find(|one| one.group == group && one.kind == kind) {
        return Ok(found.clone());
    }
    let none = || Stop::Failed(format!("no matches for kind {kind:?} in group {group:?}"));
    let segments = if group.is_empty() { vec![] } else { vec![group, version] };
    if segments.iter().any(|segment| ["", ".", ".."].contains(segment)) {
        return Err(none());
    }
    let root = |version: &str| match group {
        "" => "/api/v1".to_owned(),
        _ => format!("/apis/{}/{}", encode(group), encode(version)),
    };
    let found =
        |root: String, plural: &str| Mapping { group: group.into(), kind: kind.into(), root, plural: plural.into() };
    let mapping = match in_version(pass, &root(version), kind)? {
        Some(plural) => found(root(version), plural),
        None if group.is_empty() => return Err(none()),
        None => {
            let others = versions(pass, group, version)?.ok_or_else(none)?;
            let roots: Vec<String> = others.iter().map(|version| root(version)).collect();
            let missing = roots.iter().filter(|root| pass.get_result(root).is_none());
            let missing: Vec<Effect> = missing.cloned().map(Effect::Get).collect();
            if !missing.is_empty() {
                return Err(Stop::Ask(missing));
            }
            let mut each = roots.into_iter().map(|root| {
                let plural = in_version(pass, &root, kind)?.map(str::to_owned);
                Ok(plural.map(|plural| found(root, &plural)))
            });
            each.find_map(Result::transpose).unwrap_or_else(|| Err(none()))?
        }
    };
    known.push(mapping.clone());
    Ok(mapping)
}

/// The plural of a kind in one version of a group; none if it isn't served there.
fn in_version<'a>(pass: &'a Pass, root: &str, kind: &str) -> Result<Option<&'a str>, Stop> {
    let list = match fetch(pass, root)? {
        Ok(list) => list,
        Err(failure) if failure.code == 404 => return Ok(None),
        Err(failure) => return Err(Stop::Failed(failure.message.clone())),
    };
    let names = list["resources"].as_array().into_iter().flatten().filter(|one| one["kind"] == kind);
    Ok(names.filter_map(|one| one["name"].as_str()).find(|name| !name.contains('/')))
}

/// Whether discovery lists a `scale` subresource.
pub(crate) fn implements_scale(pass: &Pass, mapping: &Mapping) -> Result<bool, Stop> {
    let list = fetch(pass, &mapping.root)?.map_err(|failure| Stop::Failed(failure.message.clone()))?;
    let name = format!("{}/scale", mapping.plural);
    Ok(list["resources"].as_array().into_iter().flatten().any(|one| one["name"] == *name && one["kind"] == "Scale"))
}

/// The versions of a group but one, the preferred one first; none if the group doesn't exist.
fn versions(pass: &Pass, group: &str, but: &str) -> Result<Option<Vec<String>>, Stop> {
    let found = match fetch(pass, &format!("/apis/{}", encode(group)))? {
        Ok(found) => found,
        Err(failure) if failure.code == 404 => return Ok(None),
        Err(failure) => return Err(Stop::Failed(failure.message.clone())),
    };
    let preferred = found["preferredVersion"]["version"].as_str();
    let all = found["versions"].as_array().into_iter().flatten().filter_map(|one| one["version"].as_str());
    let mut names: Vec<String> = preferred.into_iter().chain(all).filter(|name| *name != but).map(Into::into).collect();
    names.dedup();
    names.truncate(VERSIONS_MAX);
    Ok(Some(names))
}

/// The size of a workload, from its scale.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    pub(crate) wanted: i32,
    pub(crate) existing: i32,
    pub(crate) selector: String,
    pub(crate) object: Value,
}

impl Scale {
    pub(crate) fn read(object: &Value) -> Self {
        let count = |pointer: &str| {
            let number = object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
            i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX })
        };
        let selector = object.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (wanted, existing) = (count("/spec/replicas"), count("/status/replicas"));
        Self { wanted, existing, selector, object: object.clone() }
    }

    /// The scale with another size.
    pub(crate) fn with_replicas(&self, replicas: i32) -> Value {
        let mut object = self.object.clone();
        object["spec"] = serde_json::json!({"replicas": replicas});
        object
    }
}

/// Parses the selector of a Scale.
pub(crate) fn selector(text: &str) -> Result<LabelSelector, String> {
    let read = LabelSelector::parse(text);
    read.map_err(|error| format!("couldn't convert selector into a corresponding internal selector object: {error}"))
}

/// Encodes a path segment or a query value.
pub(crate) fn encode(text: &str) -> String {
    machinery_client::request::query_string(&[("", text)])[1..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn pass(answers: &[(&str, Result<Value, u16>)]) -> Pass {
        let mut pass = Pass::default();
        for (path, answer) in answers {
            let failure = |code: &u16| Failure {
                verb: "get",
                resource: String::new(),
                code: *code,
                reason: String::new(),
                message: "the server says no".into(),
            };
            let answer = answer.as_ref().map(|value| Arc::new(value.clone())).map_err(failure);
            pass.record(Effect::Get((*path).into()), answer);
        }
        pass
    }

    fn resources(names: &[(&str, &str)]) -> Result<Value, u16> {
        let one = |(name, kind): &(&str, &str)| json!({"name": name, "kind": kind});
        Ok(json!({"resources": names.iter().map(one).collect::<Vec<_>>()}))
    }

    #[test]
    fn a_kind_is_found_in_any_served_version() {
        let ask = |path: &str| Stop::Ask(vec![Effect::Get(path.into())]);
        let find = |pass: &Pass, version: &str, kind: &str| {
            mapping(pass, &mut Vec::new(), version, kind).map(|found| found.scale("a", "b c"))
        };
        let none = pass(&[]);
        assert_eq!(find(&none, "apps/v1", "Deployment"), Err(ask("/apis/apps/v1")));
        assert_eq!(find(&none, "v1", "ReplicationController"), Err(ask("/api/v1")));
        assert_eq!(find(&none, "a/b/c", "D"), Err(Stop::Failed("unexpected GroupVersion string: a/b/c".into())));
        assert_eq!(find(&none, "../v1", "D"), Err(Stop::Failed("no matches for kind \"D\" in group \"..\"".into())));
        assert_eq!(find(&none, "a?b/v1", "D"), Err(ask("/apis/a%3Fb/v1")));
        let served =
            pass(&[("/apis/apps/v1", resources(&[("deployments/scale", "Scale"), ("deployments", "Deployment")]))]);
        let path = "/apis/apps/v1/namespaces/a/deployments/b%20c/scale";
        assert_eq!(find(&served, "apps/v1", "Deployment"), Ok(path.into()));
        let old = pass(&[
            ("/apis/apps/v1beta1", Err(404)),
            ("/apis/apps", Ok(json!({"preferredVersion": {"version": "v1"}, "versions": [{"version": "v1"}]}))),
            ("/apis/apps/v1", resources(&[("deployments", "Deployment")])),
        ]);
        assert_eq!(find(&old, "apps/v1beta1", "Deployment"), Ok(path.into()));
        let gone = Err(Stop::Failed("no matches for kind \"Pump\" in group \"apps\"".into()));
        assert_eq!(find(&old, "apps/v1beta1", "Pump"), gone);
        let refused = pass(&[("/apis/apps/v1", Err(403))]);
        assert_eq!(find(&refused, "apps/v1", "Deployment"), Err(Stop::Failed("the server says no".into())));
    }

    #[test]
    fn any_scale_is_parsed() {
        let scale = Scale::read(&json!({"spec": {"replicas": 1e300}, "status": {"replicas": i64::MIN, "selector": 5}}));
        assert_eq!((scale.wanted, scale.existing, &*scale.selector), (0, i32::MIN, ""));
        assert_eq!(scale.with_replicas(3)["spec"], json!({"replicas": 3}));
        assert_eq!(Scale::read(&Value::Null).wanted, 0);
    }
}
