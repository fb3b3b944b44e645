//! Tokens of pods' ServiceAccounts: requested by TokenRequest, bound to the pod, and refreshed in time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use images::{Account, AccountIdentity, PodAccount};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::{ApiClient, may_succeed_later};
use machinery_env::Env;
use serde_json::{Value, json};

use crate::checkpoint::API_WAIT;

/// A token is refreshed after this percentage of its lifetime, and at the latest after a day (upstream's).
const LIFE_PERCENT: u64 = 80;
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The lifetime of a token without an expiration (the API server's default).
const LIFE_DEFAULT: Duration = Duration::from_secs(3600);
/// The maximum number of cached tokens for credential providers; each belongs to one pod.
const CACHED_MAX: usize = 1000;

/// A token and its refresh time.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) value: String,
    pub(crate) refresh_at: Timestamp,
}

impl Token {
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        is_refresh_due(self.refresh_at, now)
    }
}

/// Whether a token is to be refreshed. A time beyond any token's age was set by a clock that was ahead: its token may be valid
/// only from then on.
pub(crate) fn is_refresh_due(refresh_at: Timestamp, now: Timestamp) -> bool {
    refresh_at <= now || now.saturating_add(AGE_MAX).is_ok_and(|latest| latest < refresh_at)
}

/// The reason why there is no new token.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct TokenError {
    /// The API server's message, if it has responded.
    message: String,
    /// The API gave no answer about it.
    pub(crate) unanswered: bool,
}

impl TokenError {
    /// There is no response within that time.
    pub(crate) fn late(after: Duration) -> Self {
        Self { message: format!("no answer within {} s", after.as_secs()), unanswered: true }
    }
}

impl From<kube::Error> for TokenError {
    fn from(error: kube::Error) -> Self {
        let unanswered = may_succeed_later(&error);
        Self { message: api_message(error), unanswered }
    }
}

/// The parameters of a token request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenParams<'a> {
    /// The audience; empty = the API server's default.
    pub(crate) audience: &'a str,
    /// The requested lifetime in seconds; `None` = the API server's default.
    pub(crate) seconds: Option<i64>,
    /// The expected uid of the ServiceAccount, so that a recreated one of the same name is rejected.
    pub(crate) account_uid: Option<&'a str>,
}

/// The name of the pod's ServiceAccount, if it has one.
fn account_of(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty())
}

/// Requests a token of the pod's ServiceAccount that is bound to the pod.
pub(crate) async fn request(
    requests: &ApiClient,
    pod: &Pod,
    params: TokenParams<'_>,
    now: Timestamp,
) -> Result<Token, TokenError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let audiences: Vec<&str> = Some(params.audience).filter(|audience| !audience.is_empty()).into_iter().collect();
    let mut body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            },
        },
    });
    if let Some(seconds) = params.seconds {
        body["spec"]["expirationSeconds"] = json!(seconds);
    }
    if let Some(uid) = params.account_uid {
        body["metadata"] = json!({"uid": uid});
    }
    let key = ObjectKey::new(namespace, account_of(pod).unwrap_or("default"));
    let answer: Result<Value, _> = requests.post(&Kind::of::<ServiceAccount>(), &key, "token", &body).await;
    let answer = answer?;
    let none = || TokenError { message: "the answer holds no token".into(), unanswered: false };
    let value = answer["status"]["token"].as_str().ok_or_else(none)?.to_owned();
    let ends: Option<Timestamp> = answer["status"]["expirationTimestamp"].as_str().and_then(|at| at.parse().ok());
    Ok(Token { value, refresh_at: refresh_at(now, ends) })
}

/// The API server's message, if it has responded.
fn api_message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The refresh time of a token that was issued now and expires at `ends`.
fn refresh_at(now: Timestamp, ends: Option<Timestamp>) -> Timestamp {
    // An expiration in the past comes from a different clock; it must not cause requests without a pause.
    let life = ends.and_then(|ends| Duration::try_from(ends.duration_since(now)).ok()).filter(|life| !life.is_zero());
    let life = life.unwrap_or(LIFE_DEFAULT).mul_f64(LIFE_PERCENT as f64 / 100.0).min(AGE_MAX);
    now.saturating_add(life).unwrap_or(Timestamp::MAX)
}

/// The pod's uid, the audience, and the ServiceAccount's uid.
type TokenKey = (String, String, String);

/// The cached tokens of a node's pods for credential providers.
#[derive(Default)]
pub(crate) struct AccountTokens {
    cached: Mutex<BTreeMap<TokenKey, Token>>,
    /// The last read state of ServiceAccounts, by namespace and name: it is used while the API doesn't answer.
    accounts: Mutex<BTreeMap<ObjectKey, Account>>,
}

impl AccountTokens {
    fn get(&self, key: &TokenKey, now: Timestamp) -> Option<String> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.get(key).filter(|token| !token.is_due(now)).map(|token| token.value.clone())
    }

    fn account(&self, key: &ObjectKey) -> Option<Account> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn set_account(&self, key: ObjectKey, account: Account) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() >= CACHED_MAX && !accounts.contains_key(&key) {
            accounts.pop_first();
        }
        accounts.insert(key, account);
    }

    fn put(&self, key: TokenKey, token: Token, now: Timestamp) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.retain(|_, token| !token.is_due(now));
        if cached.len() >= CACHED_MAX {
            let first = cached.iter().min_by_key(|(_, token)| token.refresh_at).map(|(key, _)| key.clone());
            first.and_then(|first| cached.remove(&first));
        }
        cached.insert(key, token);
    }
}

/// A pod's ServiceAccount, read from the API server.
pub(crate) struct PodServiceAccount {
    requests: ApiClient,
    env: Env,
    tokens: Arc<AccountTokens>,
    pod: Arc<Pod>,
    name: String,
}

impl PodServiceAccount {
    /// `None` if the pod has no ServiceAccount, as static pods.
    pub(crate) fn new((requests, env): (ApiClient, Env), tokens: Arc<AccountTokens>, pod: Arc<Pod>) -> Option<Self> {
        let name = account_of(&pod)?.to_owned();
        Some(Self { requests, env, tokens, pod, name })
    }
}

#[async_trait]
impl PodAccount for PodServiceAccount {
    async fn account(&self) -> Result<Account, String> {
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let key = ObjectKey::new(&namespace, &self.name);
        let known = self.tokens.account(&key);
        let kind = Kind::of::<ServiceAccount>();
        let request = self.requests.get::<ServiceAccount>(&kind, &key);
        let found = match known {
            None => request.await,
            // A restart doesn't wait for a server that is away.
            Some(known) => match self.env.timeout(API_WAIT, request).await {
                Err(_) => return Ok(known),
                Ok(Err(error)) if may_succeed_later(&error) => return Ok(known),
                Ok(found) => found,
            },
        };
        let metadata = found.map_err(api_message)?.metadata;
        let (name, uid) = (self.name.clone(), metadata.uid.unwrap_or_default());
        let annotations = metadata.annotations.unwrap_or_default();
        let account = Account { identity: AccountIdentity { namespace, name, uid }, annotations };
        self.tokens.set_account(key, account.clone());
        Ok(account)
    }

    async fn token(&self, audience: &str, account: &AccountIdentity) -> Result<String, String> {
        let pod = self.pod.metadata.uid.clone().unwrap_or_default();
        let key = (pod, audience.to_owned(), account.uid.clone());
        if let Some(cached) = self.tokens.get(&key, self.env.now()) {
            return Ok(cached);
        }
        let now = self.env.now();
        let params = TokenParams { audience, seconds: None, account_uid: Some(&account.uid) };
        let token = request(&self.requests, &self.pod, params, now).await.map_err(|error| error.to_string())?;
        let value = token.value.clone();
        self.tokens.put(key, token, now);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life() {
        let (env, clock) = Env::seeded(1, Timestamp::from_second(1_000_000).unwrap());
        let in_seconds = |seconds: i64| Some(Timestamp::from_second(env.now().as_second() + seconds).unwrap());
        // (lifetime, refresh time): the shortest lifetime that the API grants, the usual one, more than a day, none,
        // one of a different clock.
        let lives = [(Some(600), 480), (Some(3607), 2885), (Some(7 * 86_400), 86_400), (None, 2880), (Some(-5), 2880)];
        for (life, after) in lives {
            let at = refresh_at(env.now(), life.and_then(in_seconds));
            assert_eq!(at.as_second() - env.now().as_second(), after, "{life:?}");
        }
        let token = Token { value: String::new(), refresh_at: refresh_at(env.now(), in_seconds(600)) };
        clock.advance(Duration::from_secs(479));
        assert!(!token.is_due(env.now()));
        clock.advance(Duration::from_secs(1));
        assert!(token.is_due(env.now()));
    }

    #[test]
    fn tokens_are_a_pods_own_and_bounded() {
        let (tokens, at) = (AccountTokens::default(), |second: i64| Timestamp::from_second(second).unwrap());
        let key = |pod: usize, audience: &str| (pod.to_string(), audience.to_owned(), "u".to_owned());
        let token = |value: &str, until| Token { value: value.into(), refresh_at: at(until) };
        tokens.put(key(1, "a"), token("one", 100), at(0));
        assert_eq!(tokens.get(&key(1, "a"), at(99)).as_deref(), Some("one"));
        for (other, now) in [(key(2, "a"), 0), (key(1, "b"), 0), (key(1, "a"), 100)] {
            assert_eq!(tokens.get(&other, at(now)), None, "{other:?} {now}");
        }
        for pod in 0..3 * CACHED_MAX {
            tokens.put(key(pod, "a"), token("more", 200 + pod as i64), at(50));
        }
        assert_eq!(tokens.cached.lock().unwrap().len(), CACHED_MAX);
        assert!(tokens.get(&key(3 * CACHED_MAX - 1, "a"), at(50)).is_some(), "the newest is kept");
        tokens.put(key(0, "b"), token("last", 100_000), at(50_000));
        assert_eq!(tokens.cached.lock().unwrap().len(), 1, "what is due goes");
    }
}
