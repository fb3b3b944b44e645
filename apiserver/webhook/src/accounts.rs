//! Credentials of webhook calls: the users of the kubeconfig in the admission configuration, selected by the webhook's
//! host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use machinery_env::Env;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::time::Instant;

/// The maximum age of a cached token file. Tokens in files are rotated.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(60);
/// The maximum size of a token file.
const TOKEN_BYTES_MAX: usize = 64 << 10;
const HTTPS: &str = "443";

/// Reads a file of the configuration.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Result<Vec<u8>, String>;

/// The credentials of one user.
#[derive(Default)]
pub struct Account {
    headers: Vec<(HeaderName, HeaderValue)>,
    token: Option<TokenFile>,
    certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// A token file that an external process renews.
struct TokenFile {
    path: PathBuf,
    /// The last token, and the time of its read; `None` before the first use.
    last: Mutex<(HeaderValue, Option<Instant>)>,
}

/// All users of a kubeconfig.
#[derive(Clone, Default)]
pub struct Accounts {
    users: BTreeMap<String, Arc<Account>>,
    /// The user of the current context.
    current: Option<Arc<Account>>,
}

impl std::fmt::Debug for Accounts {
    /// Omits secrets.
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_set().entries(self.users.keys()).finish()
    }
}

impl Accounts {
    /// Parses a kubeconfig; relative paths start at `folder`.
    ///
    /// # Errors
    /// Returns the name of the invalid user and the reason.
    pub fn parse(kubeconfig: &Value, folder: &Path, read: ReadFile<'_>) -> Result<Self, String> {
        let mut own = Self::default();
        for user in kubeconfig["users"].as_array().into_iter().flatten() {
            let name = user["name"].as_str().unwrap_or_default();
            let account = Account::parse(&user["user"], folder, read).map_err(|why| format!("user {name:?}: {why}"))?;
            if own.users.insert(name.to_owned(), Arc::new(account)).is_some() {
                return Err(format!("user {name:?} is defined twice"));
            }
        }
        let current = kubeconfig["current-context"].as_str().unwrap_or_default();
        let contexts = kubeconfig["contexts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let context = contexts.iter().find(|context| context["name"] == current);
        let user = context.and_then(|context| context["context"]["user"].as_str());
        own.current = user.and_then(|user| own.users.get(user).cloned());
        Ok(own)
    }

    /// Selects the user for a host and port: by that name, else by the closest `*.` name, the same without port 443,
    /// else `*`, else the current context's.
    pub fn for_host(&self, host: &str, port: u16) -> Option<&Arc<Account>> {
        let with_port = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let without = (port.to_string() == HTTPS).then_some(host);
        let named = [Some(&*with_port), without].into_iter().flatten().find_map(|target| self.named(target));
        named.or_else(|| self.users.get("*")).or(self.current.as_ref())
    }

    fn named(&self, target: &str) -> Option<&Arc<Account>> {
        let wider = target.match_indices('.').map(|(at, _)| format!("*{}", &target[at..]));
        self.users.get(target).or_else(|| wider.into_iter().find_map(|name| self.users.get(&name)))
    }
}

impl Account {
    fn parse(user: &Value, folder: &Path, read: ReadFile<'_>) -> Result<Self, String> {
        for unsupported in ["exec", "auth-provider"] {
            if !user[unsupported].is_null() {
                return Err(format!("{unsupported} is not supported"));
            }
        }
        let text = |field: &str| user[field].as_str().unwrap_or_default();
        let mut own = Self { headers: impersonation(user)?, ..Self::default() };
        let has_token = !text("token").is_empty() || !text("tokenFile").is_empty();
        let has_password = !text("username").is_empty() || !text("password").is_empty();
        if has_token && has_password {
            return Err("username/password or bearer token may be set, but not both".into());
        }
        if !text("tokenFile").is_empty() {
            let path = folder.join(text("tokenFile"));
            let inline = text("token");
            let of_file = read(&path).and_then(|bytes| bearer(&bytes));
            let first = of_file.or_else(|why| if inline.is_empty() { Err(why) } else { bearer(inline.as_bytes()) })?;
            let last = Mutex::new((first, None));
            own.token = Some(TokenFile { path, last });
        } else if has_token {
            own.headers.push((AUTHORIZATION, bearer(text("token").as_bytes())?));
        } else if has_password {
            let pair = STANDARD.encode(format!("{}:{}", text("username"), text("password")));
            own.headers.push((AUTHORIZATION, secret(&format!("Basic {pair}"))?));
        }
        let part = |name: &str| part(user, name, folder, read);
        own.certificate = match (part("client-certificate")?, part("client-key")?) {
            (None, None) => None,
            (Some(chain), Some(key)) => Some(certificate(&chain, &key)?),
            _ => return Err("client-certificate and client-key go together".into()),
        };
        Ok(own)
    }

    /// The headers with the user's credentials.
    ///
    /// # Errors
    /// Fails if the token file cannot be read.
    pub async fn headers(&self, env: &Env) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let mut headers = self.headers.clone();
        if let Some(token) = &self.token {
            headers.push((AUTHORIZATION, token.current(env).await?));
        }
        Ok(headers)
    }

    /// The client certificate, if there is one.
    pub fn certificate(&self) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        self.certificate.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()))
    }
}

impl TokenFile {
    /// Returns the token in the file, or the last one if the read fails.
    async fn current(&self, env: &Env) -> Result<HeaderValue, String> {
        let (last, read_at) = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = env.instant();
        if read_at.is_some_and(|read_at| now - read_at < TOKEN_AGE_MAX) {
            return Ok(last);
        }
        let read = tokio::fs::read(&self.path).await.map_err(|error| error.to_string());
        let Ok(header) = read.and_then(|bytes| bearer(&bytes)) else { return Ok(last) };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (header.clone(), Some(now));
        Ok(header)
    }
}

fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

fn bearer(token: &[u8]) -> Result<HeaderValue, String> {
    let token = std::str::from_utf8(token).map_err(|error| error.to_string())?.trim();
    match token.len() {
        0 => Err("the token is empty".into()),
        1..=TOKEN_BYTES_MAX => secret(&format!("Bearer {token}")),
        _ => Err("the token is too long".into()),
    }
}

/// Parses `as`, `as-uid`, `as-groups` and `as-user-extra`.
fn impersonation(user: &Value) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let name = user["as"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut all = vec![("impersonate-user".to_owned(), name.to_owned())];
    all.extend(user["as-uid"].as_str().map(|uid| ("impersonate-uid".to_owned(), uid.to_owned())));
    all.extend(texts(&user["as-groups"]).into_iter().map(|group| ("impersonate-group".to_owned(), group)));
    for (key, values) in user["as-user-extra"].as_object().into_iter().flatten() {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string();
        all.extend(texts(values).into_iter().map(|value| (format!("impersonate-extra-{}", key.to_lowercase()), value)));
    }
    let header = |(name, value): (String, String)| {
        let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
        Ok((name, HeaderValue::try_from(value).map_err(|error| error.to_string())?))
    };
    all.into_iter().map(header).collect()
}

/// The value of `NAME-data`, else the content of the file `NAME`.
fn part(user: &Value, name: &str, folder: &Path, read: ReadFile<'_>) -> Result<Option<Vec<u8>>, String> {
    let data = user[format!("{name}-data")].as_str().unwrap_or_default();
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|error| format!("{name}-data: {error}"));
    }
    match user[name].as_str().filter(|path| !path.is_empty()) {
        Some(path) => read(&folder.join(path)).map(Some).map_err(|why| format!("{name}: {why}")),
        None => Ok(None),
    }
}

fn certificate(chain: &[u8], key: &[u8]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| format!("client-certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("client-key: {error}"))?;
    let pair = rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &apiserver_auth::tls::provider());
    pair.map_err(|error| format!("client-certificate: {error}"))?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(kubeconfig: Value) -> Result<Accounts, String> {
        let read = |path: &Path| match path.to_str() {
            Some("/k/token") => Ok(b"of-a-file\n".to_vec()),
            _ => Err("not there".to_owned()),
        };
        Accounts::parse(&kubeconfig, Path::new("/k"), &read)
    }

    async fn asks(accounts: &Accounts, host: &str, port: u16) -> Vec<String> {
        let Some(account) = accounts.for_host(host, port) else { return vec!["nobody".into()] };
        let headers = account.headers(&Env::real()).await.unwrap();
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[tokio::test]
    async fn users_are_chosen_as_upstream_chooses_them() {
        let user = |name: &str| json!({"name": name, "user": {"token": name}});
        let names = ["a.example.com", "*.example.com", "a.example.com:8443", "*.default.svc", "::1", "[::1]:9"];
        let users: Vec<Value> = names.iter().map(|name| user(name)).collect();
        let accounts = parsed(json!({"users": users})).unwrap();
        let asks = async |host: &str, port| asks(&accounts, host, port).await.join("");
        for (host, port, who) in [
            ("a.example.com", 443, "a.example.com"),
            ("a.example.com", 8443, "a.example.com:8443"),
            ("b.c.example.com", 443, "*.example.com"),
            ("s.default.svc", 443, "*.default.svc"),
            ("::1", 443, "::1"),
            ("::1", 9, "[::1]:9"),
        ] {
            assert_eq!(asks(host, port).await, format!("authorization: Bearer {who}"), "{host}:{port}");
        }
        assert_eq!(asks("b.example.com", 8443).await, "nobody", "another port has a name of its own");
        assert_eq!(asks("example.com", 443).await, "nobody");
        let contexts = json!([{"name": "c", "context": {"user": "current"}}]);
        let own = parsed(json!({"users": [user("current")], "contexts": contexts, "current-context": "c"})).unwrap();
        assert_eq!(super::tests::asks(&own, "h", 1).await, ["authorization: Bearer current"]);
        let star = json!({"users": [user("current"), user("*")], "contexts": contexts, "current-context": "c"});
        assert_eq!(super::tests::asks(&parsed(star).unwrap(), "h", 1).await, ["authorization: Bearer *"]);
    }

    #[tokio::test]
    async fn credentials_of_kubeconfig_users_are_sent() {
        let one = |user: Value| parsed(json!({"users": [{"name": "*", "user": user}]}));
        let asks = async |user: Value| asks(&one(user).unwrap(), "h", 1).await;
        assert_eq!(asks(json!({"tokenFile": "token"})).await, ["authorization: Bearer of-a-file"]);
        assert_eq!(asks(json!({"username": "u", "password": "p"})).await, ["authorization: Basic dTpw"]);
        let as_another = json!({"as": "jane", "as-uid": "7", "as-groups": ["g", "h"], "as-user-extra": {"a/b": ["c"]}});
        let headers = ["impersonate-user: jane", "impersonate-uid: 7", "impersonate-group: g", "impersonate-group: h"];
        assert_eq!(asks(as_another).await, [&headers[..], &["impersonate-extra-a%2fb: c"]].concat());
        for (user, why) in [
            (json!({"exec": {}}), "user \"*\": exec is not supported"),
            (json!({"auth-provider": {}}), "user \"*\": auth-provider is not supported"),
            (json!({"tokenFile": "nowhere"}), "user \"*\": not there"),
            (
                json!({"token": "t", "username": "u"}),
                "user \"*\": username/password or bearer token may be set, but not both",
            ),
            (json!({"client-certificate-data": "eA=="}), "user \"*\": client-certificate and client-key go together"),
        ] {
            assert_eq!(one(user).unwrap_err(), why);
        }
    }
}
