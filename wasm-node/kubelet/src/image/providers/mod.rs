//! Credential provider plugins, as upstream's kubelet has them (`pkg/credentialprovider/plugin`): programs of the node that are
//! asked for the credentials of an image when it is pulled. [`config`] says which there are, [`answer`] what they say and how
//! long that holds, [`run`] runs them.

mod answer;
mod config;
#[cfg(test)]
mod fuzz;
mod run;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared, join_all};
use machinery_env::Env;

use self::answer::{Auth, Cache};
use self::config::ProviderConfig;
pub use self::config::{CredentialProviders, CredentialProvidersError};
use self::run::{BOUNDS, Bounds, RunError};
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
    Answer(#[from] answer::AnswerError),
}

/// The node's providers.
#[derive(Default)]
pub(super) struct Providers {
    all: Vec<Arc<Provider>>,
}

/// What a provider gives; none where it fails, which is in the log.
type Call = BoxFuture<'static, Option<Auth>>;

struct Provider {
    config: ProviderConfig,
    bounds: Bounds,
    env: Env,
    cache: Mutex<Cache>,
    turns: Turns,
    /// Calls that go on, by namespace and repository: each namespace waits for its own turns only.
    calls: Mutex<HashMap<(String, String), WeakShared<Call>>>,
}

impl Providers {
    pub(super) fn new(configs: CredentialProviders, env: &Env) -> Self {
        Self::bounded(configs, env, BOUNDS)
    }

    fn bounded(configs: CredentialProviders, env: &Env, bounds: Bounds) -> Self {
        let provider = |config| {
            let (cache, turns, calls) = (Mutex::default(), Turns::new(PARALLEL_CALLS), Mutex::default());
            Arc::new(Provider { config, bounds, env: env.clone(), cache, turns, calls })
        };
        Self { all: configs.all.into_iter().map(provider).collect() }
    }

    /// What the providers give for a repository, the most specific credentials first. Who fails gives none.
    pub(super) async fn credentials(&self, repository: &str, namespace: &str) -> Vec<TrackedCredential> {
        let asked = self.all.iter().filter(|provider| provider.config.serves(repository));
        let answers = join_all(asked.map(|provider| provider.have(repository, namespace))).await;
        let mut keyring = Keyring::default();
        for (location, credential) in answers.iter().flatten().flat_map(|auth| auth.iter()) {
            keyring.add_of_node(location, credential.clone());
        }
        keyring.lookup(repository)
    }
}

impl Provider {
    fn kept(&self, repository: &str) -> Option<Auth> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(repository, self.env.elapsed())
    }

    async fn have(self: &Arc<Self>, repository: &str, namespace: &str) -> Option<Auth> {
        if let Some(kept) = self.kept(repository) {
            return Some(kept);
        }
        self.call(repository, namespace).await
    }

    /// The call that goes on for the same, or one that begins.
    fn call(self: &Arc<Self>, repository: &str, namespace: &str) -> Shared<Call> {
        let key = (namespace.to_owned(), repository.to_owned());
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let going = calls.get(&key).and_then(WeakShared::upgrade).filter(|call| call.peek().is_none());
        if let Some(going) = going {
            return going;
        }
        calls.retain(|_, call| call.upgrade().is_some());
        let (provider, repository, namespace) = (self.clone(), repository.to_owned(), namespace.to_owned());
        let call = async move { provider.ask(&repository, &namespace).await }.boxed().shared();
        calls.extend(call.downgrade().map(|weak| (key, weak)));
        call
    }

    async fn ask(&self, repository: &str, namespace: &str) -> Option<Auth> {
        let _turn = self.turns.take(namespace).await;
        // Another call may have been answered for this one, too.
        if let Some(kept) = self.kept(repository) {
            return Some(kept);
        }
        match self.run(repository).await {
            Ok(auth) => Some(auth),
            Err(error) => {
                let (provider, image) = (&self.config.name, repository);
                tracing::warn!(provider, image, %error, "failed to provide credentials for an image");
                None
            }
        }
    }

    async fn run(&self, repository: &str) -> Result<Auth, ProviderError> {
        let request = answer::request(&self.config.api_version, repository);
        let said = run::run(&self.config, &request, self.bounds).await?;
        let answer = answer::parse(&said, &self.config.api_version)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put(repository, &answer, self.config.default_cache, self.env.elapsed());
        Ok(answer.auth)
    }
}
