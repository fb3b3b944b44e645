//! `coracle backup` and `coracle restore`: the store's state at one revision in a file, and a new store of it.

use std::path::{Path, PathBuf};

use apiserver_storage::store::embedded::backup::{Contents, backup, restore};
use apiserver_storage::store::embedded::sealed::BackupKey;
use clap::Args;

use super::Failure;
use super::flags::store::StoreFlags;
use crate::config::{Common, StoreConfig};
use crate::data_dir::DataDir;
use crate::output::result;

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
    store: StoreFlags,
}

impl Backup {
    fn store(&self, data: &DataDir) -> Result<PathBuf, Failure> {
        match self.store.config()? {
            StoreConfig::DataFolder => Ok(data.store()),
            StoreConfig::Folder(path) => Ok(path),
            StoreConfig::Etcd(_) => Err(Failure::Usage(
                "--store etcd:…: backups are of the embedded store; take etcd's with `etcdctl snapshot save`".into(),
            )),
        }
    }
}

/// The key in `--key-file`.
fn key(flags: &Backup) -> Result<Option<BackupKey>, Failure> {
    let Some(file) = &flags.key_file else { return Ok(None) };
    let refused = |why: String| Failure::Usage(format!("--key-file {}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| refused(error.to_string()))?;
    BackupKey::parse(&text).map(Some).ok_or_else(|| {
        refused("not base64 of 32 bytes; `head -c 32 /dev/urandom | base64 > FILE` makes a key".to_owned())
    })
}

/// Writes the state of a store, also of one whose process runs.
///
/// # Errors
/// If there is no store, or the file can't be written.
pub(crate) fn save(flags: &Backup, common: &Common) -> Result<(), Failure> {
    let store = flags.store(&DataDir::of(common)?)?;
    let contents = backup(&store, &flags.file, key(flags)?.as_ref())?;
    print(&flags.file, contents)
}

/// Makes a new store of a backup.
///
/// # Errors
/// If the file is no whole backup, or there is a store or a process that uses the data folder.
pub(crate) fn load(flags: &Backup, common: &Common) -> Result<(), Failure> {
    let data = DataDir::of(common)?;
    let store = flags.store(&data)?;
    // No process may begin a store here meanwhile.
    let _lock = data.lock()?;
    let contents = restore(&flags.file, &store, key(flags)?.as_ref())?;
    print(&store, contents)
}

fn print(path: &Path, Contents { revision, keys }: Contents) -> Result<(), Failure> {
    Ok(result(format_args!("{}: {keys} objects at revision {revision}\n", path.display()))?)
}
