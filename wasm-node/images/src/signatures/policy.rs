//! The signature policy: which images must be signed, and by which keys. One file in the format of
//! containers-policy.json(5), which CRI-O, Podman and skopeo also read (docs/decisions/0070-signatures.md). Pure except
//! for reading the file and its keys.

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

/// Maximum keys of one requirement: each may be tried with each signature of an image.
const KEYS_MAX: usize = 100;
/// The transports of registries and of files.
const DOCKER: &str = "docker";
const DIR: &str = "dir";
/// Transports of other container tools, which this node never uses: their rules are ignored.
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

/// A requirement in the file.
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

/// A requirement on an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    /// Always met.
    Nothing,
    /// Never met.
    Impossible,
    /// A signature.
    Signed(Signers),
}

/// The accepted signers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signers {
    /// One of these keys must have made the signature.
    pub(super) keys: Vec<PublicKey>,
    /// The accepted names in the signature.
    pub(super) identity: Identity,
}

/// The requirements on the images of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Rule {
    /// Its key in the file.
    pub(super) scope: String,
    /// All of them must be met.
    pub(super) requirements: Vec<Requirement>,
    id: String,
}

impl Rule {
    /// Returns an identifier: rules with other requirements have other ones.
    pub(in super::super) fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether no image meets it.
    pub(super) fn is_impossible(&self) -> bool {
        self.requirements.contains(&Requirement::Impossible)
    }

    /// Returns why an image can't meet the rule, independent of its registry; `None` = it may.
    pub(in super::super) fn rejection(&self, name: &ImageName) -> Option<String> {
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

    /// Returns the error text for a local image that must not be pulled.
    pub(in super::super) fn unverified_message(&self, image_id: &str) -> String {
        let scope = &self.scope;
        format!(
            "{image_id} is on the node, but rule {scope:?} of its signature policy was never found met by it: have it pulled (imagePullPolicy: IfNotPresent)"
        )
    }
}

/// The node's policy; without a file every image is accepted.
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
    /// Reads the file and its keys.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let key = |key: &Path| file::read(&folder.join(key)).map_err(|error| error.to_string());
        Self::parse(&file::read_text(path)?, &key).map_err(|why| FileError::form(path, why))
    }

    /// Parses the file; `load` reads a key's file.
    pub(super) fn parse(text: &str, load: &Load<'_>) -> Result<Self, String> {
        let file: Option<File> = machinery_api::yaml::read(text)?;
        let File { default, transports } = file.ok_or("default: Required value")?;
        if let Some(unknown) = transports.others.keys().find(|name| !OTHER_TRANSPORTS.contains(&name.as_str())) {
            return Err(format!("transports.{unknown}: unknown transport"));
        }
        let default =
            default.ok_or("default: Required value (the requirements on images that no other rule matches)")?;
        let of = |transport: &str, scopes: BTreeMap<String, Vec<Wire>>, check: fn(&str) -> Result<(), &'static str>| {
            let of = |(scope, wires): (String, Vec<Wire>)| {
                let field = format!("transports.{transport}.{scope:?}");
                check(&scope).map_err(|why| format!("{field}: {why}"))?;
                let name = if scope.is_empty() { transport.to_owned() } else { scope.clone() };
                Ok((scope, Arc::new(rule(name, wires, load).map_err(|why| format!("{field}{why}"))?)))
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

    /// Returns the rule that an image has to meet; `None` = no requirement.
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

/// Returns the scopes of a reference, the narrowest first: itself, its repository, the paths above, the host, the
/// host's parent domains, everything.
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

/// Checks that a scope can occur in a reference's scopes.
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

/// Reads a key's file.
type Load<'a> = dyn Fn(&Path) -> Result<Vec<u8>, String> + 'a;

/// Converts the requirements of a scope; an error begins with its position below the scope.
fn rule(scope: String, wires: Vec<Wire>, load: &Load<'_>) -> Result<Rule, String> {
    if wires.is_empty() {
        return Err(": at least one requirement is required".into());
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
                _ => return Err("exactly one of keyPath, keyPaths, keyData and keyDatas is required".into()),
            };
            if keys.is_empty() || keys.len() > KEYS_MAX {
                return Err(format!("1 to {KEYS_MAX} keys are required"));
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
