//! `coracle pull`: writes an image's module to a file.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use images::{ConfigForm, Image, Keyring, SecretIdentity, download, read_registries, read_signature_policy};
use machinery_env::Env;

use crate::registry;
use tools_command::data_dir::DataDir;
use tools_command::environment::docker_config;
use tools_command::environment::proxies;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::print_stdout;
use tools_command::output_file;
use tools_command::progress::Progress;
use tools_command::runtime;

/// Prefix of images in the registry of the cluster in `--data-dir`.
const BUILT_IN: &str = "registry.local/";

/// How other registries are reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct Access {
    /// Registry configuration: mirrors, private CAs, plain HTTP, accounts (docs/registries.md, "Registries")
    #[arg(long, env = "CORACLE_REGISTRIES", value_name = "FILE")]
    pub(crate) registries: Option<PathBuf>,
    /// Signature policy: images that must be signed, and their keys (docs/registries.md, "Signatures")
    #[arg(long, env = "CORACLE_SIGNATURE_POLICY", value_name = "FILE")]
    pub(crate) signature_policy: Option<PathBuf>,
    /// Folder whose config.json has accounts of registries [default: $DOCKER_CONFIG, else ~/.docker]
    #[arg(long, env = "CORACLE_DOCKER_CONFIG", value_name = "DIR")]
    pub(crate) docker_config: Option<PathBuf>,
}

/// Arguments of `coracle pull`.
#[derive(Debug, Clone, Args)]
pub struct Pull {
    /// The image: registry.local/NAME:TAG of the cluster in --data-dir, or one of any registry
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Output file of the module; an existing file is replaced
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Pulls an image's module into a file and prints the image's digest.
///
/// # Errors
/// If the image can't be pulled, or the file can't be written.
pub fn run(flags: &Pull, common: &Common) -> Result<(), Failure> {
    let (image, module) = fetch(&flags.reference, &flags.access, common)?;
    output_file::write(&flags.file, |mut file| Ok(file.write_all(&module)?))?;
    print_stdout!("{} ({} bytes)", image.image_id, module.len())?;
    Ok(())
}

/// Pulls an image; returns it with its module's bytes.
///
/// # Errors
/// If it can't be pulled.
pub(super) fn fetch(reference: &str, access: &Access, common: &Common) -> anyhow::Result<(Image, Vec<u8>)> {
    let registries = read_registries(access.registries.as_deref())?.with_proxies(proxies());
    let policy = read_signature_policy(access.signature_policy.as_deref())?;
    let built_in = match reference.starts_with(BUILT_IN) {
        true => Some(registry::access(&DataDir::of(common)?)?),
        false => None,
    };
    let keyring = keyring(access.docker_config.clone())?;
    let runtime = runtime::single_threaded()?;
    let folder = tempfile::tempdir().context("cannot make a folder for what is pulled")?;
    let progress = Progress::stderr();
    progress.doing(&format!("pulling {reference}"));
    let sources = (registries, built_in, policy);
    let pulled = runtime.block_on(download(reference, &keyring, sources, folder.path(), Env::real()))?;
    progress.done();
    let module = std::fs::read(&pulled.module).context("cannot read what was pulled")?;
    Ok((pulled.image, module))
}

/// The caller's accounts from `docker login` and similar tools.
fn keyring(folder: Option<PathBuf>) -> anyhow::Result<Keyring> {
    let folder =
        folder.or_else(docker_config).or_else(|| Some(directories::BaseDirs::new()?.home_dir().join(".docker")));
    let mut keyring = Keyring::default();
    let Some(path) = folder.map(|folder| folder.join("config.json")) else { return Ok(keyring) };
    if let Ok(bytes) = std::fs::read(&path) {
        let own = SecretIdentity { namespace: String::new(), name: path.display().to_string(), uid: String::new() };
        keyring.add(&own, ConfigForm::Json, &bytes).with_context(|| path.display().to_string())?;
    }
    Ok(keyring)
}
