//! Credential provider plugins, as upstream's kubelet has them (`pkg/credentialprovider/plugin`): programs of the node that are
//! asked for the credentials of an image when it is pulled. [`config`] says which there are, [`token`] what they are told of a
//! pod's ServiceAccount, [`answer`] what they say and how long that holds, [`run`] runs them.

mod answer;
mod config;
#[cfg(test)]
mod fuzz;
mod run;
#[cfg(test)]
mod tests;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared, join_all};
use machinery_env::Env;

use self::answer::{AnswerError, Auth, Cache};
use self::config::ProviderConfig;
pub use self::config::{CredentialProviders, CredentialProvidersError};
use self::run::{BOUNDS, Bounds, RunError};
use self::token::{Asker, Asking, Whose};
use super::account::{AccountIdentity, PodAccount};
use super::histogram::{DEFAULT_SECONDS, Histogram};
use super::keyring::{Keyring, TrackedCredential};
use super::turns::Turns;

/// Processes of one provider at once; a namespace has all but one of them.
const PARALLEL_CALLS: usize = 4;

/// Why a provider gives nothing.
#[derive(Debug, thiserror::Error)]
enum ProviderError {
    #[error("error execing credential provider plugin: {0}")]
    Run(#[from] RunError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// The node's providers.
#[derive(Default)]
pub(super) struct Providers {
    all: Vec<Arc<Provider>>,
    hash: Option<String>,
}

/// What the providers of a process were asked, for a scrape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProviderFigures {
    /// Digest of the configuration.
    pub(crate) config_hash: Option<String>,
    /// By provider: how long its calls took, and how many failed.
    pub(crate) calls: Vec<(String, Histogram, u64)>,
}

/// What a provider gives; none where it fails, which is in the log.
type Call = BoxFuture<'static, Option<Auth>>;

type CallKey = (String, String, Option<Whose>);

struct Provider {
    config: ProviderConfig,
    bounds: Bounds,
    env: Env,
    cache: Mutex<Cache>,
    turns: Turns,
    /// Calls that ended, and how many of them failed.
    ended: Mutex<(Histogram, u64)>,
    /// Calls that go on, by namespace, repository and what is told of the pod: each namespace waits for its own turns only.
    calls: Mutex<HashMap<CallKey, WeakShared<Call>>>,
}

impl Providers {
    pub(super) fn new(configs: CredentialProviders, env: &Env) -> Self {
        Self::bounded(configs, env, BOUNDS)
    }

    fn bounded(configs: CredentialProviders, env: &Env, bounds: Bounds) -> Self {
        let provider = |config| {
            let (cache, turns, calls) = (Mutex::default(), Turns::new(PARALLEL_CALLS), Mutex::default());
            let ended = Mutex::new((Histogram::new(&DEFAULT_SECONDS), 0));
            Arc::new(Provider { config, bounds, env: env.clone(), cache, turns, ended, calls })
        };
        Self { all: configs.all.into_iter().map(provider).collect(), hash: configs.hash }
    }

    pub(super) fn figures(&self) -> ProviderFigures {
        let of = |provider: &Arc<Provider>| {
            let (calls, errors) = provider.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
            (provider.config.name.clone(), calls, errors)
        };
        ProviderFigures { config_hash: self.hash.clone(), calls: self.all.iter().map(of).collect() }
    }

    /// Whether one of them is told of a pod's ServiceAccount for a repository.
    pub(super) fn asks_accounts(&self, repository: &str) -> bool {
        self.all.iter().any(|provider| provider.config.token.is_some() && provider.config.serves(repository))
    }

    /// What the providers give for a repository and a pod, the most specific credentials first. Who fails gives none.
    pub(super) async fn credentials(
        &self,
        repository: &str,
        namespace: &str,
        pod: Option<&dyn PodAccount>,
    ) -> Vec<TrackedCredential> {
        let asked = self.all.iter().filter(|provider| provider.config.serves(repository));
        let answers = join_all(asked.map(|provider| provider.have(repository, namespace, pod))).await;
        let mut keyring = Keyring::default();
        for (auth, account) in answers.iter().flatten() {
            for (location, credential) in auth.iter() {
                keyring.add_provided(location, credential.clone(), account.clone());
            }
        }
        keyring.lookup(repository)
    }
}

impl Provider {
    fn kept(&self, repository: &str, whose: Option<&Whose>) -> Option<Auth> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(repository, whose, self.env.elapsed())
    }

    /// Its answer, and for which ServiceAccount it is.
    async fn have(
        self: &Arc<Self>,
        repository: &str,
        namespace: &str,
        pod: Option<&dyn PodAccount>,
    ) -> Option<(Auth, Option<AccountIdentity>)> {
        let asker = match &self.config.token {
            None => None,
            Some(attributes) => match attributes.asking(pod).await {
                Ok(Asking::Not) => return None,
                Ok(Asking::Plain) => None,
                Ok(Asking::As(asker)) => Some(Arc::new(*asker)),
                Err(error) => {
                    self.failed(repository, namespace, &error);
                    return None;
                }
            },
        };
        let account = asker.as_ref().map(|asker| asker.identity.clone());
        let whose = asker.as_ref().map(|asker| asker.kept_for());
        if let Some(kept) = self.kept(repository, whose.as_ref()) {
            return Some((kept, account));
        }
        Some((self.call(repository, namespace, asker).await?, account))
    }

    /// The call that goes on for the same, or one that begins.
    fn call(self: &Arc<Self>, repository: &str, namespace: &str, asker: Option<Arc<Asker>>) -> Shared<Call> {
        let key = (namespace.to_owned(), repository.to_owned(), asker.as_ref().map(|asker| asker.of_token()));
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let going = calls.get(&key).and_then(WeakShared::upgrade).filter(|call| call.peek().is_none());
        if let Some(going) = going {
            return going;
        }
        calls.retain(|_, call| call.upgrade().is_some());
        let (provider, repository, namespace) = (self.clone(), repository.to_owned(), namespace.to_owned());
        let call = async move { provider.ask(&repository, &namespace, asker.as_deref()).await }.boxed().shared();
        calls.extend(call.downgrade().map(|weak| (key, weak)));
        call
    }

    async fn ask(&self, repository: &str, namespace: &str, asker: Option<&Asker>) -> Option<Auth> {
        let _turn = self.turns.take(namespace).await;
        // Another call may have been answered for this one, too.
        if let Some(kept) = self.kept(repository, asker.map(Asker::kept_for).as_ref()) {
            return Some(kept);
        }
        match self.run(repository, asker).await {
            Ok(auth) => Some(auth),
            Err(error) => {
                self.failed(repository, namespace, &error);
                None
            }
        }
    }

    fn failed(&self, image: &str, namespace: &str, error: &dyn std::fmt::Display) {
        let provider = &self.config.name;
        tracing::warn!(provider, image, namespace, %error, "failed to provide credentials for an image");
    }

    fn ended(&self, took: Duration, is_failed: bool) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.0.observe(took);
        ended.1 += u64::from(is_failed);
    }

    async fn run(&self, repository: &str, asker: Option<&Asker>) -> Result<Auth, ProviderError> {
        let request = answer::request(&self.config.api_version, repository, asker);
        let began = self.env.elapsed();
        let said = run::run(&self.config, (&request, asker.map(|asker| asker.token.as_str())), self.bounds).await;
        self.ended(self.env.elapsed().saturating_sub(began), said.is_err());
        let said = said?;
        let answer = answer::parse(&said, &self.config.api_version)?;
        let mut passwords = answer.auth.iter().map(|(_, credential)| credential.password.as_str());
        if asker.is_some_and(|asker| asker.is_echoed(&mut passwords)) {
            return Err(AnswerError::Echo.into());
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = asker.map(Asker::kept_for);
        cache.put((repository, whose), &answer, self.config.default_cache, self.env.elapsed());
        Ok(answer.auth)
    }
}
