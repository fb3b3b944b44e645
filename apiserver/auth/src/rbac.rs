//! RBAC: indexes bindings and roles by user and group, so that a decision does not walk all of them.

use machinery_api::selector::go_quoted;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use serde_json::Value;

use super::rules::Rule;
use super::{Attributes, Decision, RBAC_GROUP, UserInfo, service_account_user};
use apiserver_resources::objects::ObjectReader;

/// The kinds that the index is built from.
const KINDS: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

/// Decides by Roles and ClusterRoles. The index is rebuilt after a change of one of the four kinds.
pub(crate) struct Rbac {
    index: ArcSwap<Index>,
    parsed_objects: Mutex<ParsedObjects>,
}

impl std::fmt::Debug for Rbac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rbac(…)")
    }
}

impl Default for Rbac {
    fn default() -> Self {
        Self { index: ArcSwap::from_pointee(Index::default()), parsed_objects: Mutex::default() }
    }
}

/// All rules of a user in a namespace (empty: cluster-wide only), and the missing roles.
#[derive(Debug, Default)]
pub(crate) struct ResolvedRules {
    /// Cluster-wide rules first.
    pub(crate) rules: Vec<Rule>,
    /// One message for each binding to a missing role.
    pub(crate) errors: Vec<String>,
}

/// Formats several errors as upstream does: `[a, b]`, or `a` alone, without duplicates.
#[must_use]
pub(crate) fn aggregate(errors: &[String]) -> String {
    let mut reported = BTreeSet::new();
    let unique: Vec<&str> = errors.iter().map(String::as_str).filter(|e| reported.insert(*e)).collect();
    match unique.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

impl Rbac {
    /// Whether a rule allows the request. As upstream, the reason names the first binding with such a rule.
    #[must_use]
    pub(crate) fn authorize(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> Decision {
        let index = self.current_index(objects);
        let mut errors = Vec::new();
        for binding in index.bindings(user, request.namespace) {
            match &binding.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(request)) => {
                    return Decision::allow(format!("RBAC: allowed by {}", binding.describe(user)));
                }
                Ok(_) => {}
                Err(error) => errors.push(error.clone()),
            }
        }
        if errors.is_empty() {
            Decision::no_opinion("")
        } else {
            Decision::no_opinion(format!("RBAC: {}", aggregate(&errors)))
        }
    }

    /// All rules that a user has.
    #[must_use]
    pub(crate) fn rules_for(&self, objects: &dyn ObjectReader, user: &UserInfo, namespace: &str) -> ResolvedRules {
        let index = self.current_index(objects);
        let mut granted = ResolvedRules::default();
        for binding in index.bindings(user, namespace) {
            match &binding.rules {
                Ok(rules) => granted.rules.extend(rules.iter().cloned()),
                Err(error) => granted.errors.push(error.clone()),
            }
        }
        granted
    }

    fn current_index(&self, objects: &dyn ObjectReader) -> Arc<Index> {
        let revisions = KINDS.map(|plural| objects.revision(RBAC_GROUP, plural));
        let index = self.index.load_full();
        if index.revisions == Some(revisions) {
            return index;
        }
        let mut parsed_objects = self.parsed_objects.lock().unwrap_or_else(PoisonError::into_inner);
        // Another request may have built the index while this one waited for the lock.
        let index = self.index.load_full();
        if index.revisions == Some(revisions) {
            return index;
        }
        // The revisions are read first. A change during the build moves them, so that the next request rebuilds.
        let index = Arc::new(Index::build(revisions, objects, &mut parsed_objects));
        self.index.store(index.clone());
        index
    }
}

/// Parsed objects by resourceVersion, so that a change of one object does not reparse the others.
#[derive(Default)]
struct ParsedObjects {
    roles: ParsedByKey<Arc<[Rule]>>,
    bindings: ParsedByKey<Arc<ParsedBinding>>,
}

/// Keyed by plural, namespace and name.
type ParsedByKey<T> = HashMap<(&'static str, String, String), (u64, T)>;

/// Updates `parsed` to the current objects of a kind, and visits them in key order.
fn refresh<T: Clone>(
    parsed: &mut ParsedByKey<T>,
    objects: &dyn ObjectReader,
    plural: &'static str,
    read: impl Fn(&Value) -> T,
    mut visit: impl FnMut(&str, &str, &T),
) {
    let mut listed = Vec::new();
    objects.each(RBAC_GROUP, plural, None, None, &mut |namespace, name, version| {
        listed.push(((plural, namespace.to_owned(), name.to_owned()), version));
    });
    let mut next = ParsedByKey::with_capacity(listed.len());
    for (key, version) in listed {
        let value = match parsed.remove(&key) {
            Some((parsed_version, value)) if parsed_version == version => value,
            _ => match objects.get(RBAC_GROUP, plural, &key.1, &key.2) {
                Some(object) => read(&object),
                // The object was just deleted. The revision has moved, so that the next request rebuilds.
                None => continue,
            },
        };
        visit(&key.1, &key.2, &value);
        next.insert(key, (version, value));
    }
    parsed.retain(|(other, ..), _| *other != plural);
    parsed.extend(next);
}

#[derive(Default)]
struct Index {
    revisions: Option<[u64; 4]>,
    cluster: Bindings,
    namespaces: HashMap<String, Bindings>,
}

#[derive(Default)]
struct Bindings {
    list: Vec<Binding>,
    users: HashMap<String, Vec<usize>>,
    groups: HashMap<String, Vec<usize>>,
}

/// A parsed binding.
struct ParsedBinding {
    /// `RoleBinding "b/ns" of Role "r"`.
    title: String,
    subjects: Vec<Subject>,
    role: (String, String),
}

/// A binding with its role's rules, or the message about a missing role.
struct Binding {
    parsed: Arc<ParsedBinding>,
    rules: Result<Arc<[Rule]>, String>,
}

struct Subject {
    title: String,
    matches: SubjectMatch,
}

enum SubjectMatch {
    User(String),
    Group(String),
}

impl Binding {
    fn describe(&self, user: &UserInfo) -> String {
        let subject = self.parsed.subjects.iter().find(|subject| match &subject.matches {
            SubjectMatch::User(name) => *name == user.name,
            SubjectMatch::Group(name) => user.is_in(name),
        });
        format!("{} to {}", self.parsed.title, subject.map(|s| s.title.as_str()).unwrap_or_default())
    }
}

impl Index {
    fn build(revisions: [u64; 4], objects: &dyn ObjectReader, parsed_objects: &mut ParsedObjects) -> Self {
        let mut roles: HashMap<(String, String), Arc<[Rule]>> = HashMap::new();
        for plural in ["clusterroles", "roles"] {
            let rules = |role: &Value| Rule::parse_all(role).into();
            refresh(&mut parsed_objects.roles, objects, plural, rules, |namespace, name, rules: &Arc<[Rule]>| {
                roles.insert((namespace.to_owned(), name.to_owned()), rules.clone());
            });
        }
        let mut index = Self { revisions: Some(revisions), ..Self::default() };
        for plural in ["clusterrolebindings", "rolebindings"] {
            let parsed = |binding: &Value| Arc::new(read_binding(binding));
            refresh(
                &mut parsed_objects.bindings,
                objects,
                plural,
                parsed,
                |namespace, _, parsed: &Arc<ParsedBinding>| {
                    let (kind, name) = &parsed.role;
                    let home = if kind == "Role" { namespace } else { "" };
                    let rules = roles.get(&(home.to_owned(), name.clone())).cloned();
                    let rules = rules.ok_or_else(|| missing_role(kind, name));
                    let binding = Binding { parsed: parsed.clone(), rules };
                    if namespace.is_empty() {
                        index.cluster.add(binding);
                    } else {
                        index.namespaces.entry(namespace.to_owned()).or_default().add(binding);
                    }
                },
            );
        }
        index
    }

    fn bindings<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Binding> {
        let local = if namespace.is_empty() { None } else { self.namespaces.get(namespace) };
        self.cluster.of_subject(user).chain(local.into_iter().flat_map(|bindings| bindings.of_subject(user)))
    }
}

impl Bindings {
    fn add(&mut self, binding: Binding) {
        let at = self.list.len();
        for subject in &binding.parsed.subjects {
            let (map, name) = match &subject.matches {
                SubjectMatch::User(name) => (&mut self.users, name),
                SubjectMatch::Group(name) => (&mut self.groups, name),
            };
            let list = map.entry(name.clone()).or_default();
            if list.last() != Some(&at) {
                list.push(at);
            }
        }
        self.list.push(binding);
    }

    /// The bindings of the user and its groups, in order, without duplicates.
    fn of_subject(&self, user: &UserInfo) -> impl Iterator<Item = &Binding> {
        let mut indices: Vec<usize> = self.users.get(&user.name).into_iter().flatten().copied().collect();
        for group in &user.groups {
            indices.extend(self.groups.get(group).into_iter().flatten());
        }
        indices.sort_unstable();
        indices.dedup();
        indices.into_iter().filter_map(|at| self.list.get(at))
    }
}

fn read_binding(binding: &Value) -> ParsedBinding {
    let (namespace, name) = (text(&binding["metadata"]["namespace"]), text(&binding["metadata"]["name"]));
    let role = (text(&binding["roleRef"]["kind"]), text(&binding["roleRef"]["name"]));
    let (role_kind, role_name) = (&role.0, &role.1);
    let title = if namespace.is_empty() {
        format!("ClusterRoleBinding {} of {role_kind} {}", go_quoted(&name), go_quoted(role_name))
    } else {
        format!("RoleBinding {} of {role_kind} {}", go_quoted(&format!("{name}/{namespace}")), go_quoted(role_name))
    };
    let subjects = binding["subjects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let subjects = subjects.iter().filter_map(|subject| read_subject(subject, &namespace)).collect();
    ParsedBinding { title, subjects, role }
}

/// The message about a binding to a missing role.
fn missing_role(kind: &str, name: &str) -> String {
    match kind {
        "Role" => format!("role.{RBAC_GROUP} {} not found", go_quoted(name)),
        "ClusterRole" => format!("clusterrole.{RBAC_GROUP} {} not found", go_quoted(name)),
        other => format!("unsupported role reference kind: {}", go_quoted(other)),
    }
}

fn read_subject(subject: &Value, namespace: &str) -> Option<Subject> {
    let name = text(&subject["name"]);
    match subject["kind"].as_str()? {
        "User" => Some(Subject { title: format!("User {}", go_quoted(&name)), matches: SubjectMatch::User(name) }),
        "Group" => Some(Subject { title: format!("Group {}", go_quoted(&name)), matches: SubjectMatch::Group(name) }),
        "ServiceAccount" => {
            let home = subject["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(namespace);
            let title = format!("ServiceAccount {}", go_quoted(&format!("{name}/{home}")));
            (!home.is_empty())
                .then(|| Subject { title, matches: SubjectMatch::User(service_account_user(home, &name)) })
        }
        _ => None,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::objects::memory::MemoryObjects;
    use serde_json::json;

    fn role(namespace: &str, name: &str, verb: &str) -> Value {
        let mut role = json!({
            "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}],
        });
        if !namespace.is_empty() {
            role["metadata"]["namespace"] = namespace.into();
        }
        role
    }

    fn binding(namespace: &str, name: &str, kind: &str, role: &str, subjects: &Value) -> Value {
        let mut binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": kind, "name": role},
            "subjects": subjects,
        });
        if !namespace.is_empty() {
            binding["metadata"]["namespace"] = namespace.into();
        }
        binding
    }

    fn ask(rbac: &Rbac, map: &MemoryObjects, user: &str, groups: &[&str], verb: &str, namespace: &str) -> Decision {
        let user = UserInfo {
            name: user.into(),
            groups: groups.iter().map(ToString::to_string).collect(),
            ..UserInfo::default()
        };
        let request = Attributes { verb, resource: "pods", namespace, is_resource: true, ..Attributes::default() };
        rbac.authorize(map, &user, &request)
    }

    #[test]
    fn grants_follow_their_objects() {
        let (map, rbac) = (MemoryObjects::default(), Rbac::default());
        map.put(RBAC_GROUP, "roles", role("ns", "r", "list"));
        map.put(RBAC_GROUP, "clusterroles", role("", "c", "get"));
        map.put(RBAC_GROUP, "rolebindings", binding("ns", "b", "Role", "r", &json!([{"kind": "User", "name": "jo"}])));
        let sa =
            json!([{"kind": "ServiceAccount", "name": "default", "namespace": "ns"}, {"kind": "Group", "name": "ops"}]);
        map.put(RBAC_GROUP, "clusterrolebindings", binding("", "cb", "ClusterRole", "c", &sa));

        assert_eq!(
            ask(&rbac, &map, "jo", &[], "list", "ns"),
            Decision::allow(r#"RBAC: allowed by RoleBinding "b/ns" of Role "r" to User "jo""#)
        );
        assert_eq!(ask(&rbac, &map, "jo", &[], "list", "other"), Decision::no_opinion(""));
        assert_eq!(ask(&rbac, &map, "jo", &[], "list", ""), Decision::no_opinion(""));
        assert_eq!(
            ask(&rbac, &map, "system:serviceaccount:ns:default", &[], "get", "any").reason,
            r#"RBAC: allowed by ClusterRoleBinding "cb" of ClusterRole "c" to ServiceAccount "default/ns""#
        );
        assert!(ask(&rbac, &map, "al", &["ops"], "get", "").allowed);

        map.remove(RBAC_GROUP, "roles", "ns", "r");
        assert_eq!(
            ask(&rbac, &map, "jo", &[], "list", "ns"),
            Decision::no_opinion(r#"RBAC: role.rbac.authorization.k8s.io "r" not found"#)
        );
        map.put(RBAC_GROUP, "roles", role("ns", "r", "watch"));
        assert!(!ask(&rbac, &map, "jo", &[], "list", "ns").allowed);
        assert!(ask(&rbac, &map, "jo", &[], "watch", "ns").allowed);
    }
}
