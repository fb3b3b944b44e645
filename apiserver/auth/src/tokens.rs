//! Service account tokens: issues them for `serviceaccounts/NAME/token`, and verifies on every use that the bound
//! objects still exist.

use machinery_api::selector::go_quoted;
use machinery_api::{GroupVersion, GroupVersionKind};
use std::time::Duration;

use jiff::Timestamp;
use machinery_api::error::{ApiError, ApiResult, Cause, GroupResource};
use machinery_api::names::TOKEN_ISSUER;
use machinery_env::Env;
use serde_json::{Map, Value, json};

use super::jwt::SigningKey;
use super::{
    CREDENTIAL_ID, NODE_NAME, NODE_UID, POD_NAME, POD_UID, UserInfo, parse_service_account, service_account_groups,
    service_account_user,
};
use apiserver_resources::objects::ObjectReader;
use apiserver_resources::rules;

/// The lifetime of tokens requested without `expirationSeconds`.
const EXPIRATION_DEFAULT_SECONDS: i64 = 3600;
/// The minimum lifetime of a request.
const EXPIRATION_MIN_SECONDS: i64 = 600;
/// The maximum lifetime of a request.
const EXPIRATION_MAX_SECONDS: i64 = 1 << 32;
/// The lifetime that the injected volume requests. Pod tokens with exactly this lifetime are valid for a year, for
/// clients that read their token once. After this time they only count as stale.
const EXPIRATION_WARN_SECONDS: i64 = 3607;
/// See [`EXPIRATION_WARN_SECONDS`].
const EXPIRATION_EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
/// The tolerated difference of clocks of clients and of an earlier server process. Tokens of deleted objects expire
/// this much later.
const LEEWAY: Duration = Duration::from_mins(1);
/// The issuer in tokens of Secrets of type `kubernetes.io/service-account-token`.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const LEGACY_CLAIM: &str = "kubernetes.io/serviceaccount/";
/// The label of Secrets whose token is invalidated.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Handles a TokenRequest for a service account.
pub fn issue(
    key: &SigningKey,
    env: &Env,
    objects: &dyn ObjectReader,
    namespace: &str,
    name: &str,
    body: &Value,
) -> ApiResult<Value> {
    check_path(&body["metadata"], namespace, name)?;
    let account_uid = account_uid(objects, namespace, name, text(&body["metadata"]["uid"]))?;
    let spec = &body["spec"];
    let seconds = requested_lifetime(spec)?;
    let audiences: Vec<&str> = spec["audiences"].as_array().into_iter().flatten().map(text).collect();
    let audiences = if audiences.is_empty() { vec![TOKEN_ISSUER] } else { audiences };
    let bound = BoundObject::resolve(objects, namespace, name, &spec["boundObjectRef"])?;

    let now = env.now().as_second();
    let mut private_claims = json!({
        "namespace": namespace,
        "serviceaccount": {"name": name, "uid": account_uid},
    });
    bound.write(&mut private_claims);
    let lifetime = lifetime(&bound, seconds, &audiences);
    if lifetime != seconds {
        private_claims["warnafter"] = (now + seconds).into();
    }
    let claims = json!({
        "aud": audiences,
        "exp": now + lifetime,
        "iat": now,
        "iss": TOKEN_ISSUER,
        "jti": env.uid(),
        "kubernetes.io": private_claims,
        "nbf": now,
        "sub": service_account_user(namespace, name),
    });
    let token = key.sign(&claims).map_err(|error| ApiError::Internal(format!("failed to generate token: {error}")))?;

    let mut metadata = body["metadata"].as_object().cloned().unwrap_or_default();
    metadata.retain(|_, value| !value.is_null());
    metadata.insert("name".into(), name.into());
    metadata.insert("namespace".into(), namespace.into());
    metadata.insert("uid".into(), account_uid.into());
    metadata.insert("creationTimestamp".into(), rfc3339(now).into());
    let reference = match &spec["boundObjectRef"] {
        Value::Object(reference) => {
            let kept = reference.iter().filter(|(_, v)| v.as_str().is_some_and(|v| !v.is_empty()));
            Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        _ => Value::Null,
    };
    Ok(json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": metadata,
        "spec": {"audiences": audiences, "boundObjectRef": reference, "expirationSeconds": seconds},
        "status": {"expirationTimestamp": rfc3339(now + seconds), "token": token},
    }))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn kind() -> GroupResource {
    GroupResource::new("authentication.k8s.io", "TokenRequest")
}

/// Rejects a body with a namespace or name that differs from the path's.
fn check_path(metadata: &Value, namespace: &str, name: &str) -> ApiResult<()> {
    let given = text(&metadata["namespace"]);
    if !given.is_empty() && given != namespace {
        return Err(ApiError::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request".into(),
        ));
    }
    let given = text(&metadata["name"]);
    if !given.is_empty() && given != name {
        let message = format!("Invalid value: {}: must match the service account name if specified", go_quoted(given));
        return Err(ApiError::Invalid(kind(), name.into(), vec![cause("FieldValueInvalid", "metadata.name", message)]));
    }
    Ok(())
}

/// Returns the account's UID, and rejects a request with a different one.
fn account_uid(objects: &dyn ObjectReader, namespace: &str, name: &str, given: &str) -> ApiResult<String> {
    let account = objects
        .get("", "serviceaccounts", namespace, name)
        .ok_or_else(|| ApiError::NotFound(GroupResource::new("", "serviceaccounts"), name.into()))?;
    let uid = text(&account["metadata"]["uid"]);
    if !given.is_empty() && given != uid {
        let why =
            format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
        return Err(ApiError::Conflict(kind(), name.into(), why));
    }
    Ok(uid.to_owned())
}

/// The requested lifetime in seconds.
fn requested_lifetime(spec: &Value) -> ApiResult<i64> {
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(EXPIRATION_DEFAULT_SECONDS);
    let why = match seconds {
        ..EXPIRATION_MIN_SECONDS => "may not specify a duration less than 10 minutes",
        s if s > EXPIRATION_MAX_SECONDS => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(seconds),
    };
    let message = format!("Invalid value: {seconds}: {why}");
    Err(ApiError::Invalid(kind(), String::new(), vec![cause("FieldValueInvalid", "spec.expirationSeconds", message)]))
}

/// The actual lifetime in seconds. Tokens of the injected volume live longer than their nominal lifetime.
fn lifetime(bound: &BoundObject, seconds: i64, audiences: &[&str]) -> i64 {
    let injected = matches!(bound, BoundObject::Pod(..))
        && seconds == EXPIRATION_WARN_SECONDS
        && audiences.iter().all(|audience| *audience == TOKEN_ISSUER);
    if injected { EXPIRATION_EXTENDED_SECONDS } else { seconds }
}

/// The object that a token is bound to.
enum BoundObject {
    Nothing,
    /// The pod, and its node's name and UID.
    Pod(Reference, Option<(String, String)>),
    Secret(Reference),
    Node(Reference),
}

/// The name and UID of an object.
struct Reference {
    name: String,
    uid: String,
}

impl Reference {
    fn of(object: &Value) -> Self {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        Self { name: text("name"), uid: text("uid") }
    }

    fn claim(&self) -> Value {
        json!({"name": self.name, "uid": self.uid})
    }
}

impl BoundObject {
    fn resolve(objects: &dyn ObjectReader, namespace: &str, account: &str, reference: &Value) -> ApiResult<Self> {
        if !reference.is_object() {
            return Ok(Self::Nothing);
        }
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (api_version, kind, name, uid) = (text("apiVersion"), text("kind"), text("name"), text("uid"));
        let GroupVersion { group, version } = GroupVersion::parse_checked(api_version).unwrap_or_default();
        let find = |plural: &str, namespace: &str| {
            if name.is_empty() {
                return Err(ApiError::BadRequest("Name parameter required.".into()));
            }
            rules::check_segment(name)?;
            // The token of a pod is requested only a few times in the pod's life, so the object is not cached.
            let object = objects.get_uncached("", plural, namespace, name);
            object.ok_or_else(|| ApiError::NotFound(GroupResource::new("", plural), name.to_owned()))
        };
        let (bound, actual_uid) = match (group, kind) {
            ("", "Pod") => {
                let pod = find("pods", namespace)?;
                if pod["spec"]["serviceAccountName"].as_str() != Some(account) {
                    return Err(ApiError::BadRequest(format!(
                        "cannot bind token for serviceaccount {} to pod running with different serviceaccount \
                         name.",
                        go_quoted(account)
                    )));
                }
                let node = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()).map(|node| {
                    let uid = objects.get("", "nodes", "", node);
                    let uid = uid.as_deref().and_then(|n| n["metadata"]["uid"].as_str()).unwrap_or_default();
                    (node.to_owned(), uid.to_owned())
                });
                let pod = Reference::of(&pod);
                let uid = pod.uid.clone();
                (Self::Pod(pod, node), uid)
            }
            ("", "Node") => {
                let node = Reference::of(&*find("nodes", "")?);
                let uid = node.uid.clone();
                (Self::Node(node), uid)
            }
            ("", "Secret") => {
                let secret = Reference::of(&*find("secrets", namespace)?);
                let uid = secret.uid.clone();
                (Self::Secret(secret), uid)
            }
            _ => {
                let kind = GroupVersionKind { group, version, kind };
                return Err(ApiError::BadRequest(format!("cannot bind token to object of type {kind}")));
            }
        };
        if !uid.is_empty() && uid != actual_uid {
            return Err(ApiError::Conflict(
                GroupResource::new(group, kind),
                name.into(),
                format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might \
                     have been deleted and then recreated"
                ),
            ));
        }
        Ok(bound)
    }

    fn write(&self, private_claims: &mut Value) {
        match self {
            Self::Nothing => {}
            Self::Pod(pod, node) => {
                private_claims["pod"] = pod.claim();
                if let Some((name, uid)) = node {
                    let mut claim = Map::from_iter([("name".to_owned(), json!(name))]);
                    if !uid.is_empty() {
                        claim.insert("uid".into(), json!(uid));
                    }
                    private_claims["node"] = claim.into();
                }
            }
            Self::Secret(secret) => private_claims["secret"] = secret.claim(),
            Self::Node(node) => private_claims["node"] = node.claim(),
        }
    }
}

/// A valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthenticatedToken {
    /// The user, without `system:authenticated`.
    pub user: UserInfo,
    /// The requested audiences that the token is valid for.
    pub audiences: Vec<String>,
}

/// Returns the service account of a token that is valid now for one of the audiences and whose bound objects exist, or
/// the reason of the rejection. `claims` are those of a verified signature; `None` means that the signature is not the
/// server's.
pub(super) fn authenticate(
    claims: Option<&Value>,
    objects: &dyn ObjectReader,
    now: Timestamp,
    token: &str,
    audiences: &[String],
) -> Result<AuthenticatedToken, String> {
    let claims = claims.ok_or("invalid bearer token")?;
    let legacy = match claims["iss"].as_str() {
        Some(TOKEN_ISSUER) => false,
        Some(LEGACY_ISSUER) => true,
        _ => return Err("invalid bearer token".into()),
    };
    let mut token_audiences: Vec<String> = match &claims["aud"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    if token_audiences.is_empty() {
        token_audiences.push(TOKEN_ISSUER.to_owned());
    }
    let accepted: Vec<String> = audiences.iter().filter(|a| token_audiences.contains(a)).cloned().collect();
    if accepted.is_empty() {
        return Err(format!(
            "token audiences {} is invalid for the target audiences {}",
            super::rules::quoted_list(&token_audiences),
            super::rules::quoted_list(audiences)
        ));
    }
    let user = if legacy { legacy_user(objects, token, claims)? } else { bound_user(objects, now, claims)? };
    Ok(AuthenticatedToken { user, audiences: accepted })
}

fn bound_user(objects: &dyn ObjectReader, now: Timestamp, claims: &Value) -> Result<UserInfo, String> {
    let leeway = LEEWAY.as_secs().cast_signed();
    let at = |claim: &str| claims[claim].as_i64();
    // The server issues no token without an expiry.
    if at("exp").is_none_or(|exp| now.as_second() - leeway > exp) {
        return Err("service account token has expired".into());
    }
    if at("nbf").is_some_and(|nbf| now.as_second() + leeway < nbf) {
        return Err("service account token is not valid yet".into());
    }
    if at("iat").is_some_and(|iat| now.as_second() + leeway < iat) {
        return Err("service account token is issued in the future".into());
    }
    let private_claims = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&private_claims["namespace"]);
    let (name, uid) = (text(&private_claims["serviceaccount"]["name"]), text(&private_claims["serviceaccount"]["uid"]));
    let account = objects
        .get("", "serviceaccounts", &namespace, &name)
        .ok_or_else(|| format!("serviceaccounts {} not found", go_quoted(&name)))?;
    let actual = text(&account["metadata"]["uid"]);
    if actual != uid {
        return Err(format!("service account UID ({actual}) does not match claim ({uid})"));
    }
    if is_deleted(&account, now) {
        return Err(format!("service account {namespace}/{name} has been deleted"));
    }
    let bound_to = |what: &str, plural: &str, namespace: &str| -> Result<(String, String), String> {
        let (name, uid) = (text(&private_claims[what]["name"]), text(&private_claims[what]["uid"]));
        let invalidated = || "service account token has been invalidated".to_owned();
        let object = objects.get("", plural, namespace, &name).ok_or_else(invalidated)?;
        let actual = text(&object["metadata"]["uid"]);
        if actual != uid {
            return Err(format!("{what} UID ({actual}) does not match service account {what} ref claim ({uid})"));
        }
        if is_deleted(&object, now) { Err(invalidated()) } else { Ok((name, uid)) }
    };
    let mut user = UserInfo {
        name: service_account_user(&namespace, &name),
        uid,
        groups: service_account_groups(&namespace),
        ..UserInfo::default()
    };
    let mut add_extra = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra.insert(key.to_owned(), vec![value]);
        }
    };
    if private_claims["secret"].is_object() {
        bound_to("secret", "secrets", &namespace)?;
    }
    if private_claims["pod"].is_object() {
        let (pod, uid) = bound_to("pod", "pods", &namespace)?;
        add_extra(POD_NAME, pod);
        add_extra(POD_UID, uid);
        add_extra(NODE_NAME, text(&private_claims["node"]["name"]));
        add_extra(NODE_UID, text(&private_claims["node"]["uid"]));
    } else if private_claims["node"].is_object() {
        let (node, uid) = bound_to("node", "nodes", "")?;
        add_extra(NODE_NAME, node);
        add_extra(NODE_UID, uid);
    }
    let id = text(&claims["jti"]);
    if !id.is_empty() {
        add_extra(CREDENTIAL_ID, format!("JTI={id}"));
    }
    Ok(user)
}

/// Authenticates a token that is stored in a Secret.
fn legacy_user(objects: &dyn ObjectReader, token: &str, claims: &Value) -> Result<UserInfo, String> {
    use base64::Engine as _;
    let claim = |name: &str, called: &str| {
        let value = claims[format!("{LEGACY_CLAIM}{name}")].as_str().unwrap_or_default();
        if value.is_empty() { Err(format!("{called} claim is missing")) } else { Ok(value.to_owned()) }
    };
    let namespace = claim("namespace", "namespace")?;
    let secret_name = claim("secret.name", "secretName")?;
    let name = claim("service-account.name", "serviceAccountName")?;
    let uid = claim("service-account.uid", "serviceAccountUID")?;
    if parse_service_account(claims["sub"].as_str().unwrap_or_default()) != Some((&namespace, &name)) {
        return Err("sub claim is invalid".into());
    }
    let deleted = |object: &Value| object["metadata"]["deletionTimestamp"].is_string();
    let secret = objects.get("", "secrets", &namespace, &secret_name).filter(|secret| !deleted(secret));
    let secret = secret.ok_or("Token has been invalidated")?;
    let stored = secret["data"]["token"].as_str().unwrap_or_default();
    let stored = base64::engine::general_purpose::STANDARD.decode(stored).unwrap_or_default();
    // The signature was verified before, so the duration of this comparison reveals nothing.
    if stored != token.as_bytes() {
        return Err("Token does not match server's copy".into());
    }
    let account = objects
        .get("", "serviceaccounts", &namespace, &name)
        .ok_or_else(|| format!("serviceaccounts {} not found", go_quoted(&name)))?;
    if deleted(&account) {
        return Err(format!("ServiceAccount {namespace}/{name} has been deleted"));
    }
    let actual = account["metadata"]["uid"].as_str().unwrap_or_default();
    if actual != uid {
        return Err(format!("ServiceAccount UID ({actual}) does not match claim ({uid})"));
    }
    if secret["metadata"]["labels"].get(INVALID_SINCE).is_some() {
        return Err(format!("the token in secret {namespace}/{secret_name} has been marked invalid"));
    }
    Ok(UserInfo {
        name: service_account_user(&namespace, &name),
        uid,
        groups: service_account_groups(&namespace),
        ..UserInfo::default()
    })
}

/// Whether an object's deletion started longer ago than the leeway. Its last requests may arrive until then.
fn is_deleted(object: &Value, now: Timestamp) -> bool {
    let since = object["metadata"]["deletionTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    since.is_some_and(|since| now.saturating_sub(LEEWAY).is_ok_and(|limit| since < limit))
}

fn cause(reason: &str, field: &str, message: String) -> Cause {
    Cause { reason: reason.into(), message, field: field.into() }
}

/// Formats a time in seconds as Kubernetes does; out of range: the maximum.
fn rfc3339(second: i64) -> String {
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::objects::memory::MemoryObjects as ObjectReader;

    struct World {
        key: SigningKey,
        env: Env,
        clock: std::sync::Arc<machinery_env::ManualClock>,
        map: ObjectReader,
    }

    fn object(namespace: &str, name: &str, uid: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}})
    }

    fn world() -> World {
        let (env, clock) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let key = SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let map = ObjectReader::default();
        map.put("", "serviceaccounts", object("ns", "default", "u1"));
        map.put("", "serviceaccounts", object("ns", "robot", "u2"));
        map.put("", "secrets", object("ns", "hold", "u3"));
        let mut pod = object("ns", "p", "u4");
        pod["spec"] = json!({"serviceAccountName": "default", "nodeName": "n1"});
        map.put("", "pods", pod);
        map.put("", "nodes", json!({"metadata": {"name": "n1", "uid": "u5"}}));
        World { key, env, clock, map }
    }

    impl World {
        fn ask(&self, account: &str, body: &Value) -> ApiResult<Value> {
            issue(&self.key, &self.env, &self.map, "ns", account, body)
        }

        fn token(&self, body: &Value) -> String {
            self.ask("default", body).unwrap()["status"]["token"].as_str().unwrap().to_owned()
        }

        fn authenticate(&self, token: &str, audience: &str) -> Result<AuthenticatedToken, String> {
            authenticate(self.key.verify(token).as_ref(), &self.map, self.env.now(), token, &[audience.to_owned()])
        }
    }

    #[test]
    fn answers_as_upstream() {
        let world = world();
        let issued = world.ask("default", &json!({"spec": {"audiences": ["a", "a", ""]}})).unwrap();
        assert_eq!(
            issued["metadata"],
            json!({"creationTimestamp": "2026-01-01T00:00:00Z", "name": "default", "namespace": "ns", "uid": "u1"})
        );
        assert_eq!(
            issued["spec"],
            json!({"audiences": ["a", "a", ""], "boundObjectRef": null, "expirationSeconds": 3600})
        );
        assert_eq!(issued["status"]["expirationTimestamp"], "2026-01-01T01:00:00Z");
        let refused = |account: &str, body: &Value| world.ask(account, body).unwrap_err().status();
        let short = refused("default", &json!({"spec": {"expirationSeconds": 599}}));
        assert_eq!(
            short.message,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not \
             specify a duration less than 10 minutes"
        );
        assert_eq!(refused("default", &json!({"spec": {"expirationSeconds": 4_294_967_297_i64}})).code, 422);
        assert_eq!(refused("none", &json!({})).message, "serviceaccounts \"none\" not found");
        let bind = |kind: &str, name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}});
        assert_eq!(
            refused("default", &bind("ConfigMap", "x", "")).message,
            "cannot bind token to object of type /v1, Kind=ConfigMap"
        );
        assert_eq!(
            refused("robot", &bind("Pod", "p", "")).message,
            "cannot bind token for serviceaccount \"robot\" to pod running with different serviceaccount name."
        );
        assert_eq!(
            refused("default", &bind("Secret", "hold", "other")).message,
            "Operation cannot be fulfilled on Secret \"hold\": the UID in the bound object reference (other) does not \
             match the UID in record. The object might have been deleted and then recreated"
        );
        assert_eq!(refused("default", &bind("Secret", "none", "")).message, "secrets \"none\" not found");
    }

    #[test]
    fn tokens_live_and_die_with_their_objects() {
        let world = world();
        let plain = world.token(&json!({}));
        let authenticated = world.authenticate(&plain, TOKEN_ISSUER).unwrap();
        assert_eq!(authenticated.user.name, "system:serviceaccount:ns:default");
        assert_eq!(authenticated.user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns"]);
        assert!(authenticated.user.extra[CREDENTIAL_ID][0].starts_with("JTI="));
        assert!(world.authenticate(&plain, "other").unwrap_err().starts_with("token audiences ["));

        let bind = |kind: &str, name: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}}});
        let by_secret = world.token(&bind("Secret", "hold"));
        world.authenticate(&by_secret, TOKEN_ISSUER).unwrap();
        world.map.put("", "secrets", object("ns", "hold", "another"));
        assert!(world.authenticate(&by_secret, TOKEN_ISSUER).is_err());

        let by_pod = world.token(&bind("Pod", "p"));
        let extra = world.authenticate(&by_pod, TOKEN_ISSUER).unwrap().user.extra;
        assert_eq!((extra[POD_NAME][0].as_str(), extra[NODE_UID][0].as_str()), ("p", "u5"));
        world.map.remove("", "pods", "ns", "p");
        assert_eq!(
            world.authenticate(&by_pod, TOKEN_ISSUER).unwrap_err(),
            "service account token has been invalidated"
        );

        world.clock.advance(Duration::from_secs(3600 + 59));
        world.authenticate(&plain, TOKEN_ISSUER).unwrap();
        world.clock.advance(Duration::from_secs(2));
        assert_eq!(world.authenticate(&plain, TOKEN_ISSUER).unwrap_err(), "service account token has expired");
        let fresh = world.token(&json!({}));
        world.map.put("", "serviceaccounts", object("ns", "default", "recreated"));
        assert!(world.authenticate(&fresh, TOKEN_ISSUER).is_err());
    }

    #[test]
    fn a_secrets_token_must_stand_in_it() {
        use base64::Engine as _;
        let world = world();
        let claims = json!({
            "iss": LEGACY_ISSUER, "sub": "system:serviceaccount:ns:default",
            "kubernetes.io/serviceaccount/namespace": "ns",
            "kubernetes.io/serviceaccount/secret.name": "hold",
            "kubernetes.io/serviceaccount/service-account.name": "default",
            "kubernetes.io/serviceaccount/service-account.uid": "u1",
        });
        let token = world.key.sign(&claims).unwrap();
        assert_eq!(world.authenticate(&token, TOKEN_ISSUER).unwrap_err(), "Token does not match server's copy");
        let mut secret = object("ns", "hold", "u3");
        secret["data"] = json!({"token": base64::engine::general_purpose::STANDARD.encode(&token)});
        world.map.put("", "secrets", secret);
        assert_eq!(world.authenticate(&token, TOKEN_ISSUER).unwrap().user.uid, "u1");
    }
}
