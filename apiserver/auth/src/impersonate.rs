//! Impersonation by the `Impersonate-*` headers. As in v1.36, the constrained modes (KEP-5284) are tried before the
//! legacy `impersonate` verb. The first mode's error is returned.

use machinery_api::selector::go_quoted;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use machinery_api::error::{ApiError, ApiResult};

use super::attributes::forbidden;
use super::{
    ANONYMOUS, AUTHENTICATED, Attributes, Authorizer, MASTERS, NODE_NAME, NODE_PREFIX, NODES, UNAUTHENTICATED,
    UserInfo, parse_service_account, service_account_groups,
};
use apiserver_resources::objects::ObjectReader;

/// The number of groups or extra values from which one check for `*` is tried first.
const WILDCARD_CHECK_MIN: usize = 4;
const AUTHENTICATION: &str = "authentication.k8s.io";
const EXTRA_HEADER: &str = "impersonate-extra-";

/// Parses the user of the headers; `None` if there are none.
pub fn requested_user(headers: &http::HeaderMap) -> ApiResult<Option<UserInfo>> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_HEADER) {
            // An incorrectly escaped key is taken literally.
            let key = percent_encoding::percent_decode_str(key)
                .decode_utf8()
                .map_or_else(|_| key.to_owned(), std::borrow::Cow::into_owned);
            extra.entry(key).or_default().push(text(value));
        }
    }
    let user = UserInfo {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: headers.get_all("impersonate-group").iter().map(text).collect(),
        extra,
    };
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() {
        return Ok(None);
    }
    let go_list = |type_name: &str, list: &[String]| {
        let quoted: Vec<String> = list.iter().map(|s| go_quoted(s)).collect();
        if list.is_empty() { format!("{type_name}(nil)") } else { format!("{type_name}{{{}}}", quoted.join(", ")) }
    };
    let extras: Vec<String> =
        user.extra.iter().map(|(key, values)| format!("{}:{}", go_quoted(key), go_list("[]string", values))).collect();
    let extras = if extras.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", extras.join(", ")) };
    Err(ApiError::BadRequest(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{}, Groups:{}, Extra:map[string][]string{extras}}} without \
         impersonating a user name",
        go_quoted(&user.uid),
        go_list("[]string", &user.groups)
    )))
}

/// The maximum number of requestors whose last successful mode is cached.
const LAST_MODES_MAX: usize = 10_000;

/// Authorizes impersonation.
#[derive(Debug, Default)]
pub struct Impersonator {
    /// The last successful mode of each requestor. As upstream, it is tried first, which only affects the error
    /// returned.
    last: Mutex<HashMap<String, Mode>>,
}

impl Impersonator {
    /// Returns the impersonated user for this request, or an error.
    pub async fn impersonate(
        &self,
        authorizer: &Authorizer,
        objects: &dyn ObjectReader,
        requestor: &UserInfo,
        target: &UserInfo,
        request: &Attributes<'_>,
    ) -> ApiResult<UserInfo> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&requestor.name).copied();
        let others = MODES.into_iter().filter(|mode| last != Some(*mode));
        let mut first_error = None;
        for mode in last.into_iter().chain(others) {
            if !mode.applies(requestor, target) {
                continue;
            }
            let check = ImpersonationCheck { authorizer, objects, requestor, mode };
            match check.impersonate(target, request).await {
                Ok(user) => {
                    if last != Some(mode) {
                        self.record_mode(&requestor.name, mode);
                    }
                    return Ok(user);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        // The legacy mode always applies, so there is an error.
        Err(first_error.unwrap_or_else(|| forbidden(&requestor.name, request, "")))
    }

    fn record_mode(&self, requestor: &str, mode: Mode) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= LAST_MODES_MAX {
            last.clear();
        }
        last.insert(requestor.to_owned(), mode);
    }
}

/// In the order in which they are tried.
const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    fn applies(self, requestor: &UserInfo, target: &UserInfo) -> bool {
        let only_name = target.uid.is_empty() && target.groups.is_empty() && target.extra.is_empty();
        let node = node_name(&target.name);
        let service_account = parse_service_account(&target.name).is_some();
        match self {
            Self::AssociatedNode => {
                let own = requestor.extra.get(NODE_NAME).filter(|values| values.len() == 1).and_then(|v| v.first());
                only_name
                    && parse_service_account(&requestor.name).is_some()
                    && node.is_some_and(|node| own.is_some_and(|own| own == node))
            }
            Self::ArbitraryNode => only_name && node.is_some(),
            Self::ServiceAccount => only_name && service_account,
            Self::UserInfo => node.is_none() && !service_account,
            Self::Legacy => true,
        }
    }
}

/// The node name in `system:node:NAME`, if it is a valid name.
fn node_name(user: &str) -> Option<&str> {
    let name = user.strip_prefix(NODE_PREFIX)?;
    let label = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    (name.len() <= 253 && name.split('.').all(label)).then_some(name)
}

struct ImpersonationCheck<'a> {
    authorizer: &'a Authorizer,
    objects: &'a dyn ObjectReader,
    requestor: &'a UserInfo,
    mode: Mode,
}

impl ImpersonationCheck<'_> {
    async fn impersonate(&self, target: &UserInfo, request: &Attributes<'_>) -> ApiResult<UserInfo> {
        if self.mode != Mode::Legacy {
            let verb = format!("impersonate-on:{}:{}", self.mode.name(), request.verb);
            self.authorizer.check(self.objects, self.requestor, &Attributes { verb: &verb, ..*request }).await?;
        }
        let mut user = target.clone();
        self.name(&mut user).await?;
        if !target.uid.is_empty() {
            self.check(AUTHENTICATION, "uids", "", "", &target.uid).await?;
        }
        self.groups(&target.groups).await?;
        self.extra(&target.extra).await?;
        if user.name == ANONYMOUS {
            ensure_group(&mut user, UNAUTHENTICATED);
        } else if !user.is_in(UNAUTHENTICATED) {
            ensure_group(&mut user, AUTHENTICATED);
        }
        Ok(user)
    }

    async fn name(&self, user: &mut UserInfo) -> ApiResult<()> {
        let name = user.name.clone();
        if self.mode != Mode::Legacy
            && let Some(node) = node_name(&name)
        {
            user.groups = vec![NODES.to_owned()];
            // The grant for an associated node covers all nodes: its name was checked before.
            let node = if self.mode == Mode::AssociatedNode { "*" } else { node };
            return self.check(AUTHENTICATION, "nodes", "", "", node).await;
        }
        if let Some((namespace, account)) = parse_service_account(&name) {
            if user.groups.is_empty() {
                user.groups = service_account_groups(namespace);
            }
            return self.check(self.group(), "serviceaccounts", "", namespace, account).await;
        }
        self.check(self.group(), "users", "", "", &name).await
    }

    async fn groups(&self, groups: &[String]) -> ApiResult<()> {
        if groups.is_empty() {
            return Ok(());
        }
        if self.mode != Mode::Legacy {
            if groups.iter().any(String::is_empty) {
                return Err(self.forbidden("groups", "", "impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|group| group == MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(self.forbidden("groups", MASTERS, why));
            }
            if groups.len() >= WILDCARD_CHECK_MIN && self.check(self.group(), "groups", "", "", "*").await.is_ok() {
                return Ok(());
            }
        }
        // Each group is checked once, because a client may send thousands of headers.
        let groups: BTreeSet<&String> = groups.iter().collect();
        for group in groups {
            self.check(self.group(), "groups", "", "", group).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> ApiResult<()> {
        if extra.is_empty() {
            return Ok(());
        }
        if self.mode != Mode::Legacy {
            if let Some(why) = extra.iter().find_map(|(key, values)| unusable_extra(key, values)) {
                return Err(self.forbidden_in(AUTHENTICATION, "userextras", "", &why));
            }
            let many =
                extra.len() >= WILDCARD_CHECK_MIN || extra.values().map(Vec::len).sum::<usize>() >= WILDCARD_CHECK_MIN;
            if many && self.check(AUTHENTICATION, "userextras", "*", "", "*").await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.check(AUTHENTICATION, "userextras", key, "", value).await?;
            }
        }
        Ok(())
    }

    /// The legacy mode has users, groups and service accounts in the core group.
    fn group(&self) -> &'static str {
        if self.mode == Mode::Legacy { "" } else { AUTHENTICATION }
    }

    fn verb(&self) -> String {
        if self.mode == Mode::Legacy { "impersonate".into() } else { format!("impersonate:{}", self.mode.name()) }
    }

    async fn check(
        &self,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> ApiResult<()> {
        let verb = self.verb();
        let version = "v1";
        let request = Attributes {
            verb: &verb,
            group,
            version,
            resource,
            subresource,
            namespace,
            name,
            is_resource: true,
            ..Attributes::default()
        };
        self.authorizer.check(self.objects, self.requestor, &request).await
    }

    fn forbidden(&self, resource: &str, name: &str, why: &str) -> ApiError {
        self.forbidden_in(self.group(), resource, name, why)
    }

    fn forbidden_in(&self, group: &str, resource: &str, name: &str, why: &str) -> ApiError {
        let verb = self.verb();
        let request = Attributes { verb: &verb, group, resource, name, is_resource: true, ..Attributes::default() };
        forbidden(&self.requestor.name, &request, why)
    }
}

/// The reason why the constrained modes reject an extra.
fn unusable_extra(key: &str, values: &[String]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".into());
    }
    if !key.split_once('/').is_some_and(|(domain, path)| !domain.is_empty() && !path.is_empty()) {
        return Some(format!(
            "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {}: must be a \
             domain-prefixed path (such as \"acme.io/foo\")",
            go_quoted(key)
        ));
    }
    if key.chars().any(char::is_uppercase) {
        return Some(format!("impersonating a non-lowercase key in extra is not allowed: {}", go_quoted(key)));
    }
    if values.iter().any(String::is_empty) {
        return Some("impersonating the empty string value in extra is not allowed".into());
    }
    None
}

fn ensure_group(user: &mut UserInfo, group: &str) {
    if !user.is_in(group) {
        user.groups.push(group.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RBAC_GROUP;
    use apiserver_resources::objects::memory::MemoryObjects;
    use futures::FutureExt as _;
    use serde_json::json;

    fn headers(list: &[(&str, &str)]) -> http::HeaderMap {
        let mut headers = http::HeaderMap::new();
        for (name, value) in list {
            headers.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn get_namespaces() -> Attributes<'static> {
        Attributes { verb: "list", resource: "namespaces", is_resource: true, ..Attributes::default() }
    }

    #[test]
    fn headers_name_a_user() {
        assert_eq!(requested_user(&headers(&[])), Ok(None));
        assert_eq!(requested_user(&headers(&[("impersonate-user", "")])), Ok(None));
        let user = requested_user(&headers(&[
            ("impersonate-user", "jo"),
            ("impersonate-uid", "abc"),
            ("impersonate-extra-scopes", "one"),
            ("impersonate-extra-example.com%2fteam", "blue"),
        ]));
        let user = user.unwrap().unwrap();
        assert_eq!(user.extra["example.com/team"], ["blue"]);
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jo", "abc"));
        let error = requested_user(&headers(&[("impersonate-group", "dev")])).unwrap_err();
        assert_eq!(
            error.status().message,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"dev\"}, Extra:map[string][]string(nil)} \
             without impersonating a user name"
        );
    }

    #[test]
    fn masters_become_anyone() {
        let (map, authorizer) = (MemoryObjects::default(), Authorizer::default());
        let admin = UserInfo::component("admin", Some(MASTERS));
        let become_user = |name: &str, groups: &[&str]| {
            let groups = groups.iter().map(ToString::to_string).collect();
            let target = UserInfo { name: name.into(), groups, ..UserInfo::default() };
            let by = Impersonator::default();
            let done = by
                .impersonate(&authorizer, &map, &admin, &target, &get_namespaces())
                .now_or_never()
                .expect("no link waits");
            done.unwrap().groups
        };
        assert_eq!(become_user("jo", &[]), ["system:authenticated"]);
        assert_eq!(become_user("root", &["system:masters"]), ["system:masters", "system:authenticated"]);
        assert_eq!(become_user("system:anonymous", &[]), ["system:unauthenticated"]);
        assert_eq!(become_user("system:node:n1", &[]), ["system:nodes", "system:authenticated"]);
        assert_eq!(
            become_user("system:serviceaccount:ns:robot", &[]),
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(
            become_user("system:serviceaccount:ns:robot", &["only-this"]),
            ["only-this", "system:authenticated"]
        );
    }

    #[test]
    fn others_need_each_grant() {
        let (map, authorizer) = (MemoryObjects::default(), Authorizer::default());
        map.put(
            RBAC_GROUP,
            "clusterroles",
            json!({"metadata": {"name": "r"}, "rules": [
                {"apiGroups": [""], "resources": ["users"], "resourceNames": ["jo"], "verbs": ["impersonate"]},
                {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"], "verbs": ["impersonate"]},
            ]}),
        );
        map.put(
            RBAC_GROUP,
            "clusterrolebindings",
            json!({"metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "al"}]}),
        );
        let by = Impersonator::default();
        let check = |requestor: &str, list: &[(&str, &str)]| {
            let target = requested_user(&headers(list)).unwrap().unwrap();
            let requestor = UserInfo::component(requestor, None);
            by.impersonate(&authorizer, &map, &requestor, &target, &get_namespaces())
                .now_or_never()
                .expect("no link waits")
        };
        assert_eq!(check("al", &[("impersonate-user", "jo")]).unwrap().groups, ["system:authenticated"]);
        assert!(check("al", &[("impersonate-user", "jo"), ("impersonate-group", "dev")]).is_ok());
        assert!(check("al", &[("impersonate-user", "jo"), ("impersonate-group", "ops")]).is_err());
        assert!(check("al", &[("impersonate-user", "jo"), ("impersonate-uid", "a")]).is_err());
        assert!(check("al", &[("impersonate-user", "jo"), ("impersonate-extra-a", "a")]).is_err());
        assert_eq!(
            check("al", &[("impersonate-user", "bo")]).unwrap_err().status().message,
            "users \"bo\" is forbidden: User \"al\" cannot impersonate resource \"users\" in API group \"\" at the cluster \
             scope"
        );
        assert_eq!(
            check("bo", &[("impersonate-user", "jo")]).unwrap_err().status().message,
            "namespaces is forbidden: User \"bo\" cannot impersonate-on:user-info:list resource \"namespaces\" in API \
             group \"\" at the cluster scope"
        );
    }
}
