//! Fetches the cluster's keys with a token, for an API server that has none.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use apiserver_auth::shared_keys::{Authority, SharedKeys};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::config::AuthInfo;
use machinery_client::request::status_code;
use machinery_client::{Api, Typed, from_config};
use machinery_env::Env;

use crate::token::ControlPlaneToken;
use crate::{KEYS_FIELD, SYSTEM, authority, keys_secret, token_secret};

/// The time after which every API server knows a token and the rights of its holder.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(200);
const NO_TOKEN: &str =
    "--token is wrong, used, or older than two hours: make another with `coracle token create --control-plane`";

/// How to join a cluster.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    /// An API server of the cluster: `https://HOST:PORT`.
    pub server: http::Uri,
    pub token: ControlPlaneToken,
    /// The hash of the cluster's authority: `sha256:…`.
    pub ca_hash: String,
}

/// Fetches the keys into a folder without keys. The token and its keys are removed from the cluster first: of two holders
/// only one gets them.
///
/// # Errors
/// If the cluster has another authority, or the token is used, too old or wrong.
pub async fn fetch_missing(env: &Env, join: &JoinConfig, folder: &Path) -> anyhow::Result<()> {
    if SharedKeys::are_in(folder) {
        tracing::info!(folder = %folder.display(), "the folder has a cluster's keys: the token is not used");
        return Ok(());
    }
    let keys = fetch(env, join).await.with_context(|| format!("--server {}", join.server))?;
    Ok(keys.write(folder)?)
}

async fn fetch(env: &Env, join: &JoinConfig) -> anyhow::Result<SharedKeys> {
    let authority = authority::find(env, &join.server, &join.ca_hash).await?;
    let client = client(env, join, authority)?;
    let secrets: Api<Secret> = Api::namespaced(client, SYSTEM);
    let name = keys_secret(&join.token.id);
    let found = get(env, &secrets, &name).await.map_err(explain)?;
    let sealed = found.data.unwrap_or_default().remove(KEYS_FIELD).context("the token's Secret has no keys")?;
    let keys = join.token.key().open(&sealed.0).context("--token: its third part is not that of this token's keys")?;
    let keys = SharedKeys::from_json(&keys).context("the keys are of a newer coracle")?;
    if keys.authority_hash().as_deref() != Some(&*join.ca_hash) {
        bail!("the keys of this token are not those of the cluster's authority: make a new token");
    }
    secrets.delete(&name).await.map_err(explain)?;
    // Without the keys it is worth nothing; it expires by itself.
    if let Err(error) = secrets.delete(&token_secret(&join.token.id)).await {
        tracing::warn!(%error, "the used token could not be removed");
    }
    Ok(keys)
}

/// A client with the token.
fn client(env: &Env, join: &JoinConfig, authority: Authority) -> anyhow::Result<Client> {
    let mut config = kube::Config::new(join.server.clone());
    config.root_cert = Some(vec![authority.der]);
    config.auth_info = AuthInfo { token: Some(join.token.bearer().into()), ..AuthInfo::default() };
    Ok(from_config(env, config)?)
}

/// Reads an object that may not be visible yet.
async fn get<K: Typed>(env: &Env, objects: &Api<K>, name: &str) -> Result<K, kube::Error> {
    let deadline = env.deadline(KNOWN_WITHIN);
    loop {
        match objects.get(name).await {
            Err(error) if !deadline.passed(env) && matches!(status_code(&error), 0 | 401 | 403 | 404 | 429 | 500..) => {
                env.sleep(RETRY_AFTER).await;
            }
            result => return result,
        }
    }
}

/// The error of a request with the token.
fn explain(error: kube::Error) -> anyhow::Error {
    match status_code(&error) {
        401 | 403 | 404 => anyhow!("{NO_TOKEN} ({})", message(&error)),
        _ => error.into(),
    }
}

/// The server's message.
fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
