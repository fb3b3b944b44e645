//! The source of images: tries one endpoint of a registry after the other, and each with one credential after the
//! other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::access::{PullAccess, Trust};
use super::error::ImageError;
use super::fetch::{Fetch, FetchError, Origin};
use super::index::{Image, Purpose};
use super::keyring::{Credential, Keyring, TrackedCredential};
use super::pull::RegistryAccess;
use super::registries::{Endpoint, Registries};
use super::remote::RegistryClients;
use super::session::{RemoteError, Session};
use super::signatures::SignaturePolicy;
use machinery_env::Env;
use oci_registry::Credentials;
use oci_registry::blobs::{BlobStore, Pins};
use oci_registry::reference::{BUILT_IN_REGISTRY, ImageName, Reference};

/// The node's registries, and the store for blobs.
pub(super) struct ImageSource {
    /// The current registry configuration. A running pull continues with its own.
    remote: Mutex<Arc<RegistryClients>>,
    /// The current signature policy. A running pull continues with its own.
    policy: Mutex<SignaturePolicy>,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) env: Env,
}

/// An image that was downloaded for a person.
#[derive(Debug)]
pub struct Downloaded {
    /// The image's content.
    pub image: Image,
    /// The path of its module.
    pub module: PathBuf,
}

/// Fetches an image into `folder` like a pod's, without compiling it.
///
/// # Errors
/// See [`ImageError`].
pub async fn download(
    image: &str,
    keyring: &Keyring,
    (registries, built_in, policy): (Registries, Option<RegistryAccess>, SignaturePolicy),
    folder: &Path,
    env: Env,
) -> Result<Downloaded, ImageError> {
    let invalid = |error| ImageError::InvalidName { image: image.to_owned(), error };
    let reference = Reference::parse(image).map_err(invalid)?;
    let unkept = |source| ImageError::Blob { image: image.to_owned(), source };
    let blobs = Arc::new(BlobStore::open(folder).map_err(|error| unkept(error.into()))?);
    let source = ImageSource::new(
        RegistryClients::new(&env, registries, built_in.into_iter().collect()),
        policy,
        blobs.clone(),
        env,
    );
    let pins = Arc::new(blobs.pins());
    let (found, _) = source.fetch((image, &reference.to_string(), Purpose::Module), &reference, keyring, &pins).await?;
    let module = blobs.path(&found.module).map_err(unkept)?;
    Ok(Downloaded { image: found, module })
}

impl ImageSource {
    pub(super) fn new(remote: RegistryClients, policy: SignaturePolicy, blobs: Arc<BlobStore>, env: Env) -> Self {
        Self { remote: Mutex::new(Arc::new(remote)), policy: Mutex::new(policy), blobs, env }
    }

    pub(super) fn policy(&self) -> std::sync::MutexGuard<'_, SignaturePolicy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remote(&self) -> Arc<RegistryClients> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the registries for pulls that begin later.
    pub(super) fn configure(&self, registries: Registries) {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        *remote = Arc::new(RegistryClients::new(&self.env, registries, remote.built_in.clone()));
    }

    /// Sets the cluster's own registries for pulls that begin later.
    pub(super) fn configure_built_in(&self, built_in: Vec<RegistryAccess>) {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        *remote = Arc::new(RegistryClients::new(&self.env, remote.registries.clone(), built_in));
    }

    /// Tries each endpoint with each credential until one returns the image.
    pub(super) async fn fetch(
        &self,
        (image, key, purpose): (&str, &str, Purpose),
        reference: &Reference,
        keyring: &Keyring,
        pins: &Arc<Pins>,
    ) -> Result<(Image, Trust), ImageError> {
        let (mut refused, mut mirrors) = (Vec::new(), Vec::new());
        let remote = self.remote();
        let rule = self.policy().rule(&ImageName::Registry(reference.clone()));
        for PullTarget { endpoint, credentials } in pull_targets(&remote, reference, keyring)? {
            // A mirror's error counts only if no later endpoint returns one.
            refused.clear();
            for credential in credentials {
                let names = (reference.registry.as_str(), reference.repository.as_str());
                let session = credential.as_ref().map(|tracked| tracked.credential.clone());
                let session = Session::new(&remote, &endpoint, names, session);
                let fetched = match &session {
                    Ok(session) => {
                        let (blobs, env) = (&self.blobs, &self.env);
                        let (origin, rule) = (Origin::Registry(session), rule.as_deref());
                        let fetch = Fetch { blobs, pins, env, origin, reference, key, rule };
                        match purpose {
                            Purpose::Module => fetch.image().await,
                            Purpose::Volume => fetch.volume().await,
                        }
                    }
                    Err(error) => Err(error.clone().into()),
                };
                match fetched {
                    Ok(found) => {
                        let used = session.is_ok_and(|session| session.used_credential());
                        let access = PullAccess::granted_by(credential.as_ref().filter(|_| used));
                        return Ok((found, Trust::new(access, rule.as_deref())));
                    }
                    // An invalid image at a mirror may be valid elsewhere: a mirror may answer with a login page.
                    Err(FetchError::Final(error @ ImageError::Refused { .. })) if endpoint.is_mirror => {
                        mirrors.push(format!("{}: {error}", endpoint.authority));
                        refused = vec![error];
                        break;
                    }
                    Err(FetchError::Final(error)) => return Err(error),
                    Err(FetchError::Unsigned(why)) => {
                        // Another account would see the same image.
                        refused = vec![ImageError::Signature { image: image.to_owned(), why }];
                        break;
                    }
                    Err(FetchError::Remote(error)) => {
                        tracing::debug!(image = key, endpoint = endpoint.authority, %error, "the pull failed");
                        if endpoint.is_mirror {
                            mirrors.push(format!("{}: {error}", endpoint.authority));
                        }
                        refused.push(remote_error((image, key), reference, error));
                    }
                }
            }
        }
        refused.iter_mut().for_each(|error| error.append_mirror_errors(&mirrors));
        Err(if refused.len() == 1 { refused.remove(0) } else { ImageError::Several(refused) })
    }
}

/// Returns the endpoints with their credentials. A pod's credentials for a registry are sent to that registry only: its
/// mirrors get the node's account.
pub(super) fn pull_targets(
    remote: &RegistryClients,
    reference: &Reference,
    keyring: &Keyring,
) -> Result<Vec<PullTarget>, ImageError> {
    let node = |account: Credential| TrackedCredential { credential: account, secret: None, account: None };
    if reference.registry == BUILT_IN_REGISTRY {
        if remote.built_in.is_empty() {
            return Err(ImageError::NoBuiltIn);
        }
        let last = remote.built_in.len() - 1;
        let of = |(index, access): (usize, &RegistryAccess)| {
            let endpoint = Endpoint::built_in(access.address.clone(), access.ca_pem.is_some());
            // The others are tried before it; their errors are appended to its own.
            let endpoint = Endpoint { is_mirror: index < last, ..endpoint };
            let account = access.credentials.clone();
            let account = account.map(|Credentials { user, password }| node(Credential { username: user, password }));
            PullTarget { endpoint, credentials: vec![account] }
        };
        return Ok(remote.built_in.iter().enumerate().map(of).collect());
    }
    let registries = &remote.registries;
    let of = |endpoint: Endpoint| {
        let own = if endpoint.is_mirror { Vec::new() } else { keyring.lookup(&repository(reference)) };
        let account = registries.account(&reference.registry, &endpoint).cloned().map(node);
        let provided = if endpoint.is_mirror { &[][..] } else { keyring.provided() };
        let all = own.into_iter().chain(account).chain(provided.iter().cloned());
        let all: Vec<Option<TrackedCredential>> = all.map(Some).collect();
        let credentials = if all.is_empty() { vec![None] } else { all };
        PullTarget { endpoint, credentials }
    };
    Ok(registries.endpoints(&reference.registry).into_iter().map(of).collect())
}

/// An endpoint with its credentials; `None` = without an account.
pub(super) struct PullTarget {
    pub(super) endpoint: Endpoint,
    pub(super) credentials: Vec<Option<TrackedCredential>>,
}

/// Returns a repository in the form that credentials are matched to.
pub(super) fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry, reference.repository)
}

fn remote_error((image, key): (&str, &str), reference: &Reference, error: RemoteError) -> ImageError {
    let registry = reference.registry.clone();
    match error {
        RemoteError::NotFound => ImageError::NotFound { image: key.to_owned() },
        RemoteError::Unavailable(why) => ImageError::Unavailable { image: image.to_owned(), registry, why },
        error => ImageError::Transfer { image: key.to_owned(), registry, why: error.to_string() },
    }
}
