//! Bootstrap tokens for nodes, and the bindings that their holders need: as kubeadm's `token` and its phase
//! `bootstrap-token`.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use machinery_client::request::{ApiClient, status_code};
use machinery_client::{Api, Kind, ListOptions};
use machinery_env::Env;
use serde_json::{Value, json};

use crate::node::is_coracle;
use crate::token::{BootstrapToken, is_id};
use crate::{RBAC, SYSTEM, token_secret};

/// The type of the tokens' Secrets (upstream's).
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// The tokens' group. Not kubeadm's: its tokens keep the rights that its administrator gave them, and ours are removed with
/// our bindings.
const GROUP: &str = "system:bootstrappers:coracle:node-token";
const NODES: &str = "system:nodes";
/// The bindings of kubeadm, with names of our own: name, role and group.
const BINDINGS: [(&str, &str, &str); 3] = [
    ("coracle:node-bootstrapper", "system:node-bootstrapper", GROUP),
    ("coracle:node-autoapprove-bootstrap", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", GROUP),
    (
        "coracle:node-autoapprove-certificate-rotation",
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        NODES,
    ),
];
/// Only in a cluster that isn't Coracle's: a node's data plane acts as the node there. A Coracle API server lets it act as
/// `system:kube-proxy` instead (docs/decisions/0129-node-rights.md).
const PROXIER: (&str, &str, &str) = ("coracle:node-proxier", "system:node-proxier", NODES);
/// The role of a Coracle node beside `system:node` in such a cluster: namespaces by name (docs/decisions/0057-keyvalue.md). A
/// Coracle API server allows those of the node's pods.
const NAMESPACES: &str = "coracle:node-namespaces";
/// Maximum tokens in one page of a list.
const PAGE: usize = 500;

/// How long a new token is good for, and what it is for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// None: without end.
    pub valid: Option<std::time::Duration>,
    pub description: Option<String>,
}

/// Makes a token, and the missing bindings.
///
/// # Errors
/// If the API server rejects one of the objects, or the token's end is beyond all times.
pub async fn create(env: &Env, client: &Client, request: &TokenRequest) -> anyhow::Result<BootstrapToken> {
    for (name, role, group) in BINDINGS {
        create_missing(client, &binding(name, role, group)).await.with_context(|| name.to_owned())?;
    }
    let version: Value = ApiClient::from(client.clone()).get_path("/version").await?;
    if !is_coracle(&version) {
        let (name, role, group) = PROXIER;
        create_missing(client, &binding(name, role, group)).await.context(name)?;
        create_missing(client, &namespaces_role()).await.context(NAMESPACES)?;
        create_missing(client, &binding(NAMESPACES, NAMESPACES, NODES)).await.context(NAMESPACES)?;
    }
    let token = BootstrapToken::new(env);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    secrets.create(&secret(&token, request, env.now())?).await?;
    Ok(token)
}

fn secret(token: &BootstrapToken, request: &TokenRequest, now: Timestamp) -> anyhow::Result<Value> {
    let mut data = json!({
        "token-id": token.id, "token-secret": token.secret, "auth-extra-groups": GROUP,
        "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
    });
    if let Some(valid) = request.valid {
        let end = SignedDuration::try_from(valid).ok().and_then(|valid| now.checked_add(valid).ok());
        let end = end.context("--ttl is too long; 0 is without end")?;
        data["expiration"] = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    if let Some(description) = &request.description {
        data["description"] = description.as_str().into();
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "type": TYPE,
        "metadata": {"name": token_secret(&token.id), "namespace": SYSTEM},
        "stringData": data,
    }))
}

fn namespaces_role() -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": {"name": NAMESPACES},
        "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}],
    })
}

fn binding(name: &str, role: &str, group: &str) -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
    })
}

/// Creates an object of RBAC unless one of its name exists: an administrator may have changed that.
async fn create_missing(client: &Client, object: &Value) -> Result<(), kube::Error> {
    let (kind, plural) = match object["kind"] == "ClusterRole" {
        true => ("ClusterRole", "clusterroles"),
        false => ("ClusterRoleBinding", "clusterrolebindings"),
    };
    let kind =
        Kind { group: RBAC.into(), version: "v1".into(), plural: plural.into(), kind: kind.into(), namespaced: false };
    match ApiClient::from(client.clone()).create::<Value>(&kind, "", object).await {
        Err(error) if status_code(&error) != 409 => Err(error),
        _ => Ok(()),
    }
}

/// The tokens of the cluster as rows of a table with kubeadm's columns.
///
/// # Errors
/// If the API server can't be asked.
pub async fn list(env: &Env, client: &Client) -> anyhow::Result<Vec<Vec<String>>> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let mut options = ListOptions { fields: format!("type={TYPE}"), limit: PAGE, ..ListOptions::default() };
    let head = ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    loop {
        let page = secrets.list(&options).await?;
        rows.extend(page.items.iter().map(|secret| row(secret, env.now())));
        options.continue_token = page.continue_token;
        if options.continue_token.is_empty() {
            return Ok(rows);
        }
    }
}

fn row(secret: &Secret, now: Timestamp) -> Vec<String> {
    let field = |name: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
    };
    let or = |text: String, otherwise: &str| match text.is_empty() {
        true => otherwise.to_owned(),
        false => tools_command::output::plain(&text).replace('\n', " "),
    };
    let usages =
        ["authentication", "signing"].into_iter().filter(|usage| field(&format!("usage-bootstrap-{usage}")) == "true");
    let end = field("expiration");
    let left = match end.parse::<Timestamp>() {
        Ok(end) if end <= now => "<invalid>".to_owned(),
        Ok(end) => {
            let minutes = end.duration_since(now).as_secs() / 60;
            if minutes < 60 { format!("{minutes}m") } else { format!("{}h", minutes / 60) }
        }
        Err(_) if end.is_empty() => "<forever>".to_owned(),
        Err(_) => "<invalid>".to_owned(),
    };
    vec![
        or(format!("{}.{}", field("token-id"), field("token-secret")), ""),
        left,
        or(end, "<never>"),
        or(usages.collect::<Vec<_>>().join(","), "<none>"),
        or(field("description"), "<none>"),
        or(field("auth-extra-groups"), "<none>"),
    ]
}

/// Deletes a token, by its id or the whole token, and returns the id.
///
/// # Errors
/// If the text is neither, or the API server refuses.
pub async fn delete(client: &Client, token: &str) -> anyhow::Result<String> {
    let id = match token.parse::<BootstrapToken>() {
        Ok(token) => token.id,
        Err(_) if is_id(token) => token.to_owned(),
        // Not repeated: it may be most of a secret.
        Err(form) => anyhow::bail!("{form}, nor its first part"),
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    secrets.delete(&token_secret(&id)).await.with_context(|| format!("the token {id}"))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn env() -> Env {
        Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap()).0
    }

    #[test]
    fn a_token_expires_and_has_its_usages() {
        let env = env();
        let token = BootstrapToken::new(&env);
        let day = TokenRequest {
            valid: Some(std::time::Duration::from_hours(24)),
            description: Some("machine two".to_owned()),
        };
        let made = secret(&token, &day, env.now()).unwrap();
        assert_eq!(made["metadata"]["name"], format!("bootstrap-token-{}", token.id));
        assert_eq!(made["stringData"]["expiration"], "2026-01-02T00:00:00Z");
        assert_eq!(made["stringData"]["auth-extra-groups"], GROUP);
        let forever = TokenRequest { valid: None, description: None };
        let made = secret(&token, &forever, env.now()).unwrap();
        assert!(made["stringData"].get("expiration").is_none());
        let too_long = TokenRequest { valid: Some(std::time::Duration::MAX), description: None };
        assert!(secret(&token, &too_long, env.now()).unwrap_err().to_string().contains("--ttl"));
    }

    #[test]
    fn a_listed_token_has_kubeadms_columns_and_no_control_characters() {
        let text = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut secret = Secret::default();
        let fields = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("expiration", "2026-01-01T05:30:00Z"),
            ("usage-bootstrap-authentication", "true"),
            ("description", "two\n\u{1b}[2J"),
        ];
        secret.data = Some(fields.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect());
        let now = env().now();
        let expected =
            ["abcdef.0123456789abcdef", "5h", "2026-01-01T05:30:00Z", "authentication", "two ?[2J", "<none>"];
        assert_eq!(row(&secret, now), expected);
        secret.data.as_mut().unwrap().insert("expiration".into(), text("2025-01-01T00:00:00Z"));
        assert_eq!(row(&secret, now)[1], "<invalid>");
        secret.data.as_mut().unwrap().remove("expiration");
        assert_eq!(row(&secret, now)[1..3], ["<forever>", "<never>"]);
    }
}
