//! Makes a token, and the objects with which its holder gets the cluster's keys.

use anyhow::Context as _;
use apiserver_auth::shared_keys::SharedKeys;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use machinery_client::request::ApiClient;
use machinery_client::{Api, Kind};
use machinery_env::Env;
use serde_json::{Value, json};

use crate::token::ControlPlaneToken;
use crate::{KEYS_FIELD, KEYS_TYPE, RBAC, SYSTEM, VALID_SECONDS, keys_secret, token_secret};

/// Makes a token for the keys.
///
/// # Errors
/// If the API server rejects one of the objects.
pub async fn offer(env: &Env, client: &Client, keys: &SharedKeys) -> anyhow::Result<ControlPlaneToken> {
    let token = ControlPlaneToken::new(env);
    let sealed = token.key().seal(keys.to_json()).context("the system has no randomness")?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let authenticating = secrets.create(&bootstrap_secret(&token, env.now())?).await?;
    let owner = json!([{
        "apiVersion": "v1", "kind": "Secret", "name": token_secret(&token.id),
        "uid": authenticating.metadata.uid.unwrap_or_default(),
    }]);
    let name = keys_secret(&token.id);
    secrets.create(&keys_object(&name, &owner, sealed)).await?;
    create_rule(client, &role(&token, &owner)).await?;
    create_rule(client, &binding(&token, &owner)).await?;
    Ok(token)
}

/// The Secret of the bootstrap token. Its key is not among its fields.
fn bootstrap_secret(token: &ControlPlaneToken, now: Timestamp) -> anyhow::Result<Value> {
    let expiration = now.checked_add(SignedDuration::from_secs(VALID_SECONDS))?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": token_secret(&token.id), "namespace": SYSTEM},
        "stringData": {
            "description": "fetches the keys of the control plane, once",
            "token-id": token.id, "token-secret": token.secret,
            "expiration": expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "usage-bootstrap-authentication": "true",
        },
    }))
}

fn keys_object(name: &str, owner: &Value, sealed: Vec<u8>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": KEYS_TYPE, "immutable": true,
        "metadata": {"name": name, "namespace": SYSTEM, "ownerReferences": owner},
        "data": {KEYS_FIELD: ByteString(sealed)},
    })
}

/// The token's holder may read the keys, and remove them and the token.
fn role(token: &ControlPlaneToken, owner: &Value) -> Value {
    let (name, authenticating) = (keys_secret(&token.id), token_secret(&token.id));
    let rule = |verbs: &[&str], name: &str| json!({"apiGroups": [""], "resources": ["secrets"], "verbs": verbs, "resourceNames": [name]});
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "Role",
        "metadata": {"name": name, "namespace": SYSTEM, "ownerReferences": owner},
        "rules": [rule(&["get", "delete"], &name), rule(&["delete"], &authenticating)],
    })
}

fn binding(token: &ControlPlaneToken, owner: &Value) -> Value {
    let name = keys_secret(&token.id);
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": SYSTEM, "ownerReferences": owner},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": format!("system:bootstrap:{}", token.id)}],
    })
}

/// Creates a Role or a RoleBinding.
async fn create_rule(client: &Client, rule: &Value) -> Result<Value, kube::Error> {
    let (kind, plural) = if rule["kind"] == "Role" { ("Role", "roles") } else { ("RoleBinding", "rolebindings") };
    let kind =
        Kind { group: RBAC.into(), version: "v1".into(), plural: plural.into(), kind: kind.into(), namespaced: true };
    ApiClient::from(client.clone()).create(&kind, SYSTEM, rule).await
}
