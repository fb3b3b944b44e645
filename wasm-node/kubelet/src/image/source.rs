//! Where an image comes from: one endpoint of its registry after the other, as one user after the other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::access::{Access, Trust};
use super::error::ImageError;
use super::fetch::{Fetch, FetchError, Origin};
use super::keyring::{Credential, Keyring, TrackedCredential};
use super::known::{Image, Purpose};
use super::pull::RegistryAccess;
use super::registries::{Endpoint, Registries};
use super::remote::Remote;
use super::session::{RemoteError, Session};
use super::signatures::SignaturePolicy;
use machinery_env::Env;
use oci_registry::Credentials;
use oci_registry::blobs::{BlobStore, Pins};
use oci_registry::reference::{BUILT_IN_REGISTRY, ImageName, Reference};

/// The registries of this node, and where what comes from them is kept.
pub(super) struct Source {
    /// As the node's file has it now; a pull goes on with what it began with.
    remote: Mutex<Arc<Remote>>,
    /// The same of the file that says which images have to be signed.
    policy: Mutex<SignaturePolicy>,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) env: Env,
}

/// An image that was fetched for a person.
#[derive(Debug)]
pub struct Downloaded {
    /// What it is made of.
    pub image: Image,
    /// Where its module is.
    pub module: PathBuf,
}

/// Fetches an image into `folder`, as a pod's is fetched, without compiling it.
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
    let source = Source::new(Remote::new(registries, built_in), policy, blobs.clone(), env);
    let pins = Arc::new(blobs.pins());
    let (found, _) = source.fetch((image, &reference.to_string(), Purpose::Module), &reference, keyring, &pins).await?;
    let module = blobs.path(&found.module).map_err(unkept)?;
    Ok(Downloaded { image: found, module })
}

impl Source {
    pub(super) fn new(remote: Remote, policy: SignaturePolicy, blobs: Arc<BlobStore>, env: Env) -> Self {
        Self { remote: Mutex::new(Arc::new(remote)), policy: Mutex::new(policy), blobs, env }
    }

    pub(super) fn policy(&self) -> std::sync::MutexGuard<'_, SignaturePolicy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remote(&self) -> Arc<Remote> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pulls that begin from here on ask these registries.
    pub(super) fn configure(&self, registries: Registries) {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        *remote = Arc::new(Remote::new(registries, remote.built_in.clone()));
    }

    /// Asks one endpoint after the other, as one user after the other, until there is an image.
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
        for Way { endpoint, credentials } in ways(&remote, reference, keyring)? {
            // What a mirror says counts as long as nobody after it says anything.
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
                        let access = Access::by(credential.as_ref().filter(|_| used));
                        return Ok((found, Trust::new(access, rule.as_deref())));
                    }
                    // What is no image there may be one elsewhere: a mirror may answer with somebody's page to log in.
                    Err(FetchError::Final(error @ ImageError::Refused { .. })) if endpoint.is_mirror => {
                        mirrors.push(format!("{}: {error}", endpoint.authority));
                        refused = vec![error];
                        break;
                    }
                    Err(FetchError::Final(error)) => return Err(error),
                    Err(FetchError::Unsigned(why)) => {
                        // Another account would see the same.
                        refused = vec![ImageError::Signature { image: image.to_owned(), why }];
                        break;
                    }
                    Err(FetchError::Remote(error)) => {
                        tracing::debug!(image = key, endpoint = endpoint.authority, %error, "not pulled from there");
                        if endpoint.is_mirror {
                            mirrors.push(format!("{}: {error}", endpoint.authority));
                        }
                        refused.push(remote_error((image, key), reference, error));
                    }
                }
            }
        }
        refused.iter_mut().for_each(|error| error.beside(&mirrors));
        Err(if refused.len() == 1 { refused.remove(0) } else { ImageError::Several(refused) })
    }
}

/// Where and as whom to ask. What a pod knows of a registry is for that registry: a mirror of it has the node's account.
pub(super) fn ways(remote: &Remote, reference: &Reference, keyring: &Keyring) -> Result<Vec<Way>, ImageError> {
    let node = |account: Credential| TrackedCredential { credential: account, secret: None, account: None };
    if reference.registry == BUILT_IN_REGISTRY {
        let access = remote.built_in.as_ref().ok_or(ImageError::NoBuiltIn)?;
        let Credentials { user, password } = access.credentials.clone();
        let endpoint = Endpoint::built_in(access.address.clone(), access.ca_pem.is_some());
        let credentials = vec![Some(node(Credential { username: user, password }))];
        return Ok(vec![Way { endpoint, credentials }]);
    }
    let registries = &remote.registries;
    let of = |endpoint: Endpoint| {
        let own = if endpoint.is_mirror { Vec::new() } else { keyring.lookup(&repository(reference)) };
        let account = registries.account(&reference.registry, &endpoint).cloned().map(node);
        let provided = if endpoint.is_mirror { &[][..] } else { keyring.provided() };
        let all = own.into_iter().chain(account).chain(provided.iter().cloned());
        let all: Vec<Option<TrackedCredential>> = all.map(Some).collect();
        let credentials = if all.is_empty() { vec![None] } else { all };
        Way { endpoint, credentials }
    };
    Ok(registries.endpoints(&reference.registry).into_iter().map(of).collect())
}

/// Where to ask, and as whom: none = without an account.
pub(super) struct Way {
    pub(super) endpoint: Endpoint,
    pub(super) credentials: Vec<Option<TrackedCredential>>,
}

/// A repository, as credentials are matched to it.
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
