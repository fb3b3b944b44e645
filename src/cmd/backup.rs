//! `coracle backup` and `coracle restore`: the store's state at one revision in a file, and a new store of it, from either
//! store into either.

use std::path::PathBuf;

use apiserver::bootstrap::joining::keys_of_live_servers;
use apiserver_storage::options::{StoreConfig, StoreOptions};
use apiserver_storage::store::embedded::backup::{self as embedded, Contents};
use apiserver_storage::store::embedded::sealed::SealingKey;
use apiserver_storage::store::etcd::backup as etcd;
use clap::Args;
use machinery_env::Env;

use crate::compose;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::result;

/// Arguments of both verbs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Backup {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Key of the encrypted backup: base64 of 32 random bytes
    #[arg(long, env = "CORACLE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreOptions,
}

/// The key in `--key-file`.
fn key(flags: &Backup) -> Result<Option<SealingKey>, Failure> {
    let Some(file) = &flags.key_file else { return Ok(None) };
    let refused = |why: String| Failure::Usage(format!("--key-file {}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| refused(error.to_string()))?;
    SealingKey::parse(&text).map(Some).ok_or_else(|| {
        refused("not base64 of 32 bytes; `head -c 32 /dev/urandom | base64 > FILE` makes a key".to_owned())
    })
}

/// Writes the state of a store, also of one whose process runs.
///
/// # Errors
/// If there is no store, or the file can't be written.
pub(crate) fn save(flags: &Backup, common: &Common) -> Result<(), Failure> {
    let (key, file) = (key(flags)?, &flags.file);
    let contents = match flags.store.config()? {
        StoreConfig::DataFolder => embedded::backup(&DataDir::of(common)?.store(), file, key.as_ref()),
        StoreConfig::Folder(store) => embedded::backup(&store, file, key.as_ref()),
        StoreConfig::Etcd(config) => {
            let live = keys_of_live_servers();
            compose::runtime()?.block_on(etcd::backup(&config, &Env::real(), file, key.as_ref(), &live))
        }
    };
    print(&file.display(), contents?)
}

/// Makes a new store of a backup.
///
/// # Errors
/// If the file is no whole backup, there is a store, or a process uses the data folder.
pub(crate) fn load(flags: &Backup, common: &Common) -> Result<(), Failure> {
    let (key, file) = (key(flags)?, &flags.file);
    let store = match flags.store.config()? {
        StoreConfig::DataFolder => DataDir::of(common)?.store(),
        StoreConfig::Folder(store) => store,
        StoreConfig::Etcd(config) => {
            let env = Env::real();
            let contents = compose::runtime()?.block_on(etcd::restore(&config, &env, file, key.as_ref()))?;
            return print(&format_args!("{}{}", config.endpoints.join(","), config.prefix), contents);
        }
    };
    // No process may begin a store here meanwhile.
    let _lock = DataDir::of(common)?.lock()?;
    let contents = embedded::restore(file, &store, key.as_ref())?;
    print(&store.display(), contents)
}

fn print(place: &dyn std::fmt::Display, Contents { revision, keys }: Contents) -> Result<(), Failure> {
    Ok(result(format_args!("{place}: {keys} objects at revision {revision}\n"))?)
}
