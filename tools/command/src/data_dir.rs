//! The layout of a data folder, its permissions, and its lock: one process at a time owns a folder.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use machinery_env::Env;

use crate::flags::Common;
#[cfg(unix)]
use crate::packaged;

/// Permission bits by which others than the owner have access.
#[cfg(unix)]
const OTHERS: u32 = 0o077;

/// A cluster's data folder.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// `--data-dir`, or the platform's data folder for `coracle`; absolute.
    ///
    /// # Errors
    /// If the platform has no such folder.
    pub fn of(common: &Common) -> anyhow::Result<Self> {
        let path = match &common.data_dir {
            Some(path) => path.clone(),
            None => directories::ProjectDirs::from("dev", "", "coracle")
                .context("this platform names no data folder: give one with --data-dir DIR")?
                .data_dir()
                .to_path_buf(),
        };
        let path = std::path::absolute(&path).with_context(|| format!("--data-dir {}", path.display()))?;
        Ok(Self(path))
    }

    /// A folder at a known place.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The socket at which the next process asks for those of the running one.
    pub fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// The file whose lock belongs to the running process.
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// What a node knows of its cluster while the API server is away.
    pub fn node_configuration(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// The certificate of the cluster's authority.
    pub fn authority(&self) -> PathBuf {
        self.pki().join("ca.crt")
    }

    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub fn node(&self, name: &str) -> PathBuf {
        self.0.join("nodes").join(name)
    }

    pub fn registry_address(&self) -> PathBuf {
        self.0.join("registry-address")
    }

    pub fn dns_address(&self) -> PathBuf {
        self.0.join("dns-address")
    }

    pub fn registry_password(&self) -> PathBuf {
        self.0.join("registry-password")
    }

    pub fn network(&self) -> PathBuf {
        self.0.join("network")
    }

    /// The folder's own name among the processes of a cluster, made once. The lock keeps it unique.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn instance(&self, env: &Env) -> anyhow::Result<String> {
        let path = self.0.join("instance");
        if let Ok(text) = std::fs::read_to_string(&path)
            && !text.trim().is_empty()
        {
            return Ok(text.trim().to_owned());
        }
        let instance = env.uid();
        write_atomically(&path, format!("{instance}\n").as_bytes())?;
        Ok(instance)
    }

    /// The name of this process in elections. It is the last process's name only if that one has certainly ended: the lock
    /// proves it for this very folder and boot of the machine. A copied folder or a cloned machine gets another name, so
    /// that two processes never lead under one.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn candidate(&self, env: &Env) -> anyhow::Result<String> {
        let path = self.0.join("candidate");
        let held = std::fs::read_to_string(&path).unwrap_or_default();
        let place = self.place();
        let candidate = last_candidate(&held, place.as_deref()).map_or_else(|| env.uid(), str::to_owned);
        write_atomically(&path, format!("{candidate}\n{}\n", place.unwrap_or_default()).as_bytes())?;
        Ok(candidate)
    }

    /// The folder and the boot of the machine; `None` where the system doesn't report them.
    #[cfg(unix)]
    fn place(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let folder = std::fs::metadata(&self.0).ok()?;
        Some(format!("{} {}:{}", boot.trim(), folder.dev(), folder.ino()))
    }

    #[cfg(not(unix))]
    fn place(&self) -> Option<String> {
        None
    }

    /// A file that proves that a cluster has run here: its store can't be new.
    pub fn trace(&self) -> Option<PathBuf> {
        let traces = [self.kubeconfig(), self.registry_address(), self.images(), self.0.join("nodes")];
        traces.into_iter().find(|path| path.exists())
    }

    /// Rejects a missing or empty store where a cluster has run: a silent fresh start would look like total data loss.
    ///
    /// # Errors
    /// If the store at `store` is `empty` and there is a trace of a cluster.
    pub fn check_store_not_lost(&self, store: &Path, empty: bool) -> anyhow::Result<()> {
        match self.trace().filter(|_| empty) {
            None => Ok(()),
            Some(trace) => anyhow::bail!(
                "the cluster's objects are gone: {} exists, but there is nothing in the store {}; put a copy of the store \
                 back, or remove the whole folder {} to begin a new cluster (or give another one with --data-dir)",
                trace.display(),
                store.display(),
                self.0.display()
            ),
        }
    }

    /// Creates the folder if needed, removes other users' access, and locks it for this process until the lock is
    /// dropped.
    ///
    /// # Errors
    /// If the folder can't be created or closed, or another process has locked it.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        create_private_dir(&self.0)?;
        self.close()?;
        let path = self.lock_file();
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
                "the data folder {} is in use by another coracle process: stop it, or give another folder with --data-dir",
                self.0.display()
            ),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

impl DataDir {
    /// Removes other users' access: the folder holds keys and Secrets.
    #[cfg(unix)]
    fn close(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let path = self.0.display();
        let metadata = std::fs::metadata(&self.0).with_context(|| format!("cannot look at {path}"))?;
        if let Some(why) = self.foreign_owner(rustix::process::geteuid().as_raw(), metadata.uid()) {
            anyhow::bail!(why);
        }
        let mode = metadata.permissions().mode();
        if mode & OTHERS == 0 {
            return Ok(());
        }
        let refuse = |why: &str| {
            format!(
                "other users can read the data folder {path} (mode {:o}), where keys and Secrets lie, {why}: run \
                 `chmod 700 {path}`, or give a folder of its own with --data-dir",
                mode & 0o7777
            )
        };
        // A home or /tmp given by mistake must not be closed to other users.
        let mut names = std::fs::read_dir(&self.0).with_context(|| format!("cannot read {path}"))?.peekable();
        anyhow::ensure!(names.peek().is_none() || self.is_ours(), refuse("and it holds other things, too"));
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&self.0, closed).with_context(|| refuse("and it can't be closed"))?;
        tracing::warn!(folder = %path, "other users could read the data folder; it was closed to them (mode 700)");
        Ok(())
    }

    /// Why root may not run in a folder of another user: its files would keep that user's cluster from starting.
    #[cfg(unix)]
    fn foreign_owner(&self, user: u32, owner: u32) -> Option<String> {
        if user != 0 || owner == 0 {
            return None;
        }
        let next = match packaged::unit_of(&self.0) {
            Some(unit) => format!("sudo systemctl start {unit}"),
            None => format!("sudo -u '#{owner}' coracle …"),
        };
        Some(format!(
            "the data folder {} belongs to user {owner}, who could not use root's files in it: run `{next}`, or `chown` it",
            self.0.display()
        ))
    }

    #[cfg(not(unix))]
    fn close(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Whether the folder belongs to a cluster.
    #[cfg(unix)]
    fn is_ours(&self) -> bool {
        self.pki().exists() || self.store().exists()
    }
}

/// The name in the file `candidate`, if the file was written at this place.
fn last_candidate<'a>(held: &'a str, place: Option<&str>) -> Option<&'a str> {
    let (name, written_at) = held.trim_end().split_once('\n')?;
    (Some(written_at) == place && !name.is_empty()).then_some(name)
}

/// Lock of a data folder; the operating system releases it at the end of the process.
#[derive(Debug)]
pub struct Lock {
    _file: std::fs::File,
}

/// Creates a folder with mode 0700.
///
/// # Errors
/// On I/O errors.
pub fn create_private_dir(path: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Replaces a file atomically: readers see the old or the new content.
///
/// # Errors
/// On I/O errors.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let fail = || format!("cannot write {}", path.display());
    // A start on a full disk must not rewrite unchanged files.
    if is_private(path) && std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let folder = path.parent().with_context(fail)?;
    // NamedTempFile has mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(fail)?;
    file.write_all(bytes).with_context(fail)?;
    file.as_file().sync_all().with_context(fail)?;
    file.persist(path).with_context(fail)?;
    Ok(())
}

/// Whether an existing file is accessible to its owner only.
#[cfg(unix)]
fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o777 == 0o600)
}

#[cfg(not(unix))]
fn is_private(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().join("data"));
        let held = data.lock().unwrap();
        let error = data.lock().unwrap_err().to_string();
        assert!(error.contains("in use by another"), "{error}");
        drop(held);
        data.lock().unwrap();
    }

    #[test]
    fn a_copied_folder_is_another_candidate() {
        let held = "uid-1\nboot-1 8:77\n";
        assert_eq!(last_candidate(held, Some("boot-1 8:77")), Some("uid-1"));
        for place in [Some("boot-1 8:78"), Some("boot-2 8:77"), Some(""), None] {
            assert_eq!(last_candidate(held, place), None, "{place:?}");
        }
        for unknown in ["", "uid-1\n", "uid-1\n\n", "\nboot-1 8:77\n"] {
            assert_eq!(last_candidate(unknown, None), None);
            assert_eq!(last_candidate(unknown, Some("boot-1 8:77")), None);
        }
        let temp = tempfile::tempdir().unwrap();
        let folder = |name: &str| DataDir::at(temp.path().join(name));
        let (one, copy) = (folder("one"), folder("copy"));
        let env = Env::real();
        for data in [&one, &copy] {
            drop(data.lock().unwrap());
        }
        let first = one.candidate(&env).unwrap();
        #[cfg(target_os = "linux")]
        assert_eq!(one.candidate(&env).unwrap(), first, "the next start of the same folder leads at once");
        std::fs::copy(temp.path().join("one/candidate"), temp.path().join("copy/candidate")).unwrap();
        assert_ne!(copy.candidate(&env).unwrap(), first);
    }

    #[cfg(unix)]
    #[test]
    fn root_keeps_out_of_folders_of_other_users() {
        let data = DataDir::at("/var/lib/coracle/up".into());
        for (user, owner) in [(0, 0), (1000, 1000), (1000, 0)] {
            assert_eq!(data.foreign_owner(user, owner), None);
        }
        let why = data.foreign_owner(0, 995).unwrap();
        assert!(why.contains("user 995") && why.contains("`sudo systemctl start coracle`"), "{why}");
        let other = DataDir::at("/srv/shop".into()).foreign_owner(0, 995).unwrap();
        assert!(other.contains("sudo -u '#995' coracle"), "{other}");
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_can_read_is_closed_or_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = temp.path().join("data");
        let data = DataDir::at(path.clone());
        std::fs::create_dir(&path).unwrap();
        open(&path);
        drop(data.lock().unwrap());
        assert_eq!(mode(&path), 0o700, "an empty one");
        std::fs::create_dir(data.pki()).unwrap();
        open(&path);
        drop(data.lock().unwrap());
        assert_eq!(mode(&path), 0o700, "a cluster's own");
        // A home folder that is given by mistake is not changed.
        let home = temp.path().join("home");
        std::fs::create_dir_all(home.join("letters")).unwrap();
        open(&home);
        let error = DataDir::at(home.clone()).lock().unwrap_err().to_string();
        assert!(error.contains("chmod 700") && error.contains("--data-dir"), "{error}");
        assert_eq!(mode(&home), 0o755);
        assert!(!home.join("lock").exists(), "nothing is left behind");
    }

    #[test]
    fn an_empty_store_beside_a_cluster_s_traces_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().to_owned());
        // A first start, or one that failed before its first write: keys only.
        std::fs::create_dir(data.pki()).unwrap();
        data.check_store_not_lost(&data.store(), true).unwrap();
        for trace in [data.kubeconfig(), data.node("coracle-1"), data.images()] {
            std::fs::create_dir_all(&trace).unwrap();
            data.check_store_not_lost(&data.store(), false).unwrap();
            let error = data.check_store_not_lost(&data.store(), true).unwrap_err().to_string();
            assert!(
                error.contains("put a copy of the store back") && error.contains("remove the whole folder"),
                "{error}"
            );
            std::fs::remove_dir_all(&trace).unwrap();
            let _ = std::fs::remove_dir(temp.path().join("nodes"));
        }
    }

    #[test]
    fn files_are_private_and_replaced_whole() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
            let found = || std::fs::metadata(&path).unwrap();
            assert_eq!(found().mode() & 0o777, 0o600);
            let before = found().ino();
            write_atomically(&path, b"two").unwrap();
            assert_eq!(found().ino(), before, "the same again takes no room");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
            write_atomically(&path, b"two").unwrap();
            assert_eq!(found().mode() & 0o777, 0o600, "what others could read is theirs no more");
        }
    }
}
