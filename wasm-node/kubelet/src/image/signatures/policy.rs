//! Which images have to be signed, and by whom: one file in the form of containers-policy.json(5), which CRI-O, Podman and
//! skopeo read, too (docs/decisions/0070-signatures.md). Pure but for reading the file and the keys that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use super::super::file::{self, FileError};
use super::identity::{Identity, Wire as IdentityWire};
use super::key::PublicKey;
use oci_registry::reference::{ImageName, Reference};

/// Keys of one requirement: each may be tried with each signature of an image.
const KEYS_MAX: usize = 100;
/// Where images of registries are, and files.
const DOCKER: &str = "docker";
const DIR: &str = "dir";
/// What containers' tools get images from, and this node never: what is said of these means nothing here.
const OTHER_TRANSPORTS: [&str; 9] = [
    "atomic",
    "containers-storage",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Option<Vec<Wire>>,
    #[serde(default)]
    transports: Transports,
}

#[derive(Deserialize, Default)]
struct Transports {
    #[serde(default)]
    docker: BTreeMap<String, Vec<Wire>>,
    #[serde(default)]
    dir: BTreeMap<String, Vec<Wire>>,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

/// A requirement as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    #[serde(rename = "type")]
    kind: Option<String>,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<IdentityWire>,
    key_type: Option<IgnoredAny>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
}

/// What an image has to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    /// Nothing.
    Nothing,
    /// What no image has.
    Impossible,
    /// A signature.
    Signed(Signers),
}

/// Whose signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signers {
    /// One of these has made it.
    pub(super) keys: Vec<PublicKey>,
    /// The image's name in it.
    pub(super) identity: Identity,
}

/// What is said of some images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Rule {
    /// Where it stands in the file.
    pub(super) scope: String,
    /// All of them have to be met.
    pub(super) requirements: Vec<Requirement>,
    id: String,
}

impl Rule {
    /// What tells it from one that demands something else.
    pub(in super::super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether no image meets it.
    pub(super) fn is_impossible(&self) -> bool {
        self.requirements.contains(&Requirement::Impossible)
    }

    /// Why an image can't meet it, whatever its registry says; none = it may.
    pub(in super::super) fn refuses(&self, name: &ImageName) -> Option<String> {
        let (image, scope) = (shown(name), &self.scope);
        if self.is_impossible() {
            return Some(format!(
                "{image}: rule {scope:?} of the node's signature policy rejects every image that it is for; a narrower scope in the file of --signature-policy can take it"
            ));
        }
        matches!(name, ImageName::File(_)).then(|| {
            format!("{image}: rule {scope:?} of the node's signature policy wants a signature, which a file can't have: name its folder under transports.dir")
        })
    }

    /// What to say of an image that is there and may not be pulled.
    pub(in super::super) fn unverified(&self, image_id: &str) -> String {
        let scope = &self.scope;
        format!(
            "{image_id} is on the node, but rule {scope:?} of its signature policy was never found met by it: have it pulled (imagePullPolicy: IfNotPresent)"
        )
    }
}

/// The node's policy; without a file every image is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignaturePolicy {
    rules: Option<Arc<Rules>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Rules {
    default: Arc<Rule>,
    docker: BTreeMap<String, Arc<Rule>>,
    dir: BTreeMap<String, Arc<Rule>>,
}

impl SignaturePolicy {
    /// Reads the file, and the keys that it names.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let beside = path.parent().unwrap_or(Path::new(""));
        let key = |key: &Path| file::read(&beside.join(key)).map_err(|error| error.to_string());
        Self::parse(&file::read_text(path)?, &key).map_err(|why| FileError::form(path, why))
    }

    /// What the file says; `load` reads a key's file.
    pub(super) fn parse(text: &str, load: &Load<'_>) -> Result<Self, String> {
        let file: Option<File> = machinery_api::yaml::read(text)?;
        let File { default, transports } = file.ok_or("default: Required value")?;
        if let Some(unknown) = transports.others.keys().find(|name| !OTHER_TRANSPORTS.contains(&name.as_str())) {
            return Err(format!("transports.{unknown}: unknown transport"));
        }
        let default = default.ok_or("default: Required value (what holds for images that nothing else is said of)")?;
        let of = |transport: &str, scopes: BTreeMap<String, Vec<Wire>>, check: fn(&str) -> Result<(), &'static str>| {
            let of = |(scope, wires): (String, Vec<Wire>)| {
                let place = format!("transports.{transport}.{scope:?}");
                check(&scope).map_err(|why| format!("{place}: {why}"))?;
                let name = if scope.is_empty() { transport.to_owned() } else { scope.clone() };
                Ok((scope, Arc::new(rule(name, wires, load).map_err(|why| format!("{place}{why}"))?)))
            };
            scopes.into_iter().map(of).collect::<Result<BTreeMap<_, _>, String>>()
        };
        let rules = Rules {
            default: Arc::new(rule("default".into(), default, load).map_err(|why| format!("default{why}"))?),
            docker: of(DOCKER, transports.docker, docker_scope)?,
            dir: of(DIR, transports.dir, dir_scope)?,
        };
        Ok(Self { rules: Some(Arc::new(rules)) })
    }

    /// What an image has to meet; none = nothing.
    pub(in super::super) fn rule(&self, name: &ImageName) -> Option<Arc<Rule>> {
        let rules = self.rules.as_ref()?;
        let found = match name {
            ImageName::Registry(reference) => scopes(reference).into_iter().find_map(|scope| rules.docker.get(&scope)),
            ImageName::File(path) => {
                let scopes = path.ancestors().map(|path| path.display().to_string()).chain([String::new()]);
                scopes.into_iter().find_map(|scope| rules.dir.get(&scope))
            }
        };
        let rule = found.unwrap_or(&rules.default);
        (!rule.requirements.iter().all(|requirement| *requirement == Requirement::Nothing)).then(|| rule.clone())
    }
}

fn shown(name: &ImageName) -> String {
    match name {
        ImageName::Registry(reference) => reference.to_string(),
        ImageName::File(path) => format!("file://{}", path.display()),
    }
}

/// Where a reference is looked for, the narrowest scope first: itself, its repository, the paths above, the host, the domains
/// that the host is of, everything.
fn scopes(reference: &Reference) -> Vec<String> {
    let name = format!("{}/{}", reference.registry, reference.repository);
    let digest = reference.digest.iter().map(|digest| format!("{name}@{digest}"));
    let tag = reference.tag.iter().map(|tag| format!("{name}:{tag}"));
    let mut all: Vec<String> = digest.chain(tag).collect();
    let mut path = Some(name.as_str());
    while let Some(scope) = path {
        all.push(scope.to_owned());
        path = scope.rsplit_once('/').map(|(above, _)| above);
    }
    let host = reference.registry.split(':').next().unwrap_or_default();
    let mut domain = host.split_once('.');
    while let Some((_, above)) = domain {
        all.push(format!("*.{above}"));
        domain = above.split_once('.');
    }
    all.push(String::new());
    all
}

/// Whether a scope can be one of those above.
fn docker_scope(scope: &str) -> Result<(), &'static str> {
    if scope.is_empty() {
        return Ok(());
    }
    let wanted = "a scope is HOST[:PORT][/PATH[:TAG|@DIGEST]] or *.DOMAIN, as whole image names have it";
    let domain = scope.strip_prefix("*.");
    let rest = domain.unwrap_or(scope);
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._/:@[]".contains(c);
    let is_whole = rest.chars().all(fits) && rest.split('/').all(|part| !part.is_empty()) && !rest.contains("://");
    if is_whole && !(domain.is_some() && rest.contains(['/', ':', '@'])) { Ok(()) } else { Err(wanted) }
}

fn dir_scope(scope: &str) -> Result<(), &'static str> {
    let is_whole = scope.is_empty() || scope == "/" || scope.starts_with('/') && !scope.ends_with('/');
    if is_whole { Ok(()) } else { Err("a scope is an absolute path") }
}

/// Reads the file of a key.
type Load<'a> = dyn Fn(&Path) -> Result<Vec<u8>, String> + 'a;

/// The requirements of a scope; an error begins with its place below the scope.
fn rule(scope: String, wires: Vec<Wire>, load: &Load<'_>) -> Result<Rule, String> {
    if wires.is_empty() {
        return Err(": at least one requirement is wanted".into());
    }
    let of = |(number, wire)| requirement(wire, load).map_err(|why| format!("[{number}]: {why}"));
    let requirements = wires.into_iter().enumerate().map(of).collect::<Result<Vec<_>, _>>()?;
    let mut hasher = Sha256::new();
    for requirement in &requirements {
        match requirement {
            Requirement::Nothing => hasher.update("nothing\n"),
            Requirement::Impossible => hasher.update("impossible\n"),
            Requirement::Signed(Signers { keys, identity }) => {
                let keys: Vec<&str> = keys.iter().map(PublicKey::id).collect();
                hasher.update(format!("signed {keys:?} {identity:?}\n"));
            }
        }
    }
    Ok(Rule { scope, requirements, id: hex::encode(hasher.finalize()) })
}

fn requirement(wire: Wire, load: &Load<'_>) -> Result<Requirement, String> {
    let Wire { kind, key_path, key_paths, key_data, key_datas, signed_identity, key_type, .. } = wire;
    let kind = kind.ok_or("type: Required value")?;
    let keyless = wire.fulcio.is_some()
        || wire.pki.is_some()
        || wire.rekor_public_key_path.is_some()
        || wire.rekor_public_key_paths.is_some()
        || wire.rekor_public_key_data.is_some()
        || wire.rekor_public_key_datas.is_some();
    let has_keys = key_path.is_some() || key_paths.is_some() || key_data.is_some() || key_datas.is_some();
    match kind.as_str() {
        "insecureAcceptAnything" | "reject"
            if has_keys || keyless || signed_identity.is_some() || key_type.is_some() =>
        {
            Err(format!("type {kind:?} has no other fields"))
        }
        "insecureAcceptAnything" => Ok(Requirement::Nothing),
        "reject" => Ok(Requirement::Impossible),
        "signedBy" => Err("type \"signedBy\": signatures by GPG are not verified here, only \"sigstoreSigned\"".into()),
        "sigstoreSigned" if keyless => {
            Err("fulcio, pki and rekorPublicKey…: keyless signatures and transparency logs are not verified here; \
             name the public keys in keyPath, keyPaths, keyData or keyDatas"
                .into())
        }
        "sigstoreSigned" if key_type.is_some() => Err("keyType: type \"sigstoreSigned\" has no such field".into()),
        "sigstoreSigned" => {
            let keys = match (key_path, key_paths, key_data, key_datas) {
                (Some(path), None, None, None) => of_files(&[path], load)?,
                (None, Some(paths), None, None) => of_files(&paths, load)?,
                (None, None, Some(data), None) => of_data(&[data])?,
                (None, None, None, Some(datas)) => of_data(&datas)?,
                _ => return Err("exactly one of keyPath, keyPaths, keyData and keyDatas is wanted".into()),
            };
            if keys.is_empty() || keys.len() > KEYS_MAX {
                return Err(format!("1 to {KEYS_MAX} keys are wanted"));
            }
            Ok(Requirement::Signed(Signers { keys, identity: Identity::of(signed_identity)? }))
        }
        _ => Err(format!("type: unknown type {kind:?}")),
    }
}

fn of_files(paths: &[PathBuf], load: &Load<'_>) -> Result<Vec<PublicKey>, String> {
    let of = |path: &PathBuf| PublicKey::parse(&load(path)?).map_err(|why| format!("{}: {why}", path.display()));
    paths.iter().map(of).collect()
}

fn of_data(datas: &[String]) -> Result<Vec<PublicKey>, String> {
    use base64::Engine as _;
    let of = |data: &String| {
        let pem =
            base64::engine::general_purpose::STANDARD.decode(data).map_err(|_| "keyData: not base64".to_owned())?;
        PublicKey::parse(&pem).map_err(|why| format!("keyData: {why}"))
    };
    datas.iter().map(of).collect()
}
