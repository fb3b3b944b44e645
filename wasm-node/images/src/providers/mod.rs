//! Credential provider plugins like upstream's kubelet's (`pkg/credentialprovider/plugin`): programs of the node that
//! return the credentials of an image at its pull. [`config`] lists them, [`token`] adds the pod's ServiceAccount to a
//! request, [`response`] parses and caches responses, [`run`] starts the processes.

mod config;
#[cfg(test)]
mod fuzz;
mod response;
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

use self::config::ProviderConfig;
pub use self::config::{CredentialProviders, CredentialProvidersError};
use self::response::{Auth, Cache, ResponseError};
use self::run::{BOUNDS, CallLimits, RunError};
use self::token::{AccountKey, AccountRequest, CallMode};
use super::account::{AccountIdentity, PodAccount};
use super::histogram::{DEFAULT_SECONDS, Histogram};
use super::keyring::{Keyring, TrackedCredential};
use super::pull_limiter::PullLimiter;

/// Maximum concurrent processes of one provider; a namespace may use all but one of them.
const PARALLEL_CALLS: usize = 4;

/// Why a provider returns no credentials.
#[derive(Debug, thiserror::Error)]
enum ProviderError {
    #[error("error execing credential provider plugin: {0}")]
    Run(#[from] RunError),
    #[error(transparent)]
    ResponseError(#[from] ResponseError),
}

/// The node's providers.
#[derive(Default)]
pub(super) struct Providers {
    all: Vec<Arc<Provider>>,
    hash: Option<String>,
}

/// The metrics of a process's providers.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderMetrics {
    /// The hash of the configuration.
    pub config_hash: Option<String>,
    /// Each provider with the durations of its calls and the number of failures.
    pub calls: Vec<(String, Histogram, u64)>,
}

/// A provider's credentials; `None` after a failure, which is logged.
type CredentialCall = BoxFuture<'static, Option<Auth>>;

type CallKey = (String, String, Option<AccountKey>);

struct Provider {
    config: ProviderConfig,
    bounds: CallLimits,
    env: Env,
    cache: Mutex<Cache>,
    limiter: PullLimiter,
    /// Durations of finished calls, and the number of failures.
    ended: Mutex<(Histogram, u64)>,
    /// Running calls by namespace, repository and ServiceAccount. The namespace is in the key because each has its own
    /// queue.
    calls: Mutex<HashMap<CallKey, WeakShared<CredentialCall>>>,
}

impl Providers {
    pub(super) fn new(configs: CredentialProviders, env: &Env) -> Self {
        Self::bounded(configs, env, BOUNDS)
    }

    fn bounded(configs: CredentialProviders, env: &Env, bounds: CallLimits) -> Self {
        let provider = |config| {
            let (cache, limiter, calls) = (Mutex::default(), PullLimiter::new(PARALLEL_CALLS), Mutex::default());
            let ended = Mutex::new((Histogram::new(&DEFAULT_SECONDS), 0));
            Arc::new(Provider { config, bounds, env: env.clone(), cache, limiter, ended, calls })
        };
        Self { all: configs.all.into_iter().map(provider).collect(), hash: configs.hash }
    }

    pub(super) fn metrics(&self) -> ProviderMetrics {
        let of = |provider: &Arc<Provider>| {
            let (calls, errors) = provider.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
            (provider.config.name.clone(), calls, errors)
        };
        ProviderMetrics { config_hash: self.hash.clone(), calls: self.all.iter().map(of).collect() }
    }

    /// Returns whether a provider receives the pod's ServiceAccount for a repository.
    pub(super) fn uses_service_account(&self, repository: &str) -> bool {
        self.all.iter().any(|provider| provider.config.token.is_some() && provider.config.serves(repository))
    }

    /// Returns the providers' credentials for a repository and a pod, the most specific first. A failing provider adds
    /// none.
    pub(super) async fn credentials(
        &self,
        repository: &str,
        namespace: &str,
        pod: Option<&dyn PodAccount>,
    ) -> Vec<TrackedCredential> {
        let serving = self.all.iter().filter(|provider| provider.config.serves(repository));
        let results = join_all(serving.map(|provider| provider.credentials_for(repository, namespace, pod))).await;
        let mut keyring = Keyring::default();
        for (auth, account) in results.iter().flatten() {
            for (location, credential) in auth.iter() {
                keyring.add_provided(location, credential.clone(), account.clone());
            }
        }
        keyring.lookup(repository)
    }
}

impl Provider {
    fn cached(&self, repository: &str, account_key: Option<&AccountKey>) -> Option<Auth> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(repository, account_key, self.env.elapsed())
    }

    /// Returns the provider's credentials, and the ServiceAccount that they are for.
    async fn credentials_for(
        self: &Arc<Self>,
        repository: &str,
        namespace: &str,
        pod: Option<&dyn PodAccount>,
    ) -> Option<(Auth, Option<AccountIdentity>)> {
        let request_account = match &self.config.token {
            None => None,
            Some(attributes) => match attributes.call_mode(pod).await {
                Ok(CallMode::Skip) => return None,
                Ok(CallMode::WithoutAccount) => None,
                Ok(CallMode::WithAccount(request_account)) => Some(Arc::new(*request_account)),
                Err(error) => {
                    self.log_failure(repository, namespace, &error);
                    return None;
                }
            },
        };
        let account = request_account.as_ref().map(|request_account| request_account.identity.clone());
        let account_key = request_account.as_ref().map(|request_account| request_account.cache_key());
        if let Some(cached) = self.cached(repository, account_key.as_ref()) {
            return Some((cached, account));
        }
        Some((self.call(repository, namespace, request_account).await?, account))
    }

    /// Returns the running call for the same key, or starts one.
    fn call(
        self: &Arc<Self>,
        repository: &str,
        namespace: &str,
        request_account: Option<Arc<AccountRequest>>,
    ) -> Shared<CredentialCall> {
        let key = (
            namespace.to_owned(),
            repository.to_owned(),
            request_account.as_ref().map(|request_account| request_account.call_key()),
        );
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let running = calls.get(&key).and_then(WeakShared::upgrade).filter(|call| call.peek().is_none());
        if let Some(running) = running {
            return running;
        }
        calls.retain(|_, call| call.upgrade().is_some());
        let (provider, repository, namespace) = (self.clone(), repository.to_owned(), namespace.to_owned());
        let call = async move { provider.call_provider(&repository, &namespace, request_account.as_deref()).await }
            .boxed()
            .shared();
        calls.extend(call.downgrade().map(|weak| (key, weak)));
        call
    }

    async fn call_provider(
        &self,
        repository: &str,
        namespace: &str,
        request_account: Option<&AccountRequest>,
    ) -> Option<Auth> {
        let _permit = self.limiter.acquire(namespace).await;
        // Another call's response may cover this one, too.
        if let Some(cached) = self.cached(repository, request_account.map(AccountRequest::cache_key).as_ref()) {
            return Some(cached);
        }
        match self.run(repository, request_account).await {
            Ok(auth) => Some(auth),
            Err(error) => {
                self.log_failure(repository, namespace, &error);
                None
            }
        }
    }

    fn log_failure(&self, image: &str, namespace: &str, error: &dyn std::fmt::Display) {
        let provider = &self.config.name;
        tracing::warn!(provider, image, namespace, %error, "failed to provide credentials for an image");
    }

    fn record_call(&self, took: Duration, is_failed: bool) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.0.observe(took);
        ended.1 += u64::from(is_failed);
    }

    async fn run(&self, repository: &str, request_account: Option<&AccountRequest>) -> Result<Auth, ProviderError> {
        let request = response::request(&self.config.api_version, repository, request_account);
        let began = self.env.elapsed();
        let stdout = run::run(
            &self.env,
            &self.config,
            (&request, request_account.map(|request_account| request_account.token.as_str())),
            self.bounds,
        )
        .await;
        self.record_call(self.env.elapsed().saturating_sub(began), stdout.is_err());
        let stdout = stdout?;
        let response = response::parse(&stdout, &self.config.api_version)?;
        let mut passwords = response.auth.iter().map(|(_, credential)| credential.password.as_str());
        if request_account.is_some_and(|request_account| request_account.echoes_token(&mut passwords)) {
            return Err(ResponseError::Echo.into());
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let account_key = request_account.map(AccountRequest::cache_key);
        cache.put((repository, account_key), &response, self.config.default_cache, self.env.elapsed());
        Ok(response.auth)
    }
}
