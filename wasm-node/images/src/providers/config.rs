//! The configuration of credential providers: `CredentialProviderConfig` of `kubelet.config.k8s.io`, by upstream's
//! rules (`pkg/credentialprovider/plugin/config.go`). Pure except for reading files.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use machinery_api::duration;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::file;
use super::super::keyring::{matches, split_path};
use super::token::{self, TokenAttributes};

/// API versions of the configuration.
const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
/// API versions of requests and responses, in upstream's order.
pub(super) const CALL_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
];
/// Characters that Go allows in a host besides letters and digits.
const HOST_SYMBOLS: &str = "-_.~!$&'()*+,;=:[]<>\"";

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialProvidersError {
    /// The configuration can't be read.
    #[error("unable to access path {path:?}: {why}")]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        why: std::io::Error,
    },
    /// A folder without configuration files.
    #[error("no configuration files found in directory {0:?}")]
    NoFiles(PathBuf),
    /// The file can't be decoded.
    #[error("error decoding config {path:?}: {why}")]
    Form {
        /// The file's path.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// Two providers have the same name.
    #[error("duplicate provider name {0:?} found in configuration file(s)")]
    Duplicate(String),
    /// The configuration has invalid values.
    #[error("failed to validate credential provider config: {0}")]
    Invalid(String),
    /// The folder of programs is missing.
    #[error("plugin binary directory {} did not exist", .0.display())]
    NoFolder(PathBuf),
    /// A provider's program is missing.
    #[error("plugin binary executable {} did not exist", .0.display())]
    NoProgram(PathBuf),
    /// A provider's program can't be run.
    #[error("error inspecting binary executable {}: {why}", path.display())]
    Program {
        /// The program's path.
        path: PathBuf,
        /// The cause.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: Option<String>,
    kind: Option<String>,
    providers: Option<Vec<Wire>>,
}

/// A provider in the configuration file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wire {
    name: Option<String>,
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<String>,
    api_version: Option<String>,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<token::Wire>,
}

/// A variable of a provider's environment. Its value may be a secret.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) value: String,
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

/// A validated provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProviderConfig {
    pub(super) name: String,
    /// Its program.
    pub(super) program: PathBuf,
    /// Patterns of the images that it serves, as [`matches`] reads them.
    match_images: Vec<String>,
    /// The cache duration of responses without their own.
    pub(super) default_cache: Duration,
    /// The API version of its requests and responses.
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<Variable>,
    /// The ServiceAccount data that it receives.
    pub(super) token: Option<TokenAttributes>,
}

impl ProviderConfig {
    /// Returns whether it serves a repository.
    pub(super) fn serves(&self, repository: &str) -> bool {
        self.match_images.iter().any(|key| matches(key, repository))
    }
}

/// The node's credential providers; empty without a configuration.
#[derive(Debug, Clone, Default)]
pub struct CredentialProviders {
    pub(super) all: Vec<ProviderConfig>,
    /// The hash of all files, for upstream's metric; none without a configuration.
    pub(super) hash: Option<String>,
}

impl CredentialProviders {
    /// Reads the configuration, a file or a folder of files, of providers whose programs are in `programs`.
    ///
    /// # Errors
    /// See [`CredentialProvidersError`].
    pub fn read(config: &Path, programs: &Path) -> Result<Self, CredentialProvidersError> {
        if !programs.is_dir() {
            return Err(CredentialProvidersError::NoFolder(programs.to_owned()));
        }
        let (mut wires, mut hasher) = (Vec::new(), Sha256::new());
        for path in files(config)? {
            let text = text(&path)?;
            // Lengths first, so that no two lists of files hash the same bytes.
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(&text);
            wires.extend(decode(&text).map_err(|why| CredentialProvidersError::Form { path: path.clone(), why })?);
        }
        let all = validate(wires, programs)?;
        all.iter().try_for_each(|provider| check_executable(&provider.program))?;
        Ok(Self { all, hash: Some(format!("sha256:{}", hex::encode(hasher.finalize()))) })
    }
}

/// Returns the configuration's files in order.
fn files(config: &Path) -> Result<Vec<PathBuf>, CredentialProvidersError> {
    let failed = |why| CredentialProvidersError::Read { path: config.to_owned(), why };
    if !std::fs::metadata(config).map_err(failed)?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(config).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_config = path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml");
        if is_config && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(CredentialProvidersError::NoFiles(config.to_owned()));
    }
    Ok(found)
}

fn text(path: &Path) -> Result<String, CredentialProvidersError> {
    let text = file::open(path).and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    text.map_err(|why| CredentialProvidersError::Read { path: path.to_owned(), why })
}

/// Checks that a file looks like an executable program.
fn check_executable(path: &Path) -> Result<(), CredentialProvidersError> {
    let wrong = |why: String| CredentialProvidersError::Program { path: path.to_owned(), why };
    let found = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(CredentialProvidersError::NoProgram(path.to_owned()));
        }
        found => found.map_err(|error| wrong(error.to_string()))?,
    };
    if found.is_dir() {
        return Err(wrong("is a directory".into()));
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 == 0 {
        return Err(wrong("permission denied".into()));
    }
    Ok(())
}

/// Decodes a file, YAML or JSON.
pub(super) fn decode(text: &str) -> Result<Vec<Wire>, String> {
    // An empty file is YAML's null.
    let file: Option<File> = machinery_api::yaml::read(text)?;
    let file = file.ok_or("Object 'Kind' is missing")?;
    let kind = file.kind.filter(|kind| !kind.is_empty()).ok_or("Object 'Kind' is missing")?;
    let version = file.api_version.unwrap_or_default();
    if kind != "CredentialProviderConfig" {
        return Err(format!("failed to decode {kind:?} (wrong Kind)"));
    }
    if !VERSIONS.contains(&version.as_str()) {
        return Err(format!("no kind {kind:?} is registered for version {version:?}"));
    }
    Ok(file.providers.unwrap_or_default())
}

/// Validates all providers.
pub(super) fn validate(wires: Vec<Wire>, programs: &Path) -> Result<Vec<ProviderConfig>, CredentialProvidersError> {
    let (mut errors, mut names) = (Vec::new(), BTreeSet::new());
    if wires.is_empty() {
        errors.push("providers: Required value: at least 1 item in plugins is required".to_owned());
    }
    let mut all = Vec::new();
    for wire in wires {
        let name = wire.name.clone().unwrap_or_default();
        if !names.insert(name.clone()) {
            return Err(CredentialProvidersError::Duplicate(name));
        }
        all.push(provider(name, wire, programs, &mut errors));
    }
    // Several providers may have the same error, which is reported once.
    let mut seen = BTreeSet::new();
    errors.retain(|error| seen.insert(error.clone()));
    match errors.as_slice() {
        [] => Ok(all),
        [one] => Err(CredentialProvidersError::Invalid(one.clone())),
        several => Err(CredentialProvidersError::Invalid(format!("[{}]", several.join(", ")))),
    }
}

/// Converts one provider and appends its errors to `errors`.
fn provider(name: String, wire: Wire, programs: &Path, errors: &mut Vec<String>) -> ProviderConfig {
    let mut bad_name = |why: &str| errors.push(format!("providers.name: Invalid value: {name:?}: provider name {why}"));
    if name.contains('/') {
        bad_name("cannot contain '/'");
    }
    if name.contains(' ') {
        bad_name("cannot contain spaces");
    }
    if name == "." || name == ".." {
        bad_name(&format!("cannot be '{name}'"));
    }
    if name.is_empty() {
        errors.push("providers.name: Required value".into());
    }
    let api_version = wire.api_version.unwrap_or_default();
    if api_version.is_empty() {
        errors.push("providers.apiVersion: Required value".into());
    } else if !CALL_VERSIONS.contains(&api_version.as_str()) {
        let known = CALL_VERSIONS.map(|version| format!("{version:?}")).join(", ");
        errors.push(format!("providers.apiVersion: Unsupported value: {api_version:?}: supported values: {known}"));
    }
    let globs = wire.match_images.unwrap_or_default();
    if globs.is_empty() {
        errors.push("providers.matchImages: Required value: at least 1 item in matchImages is required".into());
    }
    let mut match_images = Vec::new();
    for glob in globs {
        match match_key(&glob) {
            Ok(key) => match_images.push(key),
            Err(why) => errors.push(format!(
                "providers.matchImages: Invalid value: {glob:?}: match image is invalid: parse {:?}: {why}",
                format!("https://{glob}")
            )),
        }
    }
    let default_cache = match wire.default_cache_duration.as_deref() {
        None => Err("Required value".to_owned()),
        Some(text) => match duration::parse_nanos(text).map(u64::try_from) {
            Ok(Ok(nanos)) => Ok(Duration::from_nanos(nanos)),
            Ok(Err(_)) => Err(format!("Invalid value: {text:?}: must be greater than or equal to 0")),
            Err(_) => Err(format!("Invalid value: {text:?}: time: invalid duration {text:?}")),
        },
    };
    let default_cache = default_cache.unwrap_or_else(|why| {
        errors.push(format!("providers.defaultCacheDuration: {why}"));
        Duration::ZERO
    });
    let token = wire.token_attributes.map(|wire| token::attributes(wire, &api_version, errors));
    let (args, env) = (wire.args.unwrap_or_default(), wire.env.unwrap_or_default());
    ProviderConfig { program: programs.join(&name), name, match_images, default_cache, api_version, args, env, token }
}

/// Returns the part of a glob that is matched: host and path of a URL, without its scheme.
fn match_key(glob: &str) -> Result<String, String> {
    if glob.chars().any(|c| c.is_ascii_control()) {
        return Err("net/url: invalid control character in URL".into());
    }
    let (authority, path) = split_path(&glob[..glob.find(['?', '#']).unwrap_or(glob.len())]);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let allowed = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || HOST_SYMBOLS.contains(c);
    if let Some(sign) = host.chars().find(|c| !allowed(*c)) {
        return Err(format!("invalid character {:?} in host name", sign.to_string()));
    }
    let bracket = host.rfind(']');
    if host.starts_with('[') && bracket.is_none() {
        return Err("missing ']' in host".into());
    }
    let after = if host.starts_with('[') { bracket.unwrap_or_default() } else { 0 };
    if let Some((_, port)) = host[after..].rsplit_once(':')
        && !port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(format!("invalid port {:?} after host", format!(":{port}")));
    }
    let whole = |escape: &str| escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if let Some(broken) = path.split('%').skip(1).find(|escape| !whole(escape)) {
        let shown: String = broken.chars().take(2).collect();
        return Err(format!("invalid URL escape {:?}", format!("%{shown}")));
    }
    Ok(format!("{host}{}", percent_decode_str(path).decode_utf8_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "{name: p, matchImages: [a.io], defaultCacheDuration: 1m, \
                        apiVersion: credentialprovider.kubelet.k8s.io/v1}";

    fn read(providers: &str) -> Result<Vec<ProviderConfig>, String> {
        let text =
            format!("apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [{providers}]");
        validate(decode(&text)?, Path::new("bin")).map_err(|error| error.to_string())
    }

    #[test]
    fn errors_are_upstreams() {
        let with = |from: &str, to: &str| read(&GOOD.replace(from, to)).unwrap_err();
        let of = |why: &str| format!("failed to validate credential provider config: providers{why}");
        for (from, to, wanted) in [
            ("name: p", "name: a/b", ".name: Invalid value: \"a/b\": provider name cannot contain '/'"),
            ("name: p", "name: 'a b'", ".name: Invalid value: \"a b\": provider name cannot contain spaces"),
            ("name: p", "name: ..", ".name: Invalid value: \"..\": provider name cannot be '..'"),
            ("name: p, ", "", ".name: Required value"),
            ("[a.io]", "[]", ".matchImages: Required value: at least 1 item in matchImages is required"),
            (
                "[a.io]",
                "['%a.io']",
                ".matchImages: Invalid value: \"%a.io\": match image is invalid: parse \"https://%a.io\": invalid character \"%\" in host name",
            ),
            ("defaultCacheDuration: 1m,", "", ".defaultCacheDuration: Required value"),
            ("1m", "-1m", ".defaultCacheDuration: Invalid value: \"-1m\": must be greater than or equal to 0"),
            (
                "k8s.io/v1}",
                "k8s.io/v2}",
                ".apiVersion: Unsupported value: \"credentialprovider.kubelet.k8s.io/v2\": supported values: \
                 \"credentialprovider.kubelet.k8s.io/v1\", \"credentialprovider.kubelet.k8s.io/v1alpha1\", \
                 \"credentialprovider.kubelet.k8s.io/v1beta1\"",
            ),
            (
                "k8s.io/v1}",
                "k8s.io/v1, tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token}}",
                ".tokenAttributes.requireServiceAccount: Required value",
            ),
        ] {
            assert_eq!(with(from, to), of(wanted));
        }
        assert_eq!(read("").unwrap_err(), of(": Required value: at least 1 item in plugins is required"));
        assert!(read(&format!("{GOOD}, {GOOD}")).unwrap_err().starts_with("duplicate provider name \"p\""));
        assert!(with("name: p", "name: p, image: x").contains("image"), "unknown fields are refused");
        let both = with("[a.io]", "['a.io:x', 'b.io/%zz']");
        assert!(both.contains("providers: [") || both.contains("config: ["), "{both}");
        assert!(both.contains("invalid port \":x\" after host") && both.contains("invalid URL escape \"%zz\""));
    }

    #[test]
    fn a_provider_is_called_for_its_own_images() {
        let globs = "['*.ecr.*.test', 'a.io:5000/team', '[::1]/x', 'u@b.io/%74eam?q']";
        let env = "env: [{name: TOKEN, value: hidden}], args: [get], apiVersion";
        let all = read(&GOOD.replace("[a.io]", globs).replace("apiVersion", env)).unwrap();
        for (repository, served) in [
            ("1.ecr.eu.test/x", true),
            ("ecr.eu.test/x", false),
            ("a.io:5000/team/x", true),
            ("a.io/team/x", false),
            ("a.io:5000/other", false),
            ("b.io/team/x", true),
        ] {
            assert_eq!(all[0].serves(repository), served, "{repository}");
        }
        assert_eq!((all[0].program.as_path(), all[0].default_cache.as_secs()), (Path::new("bin/p"), 60));
        assert!(!format!("{all:?}").contains("hidden"), "never shown");
    }

    #[test]
    fn files_of_a_folder_are_read_in_order_and_programs_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let (programs, configs) = (dir.path().join("bin"), dir.path().join("configs"));
        let read = || CredentialProviders::read(&configs, &programs).map_err(|error| error.to_string());
        assert!(read().unwrap_err().contains("did not exist"));
        std::fs::create_dir(&programs).unwrap();
        assert!(read().unwrap_err().starts_with("unable to access path"));
        std::fs::create_dir(&configs).unwrap();
        std::fs::write(configs.join("README"), "not read").unwrap();
        assert!(read().unwrap_err().starts_with("no configuration files found"));
        for (name, version) in [("b", "v1beta1"), ("a", "v1")] {
            let provider = GOOD.replace("name: p", &format!("name: {name}"));
            let head = format!("apiVersion: kubelet.config.k8s.io/{version}\nkind: CredentialProviderConfig\n");
            std::fs::write(configs.join(format!("{name}.yaml")), format!("{head}providers: [{provider}]")).unwrap();
        }
        assert!(read().unwrap_err().ends_with("bin/a did not exist"));
        for name in ["a", "b"] {
            std::fs::write(programs.join(name), "").unwrap();
        }
        #[cfg(unix)]
        {
            assert!(read().unwrap_err().contains("permission denied"));
            for name in ["a", "b"] {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
                std::fs::set_permissions(programs.join(name), mode).unwrap();
            }
        }
        let names: Vec<String> = read().unwrap().all.into_iter().map(|provider| provider.name).collect();
        assert_eq!(names, ["a", "b"]);
        for (text, why) in [("", "Kind"), ("kind: Pod\napiVersion: v1", "wrong Kind"), ("{", "error decoding")] {
            std::fs::write(configs.join("c.json"), text).unwrap();
            assert!(read().unwrap_err().contains(why), "{text}");
        }
    }
}
