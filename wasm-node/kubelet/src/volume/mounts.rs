//! Prepares the preopened folders of a container from its mounts: whole volumes, folders within them, and single files
//! (<https://kubernetes.io/docs/concepts/storage/volumes/#using-subpath>).
//!
//! Only folders can be preopened. A single file therefore gets a folder of its own, which contains nothing else. It is
//! a copy if the volume is the API's (upstream doesn't update a file mounted by `subPath` either), and the same file if
//! guests may write it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use runtime_api::Preopen;

use super::local::LocalVolumes;
use super::paths::{file_folder, folder};
use super::{host_path, is_of_claim, is_read_only};
use crate::config::environment::expand;

/// Prefix of the message for a mount that an image doesn't allow.
pub(crate) const IMAGE_VOLUME_MOUNT_FAILED: &str = "ImageVolumeMountFailed";

/// Why a container's mounts can't be prepared; the text is the event's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MountError {
    /// The pod, or an object that it refers to, is invalid.
    #[error("{0}")]
    Config(String),
    /// The image has no such file or folder. The prefix is from the container runtime interface.
    #[error("{IMAGE_VOLUME_MOUNT_FAILED}: {0}")]
    Image(String),
}

impl From<String> for MountError {
    fn from(why: String) -> Self {
        Self::Config(why)
    }
}

/// The guest's hosts file.
const HOSTS: &str = "/etc/hosts";

/// Volumes outside the pod's own folder.
pub(crate) struct ExternalVolumes<'a> {
    /// Unpacked images by volume name.
    pub(crate) images: &'a BTreeMap<String, PathBuf>,
    /// Folders that `hostPath` may lead to.
    pub(crate) allowed: &'a [PathBuf],
    /// Volumes that outlive pods.
    pub(crate) local: &'a LocalVolumes,
    /// The content of `/etc/hosts`, if the pod has that file.
    pub(crate) hosts: Option<&'a str>,
}

/// Returns the preopened folders for the container's run number `attempt`; `variable` resolves its environment. Creates
/// the missing target of a `subPath`, except in an image. Reads and writes files.
pub(crate) fn preopens(
    pod: &Pod,
    container: &Container,
    (dir, attempt): (&Path, u32),
    external: &ExternalVolumes<'_>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Preopen>, MountError> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let (mut open, mut files) = (Vec::new(), BTreeMap::<PathBuf, Vec<MountedFile>>::new());
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| format!("volume {:?} is not in the pod", mount.name))?;
        let image = volume.image.as_ref().and(external.images.get(&volume.name));
        let host = image.cloned().unwrap_or_else(|| folder(dir, &volume.name));
        let writable = mount.read_only != Some(true) && !is_read_only(volume);
        let alone = volume.host_path.is_some() && host_path::is_file(&host);
        let Some(sub_path) = sub_path(mount, variable)? else {
            if alone {
                let (parent, file) = MountedFile::of_host(&host, mount, writable)?;
                files.entry(parent).or_default().push(file);
                continue;
            }
            open.push(whole(volume, host, mount, (writable, external))?);
            continue;
        };
        if alone {
            return Err(sub_path_error((mount, container), &io::ErrorKind::NotADirectory.into()).into());
        }
        let mut of = whole(volume, host, mount, (writable, external))?;
        let root = of.open();
        let (root, sub_path, prepared) = match image {
            Some(_) => in_image(root, sub_path, mount)?,
            None => prepare_in(root, sub_path, (mount, container))?,
        };
        let guest = Path::new(&mount.mount_path);
        match (prepared, guest.parent(), guest.file_name()) {
            (SubPathTarget::Folder, ..) => {
                of.sub_paths.push(sub_path);
                open.push(of);
            }
            (SubPathTarget::File(_), ..) if writable && external.local.has(&of.host) => {
                return Err(format!(
                    "{} is a single file of a claim's volume: mount it read-only, or the folder that it lies in, as what is written to it alone could not be counted",
                    mount.mount_path
                )
                .into());
            }
            (SubPathTarget::File(source), Some(parent), Some(name)) => {
                let copied = !writable && volume.host_path.is_none() && !is_of_claim(volume) && image.is_none();
                let file = MountedFile { volume: root, sub_path, source, name: name.into(), writable, copied };
                files.entry(parent.to_owned()).or_default().push(file);
            }
            (SubPathTarget::File(_), ..) => {
                return Err(format!("a file cannot be mounted at {:?}", mount.mount_path).into());
            }
        }
    }
    let folder = file_folder(dir).join(&container.name);
    let mut alone = folders_of_files(&open, files, &folder, attempt)?;
    // A mount there or above is the volume's.
    let is_mounted =
        container.volume_mounts.iter().flatten().any(|mount| Path::new(HOSTS).starts_with(&mount.mount_path));
    if let Some(hosts) = external.hosts.filter(|_| !is_mounted) {
        let put = write_hosts_file(hosts, &mut alone, folder.join(format!("{attempt}.etc")));
        put.map_err(|error| format!("failed to prepare {HOSTS}: {error}"))?;
    }
    open.extend(alone);
    open.shrink_to_fit();
    Ok(open)
}

/// Creates folders below `dir` for files that are mounted alone, by the guest's folder in which they appear.
fn folders_of_files(
    open: &[Preopen],
    files: BTreeMap<PathBuf, Vec<MountedFile>>,
    dir: &Path,
    attempt: u32,
) -> Result<Vec<Preopen>, String> {
    let mut made_of = Vec::new();
    let taken: BTreeSet<PathBuf> = open.iter().map(|preopen| PathBuf::from(&preopen.guest)).collect();
    for (n, (parent, files)) in files.into_iter().enumerate() {
        if let Some(other) = taken.iter().find(|other| parent.starts_with(other)) {
            let (name, other) = (parent.join(&files[0].name), other.display());
            return Err(format!(
                "{} is a single file within the mount {other}: a guest is given folders",
                name.display()
            ));
        }
        let host = dir.join(format!("{attempt}.{n}"));
        let writable = files.iter().any(|file| file.writable);
        if let Some(file) = files.iter().find(|file| writable && !file.writable && !file.copied) {
            let name = parent.join(&file.name);
            return Err(format!("{} is mounted read-only in the folder of a file that is not", name.display()));
        }
        let made = fs::create_dir_all(&host).and_then(|()| files.iter().try_for_each(|file| file.put(&host)));
        made.map_err(|error| format!("failed to prepare the files of {}: {error}", parent.display()))?;
        made_of.push(Preopen { host, sub_paths: Vec::new(), guest: parent.display().to_string(), writable });
    }
    Ok(made_of)
}

/// Writes `/etc/hosts` beside the files that are mounted alone in `/etc`, else into a folder of its own.
fn write_hosts_file(hosts: &str, alone: &mut Vec<Preopen>, own: PathBuf) -> io::Result<()> {
    let host = match alone.iter().find(|folder| folder.guest == "/etc") {
        Some(folder) => folder.host.clone(),
        None => {
            fs::create_dir_all(&own)?;
            let folder = Preopen { host: own.clone(), sub_paths: Vec::new(), guest: "/etc".into(), writable: false };
            alone.push(folder);
            own
        }
    };
    let file = host.join("hosts");
    // A file of an earlier try, which may be a link by now: guests write to some of these folders.
    if file.symlink_metadata().is_ok() {
        fs::remove_file(&file)?;
    }
    io::Write::write_all(&mut File::create_new(file)?, hosts.as_bytes())
}

/// Returns the preopen of a whole volume: no guest can replace the volume's parent folder.
fn whole(
    volume: &Volume,
    host: PathBuf,
    mount: &VolumeMount,
    (writable, external): (bool, &ExternalVolumes<'_>),
) -> Result<Preopen, String> {
    let (host, sub_paths) = match &volume.host_path {
        Some(source) => host_path::split_allowed(&host, Path::new(&source.path), external.allowed)?,
        None if is_of_claim(volume) => {
            let real = fs::read_link(&host).map_err(|error| error.to_string())?;
            match external.local.has(&real) {
                true => (real, Vec::new()),
                false => host_path::split_allowed(&host, &real, external.allowed)?,
            }
        }
        None => (host, Vec::new()),
    };
    Ok(Preopen { host, sub_paths, guest: mount.mount_path.clone(), writable })
}

/// A file that is mounted alone.
struct MountedFile {
    volume: File,
    sub_path: PathBuf,
    source: File,
    name: PathBuf,
    writable: bool,
    /// Whether the guest sees a copy from the container's creation.
    copied: bool,
}

impl MountedFile {
    /// Returns the guest's folder and the file of a volume that is a single file.
    fn of_host(volume: &Path, mount: &VolumeMount, writable: bool) -> Result<(PathBuf, Self), String> {
        let guest = Path::new(&mount.mount_path);
        let (Some(parent), Some(name)) = (guest.parent(), guest.file_name()) else {
            return Err(format!("a file cannot be mounted at {:?}", mount.mount_path));
        };
        let sub_path = PathBuf::from(host_path::FILE);
        let source = File::open(volume.join(&sub_path)).map_err(|error| error.to_string())?;
        let (volume, name) = (File::open(volume).map_err(|error| error.to_string())?, name.into());
        Ok((parent.to_owned(), Self { volume, sub_path, source, name, writable, copied: false }))
    }

    fn put(&self, folder: &Path) -> io::Result<()> {
        let to = folder.join(&self.name);
        if to.symlink_metadata().is_ok() {
            fs::remove_file(&to)?;
        }
        if !self.copied {
            let folder = File::open(folder)?;
            return cap_primitives::fs::hard_link(&self.volume, &self.sub_path, &folder, &self.name);
        }
        io::copy(&mut &self.source, &mut File::create(&to)?).map(drop)
    }
}

/// Returns `subPath`, or the expanded `subPathExpr`; `None` for the whole volume. Error texts are upstream's.
fn sub_path(mount: &VolumeMount, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, String> {
    let named = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(ToOwned::to_owned);
    let text = match (named(&mount.sub_path), named(&mount.sub_path_expr)) {
        (Some(text), _) => text,
        (None, Some(expression)) => {
            let missing = std::cell::RefCell::new(BTreeSet::new());
            let text = expand(&expression, &|name| {
                let value = variable(name).filter(|value| !value.is_empty());
                if value.is_none() {
                    missing.borrow_mut().insert(name.to_owned());
                }
                Some(value.unwrap_or_default())
            });
            let missing = missing.into_inner();
            if !missing.is_empty() {
                let names: Vec<String> = missing.into_iter().collect();
                return Err(format!("missing value for {}", names.join(", ")));
            }
            text
        }
        (None, None) => return Ok(None),
    };
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Err(format!("error SubPath `{text}` must not be an absolute path"));
    }
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(format!("unable to provision SubPath `{text}`: must not contain '..'"));
    }
    Ok(Some(path))
}

/// The type of a sub path's target.
enum SubPathTarget {
    Folder,
    File(File),
}

/// Inspects the target of a sub path, and creates a folder if it is missing. Never leaves the volume.
fn prepare(root: &File, sub_path: &Path) -> io::Result<SubPathTarget> {
    use cap_primitives::fs::{DirOptions, FollowSymlinks, OpenOptions, create_dir, open, open_dir, stat};
    match stat(root, sub_path, FollowSymlinks::Yes) {
        Ok(found) if found.is_dir() => return open_dir(root, sub_path).map(|_| SubPathTarget::Folder),
        Ok(found) if found.is_file() => {
            return open(root, sub_path, OpenOptions::new().read(true)).map(SubPathTarget::File);
        }
        Ok(_) => return Err(io::Error::other("it is neither a folder nor a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut made = PathBuf::new();
    for part in sub_path.components() {
        made.push(part);
        match create_dir(root, &made, &DirOptions::new()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    open_dir(root, sub_path).map(|_| SubPathTarget::Folder)
}

/// A volume's folder, the target of a sub path in it without links, and the target's type.
type SubPath = (File, PathBuf, SubPathTarget);

/// Inspects the target of a sub path in an image, without links on the way to it. Creates nothing.
fn in_image(root: io::Result<File>, sub_path: PathBuf, mount: &VolumeMount) -> Result<SubPath, MountError> {
    let found = root.and_then(|root| {
        let real = cap_primitives::fs::canonicalize(&root, &sub_path)?;
        let prepared = prepare(&root, &real)?;
        Ok((root, real, prepared))
    });
    found.map_err(|error| MountError::Image(format!("subPath {sub_path:?} of volume {:?}: {error}", mount.name)))
}

/// Like [`in_image`], for a volume of the pod: creates a missing target.
fn prepare_in(root: io::Result<File>, sub_path: PathBuf, of: (&VolumeMount, &Container)) -> Result<SubPath, String> {
    let prepared = root.and_then(|root| {
        let prepared = prepare(&root, &sub_path)?;
        Ok((root, prepared))
    });
    let (root, prepared) = prepared.map_err(|error| sub_path_error(of, &error))?;
    Ok((root, sub_path, prepared))
}

fn sub_path_error((mount, container): (&VolumeMount, &Container), why: &io::Error) -> String {
    let (name, container) = (&mount.name, &container.name);
    format!("failed to prepare subPath for volumeMount {name:?} of container {container:?}: {why}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        hosts: Option<&'static str>,
    }

    impl Bench {
        fn new() -> Self {
            let bench = Self { dir: tempfile::tempdir().unwrap(), hosts: None };
            for volume in ["own", "map", "tree"] {
                fs::create_dir_all(bench.volume(volume)).unwrap();
            }
            fs::write(bench.volume("map").join("a.yaml"), b"a").unwrap();
            fs::write(bench.volume("map").join("b.yaml"), b"b").unwrap();
            bench
        }

        fn volume(&self, name: &str) -> PathBuf {
            folder(self.dir.path(), name)
        }

        /// The folder of claims' volumes.
        fn claims(&self) -> PathBuf {
            self.dir.path().join("node/volumes")
        }

        fn open(&self, mounts: Value) -> Result<Vec<Preopen>, String> {
            let pod = json!({"spec": {"containers": [], "volumes": [
                {"name": "own", "emptyDir": {}}, {"name": "map", "configMap": {"name": "m"}},
                {"name": "kept", "persistentVolumeClaim": {"claimName": "k"}}, {"name": "pack", "image": {"reference": "r"}}]}});
            let container = json!({"name": "c", "volumeMounts": mounts});
            let variable = |name: &str| (name == "POD").then(|| "p-1".to_owned());
            let parse = |value: Value| serde_json::from_value(value).unwrap();
            let images = BTreeMap::from([("pack".to_owned(), self.volume("tree"))]);
            let pod = serde_json::from_value(pod).unwrap();
            let local = LocalVolumes::new(&self.dir.path().join("node"), machinery_env::Env::real());
            let external = ExternalVolumes { images: &images, allowed: &[], local: &local, hosts: self.hosts };
            let opened = preopens(&pod, &parse(container), (self.dir.path(), 0), &external, &variable);
            opened.map_err(|error| error.to_string())
        }
    }

    #[test]
    fn hosts_stand_in_etc_unless_something_is_mounted_there() {
        let bench = Bench { hosts: Some("192.0.2.1\tdb\n"), ..Bench::new() };
        let etc = |mounts: Value| {
            let found = bench.open(mounts).unwrap();
            let etc = found.iter().find(|open| open.guest == "/etc");
            etc.map(|etc| (etc.writable, fs::read_to_string(etc.host.join("hosts")).unwrap(), etc.host.clone()))
        };
        let hosts = "192.0.2.1\tdb\n".to_owned();
        assert_eq!(etc(json!([])).map(|(writable, text, _)| (writable, text)), Some((false, hosts.clone())));
        let beside = etc(json!([{"name": "map", "mountPath": "/etc/app.yaml", "subPath": "a.yaml", "readOnly": true}]));
        let (_, text, host) = beside.unwrap();
        assert_eq!((text, fs::read(host.join("app.yaml")).unwrap()), (hosts, b"a".to_vec()));
        let own = etc(json!([{"name": "map", "mountPath": "/etc/hosts", "subPath": "a.yaml", "readOnly": true}]));
        assert_eq!(own.unwrap().1, "a");
        let found = bench.open(json!([{"name": "own", "mountPath": "/etc"}])).unwrap();
        assert!(found.len() == 1 && !found[0].host.join("hosts").exists(), "{found:?}");
    }

    #[test]
    fn a_folder_within_a_volume_is_made_and_opened() {
        let bench = Bench::new();
        let found = bench.open(json!([
            {"name": "own", "mountPath": "/a", "subPath": "x/y"},
            {"name": "own", "mountPath": "/b", "subPathExpr": "$(POD)/z", "readOnly": true},
        ]));
        let of = |sub: &str, guest: &str, writable| Preopen {
            host: bench.volume("own"),
            sub_paths: vec![sub.into()],
            guest: guest.into(),
            writable,
        };
        assert_eq!(found, Ok(vec![of("x/y", "/a", true), of("p-1/z", "/b", false)]));
        assert!(bench.volume("own").join("p-1/z").is_dir());
    }

    #[test]
    fn single_files_share_a_folder_that_holds_nothing_else() {
        let bench = Bench::new();
        let found = bench.open(json!([
            {"name": "map", "mountPath": "/etc/app/one.yaml", "subPath": "a.yaml"},
            {"name": "map", "mountPath": "/etc/app/two.yaml", "subPath": "b.yaml"},
        ]));
        let found = found.unwrap();
        let [one] = &found[..] else { panic!("{found:?}") };
        assert_eq!((one.guest.as_str(), one.writable), ("/etc/app", false));
        let mut names: Vec<_> = fs::read_dir(&one.host).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["one.yaml", "two.yaml"]);
        assert_eq!(fs::read(one.host.join("two.yaml")).unwrap(), b"b");
    }

    #[test]
    fn a_file_that_guests_write_is_the_same_for_all() {
        let bench = Bench::new();
        fs::write(bench.volume("own").join("state"), b"1").unwrap();
        let mount = json!([{"name": "own", "mountPath": "/data/state", "subPath": "state"}]);
        let found = bench.open(mount).unwrap();
        fs::write(found[0].host.join("state"), b"2").unwrap();
        assert!(found[0].writable);
        assert_eq!(fs::read(bench.volume("own").join("state")).unwrap(), b"2");
    }

    /// The file appears outside its volume, where the claim's quota would not be enforced.
    #[cfg(unix)]
    #[test]
    fn a_single_file_of_a_claim_is_read_and_not_written() {
        let bench = Bench::new();
        fs::create_dir_all(bench.claims()).unwrap();
        fs::write(bench.claims().join("state"), b"1").unwrap();
        std::os::unix::fs::symlink(bench.claims(), bench.volume("kept")).unwrap();
        let mount = |read_only: bool| json!([{"name": "kept", "mountPath": "/data/state", "subPath": "state", "readOnly": read_only}]);
        let found = bench.open(mount(true)).unwrap();
        assert_eq!((found[0].writable, fs::read(found[0].host.join("state")).unwrap()), (false, b"1".to_vec()));
        let error = bench.open(mount(false)).unwrap_err();
        assert!(error.starts_with("/data/state is a single file of a claim's volume: mount it read-only"), "{error}");
    }

    #[test]
    fn of_an_image_nothing_is_made_or_written() {
        let bench = Bench::new();
        let tree = bench.volume("tree");
        fs::create_dir_all(tree.join("etc/app")).unwrap();
        fs::write(tree.join("etc/app/conf"), b"c").unwrap();
        #[cfg(unix)]
        for (target, name) in [("etc/app/conf", "link"), ("/etc/passwd", "out"), ("../own", "up")] {
            std::os::unix::fs::symlink(target, tree.join(name)).unwrap();
        }
        let open =
            |sub: &str| bench.open(json!([{"name": "pack", "mountPath": "/p/q", "subPath": sub, "readOnly": false}]));
        let whole = Preopen { host: tree.clone(), sub_paths: Vec::new(), guest: "/p/q".into(), writable: false };
        assert_eq!(open(""), Ok(vec![whole.clone()]));
        assert_eq!(open("etc/./app"), Ok(vec![Preopen { sub_paths: vec!["etc/app".into()], ..whole }]));
        for file in ["etc/app/conf", if cfg!(unix) { "link" } else { "etc/app/conf" }] {
            let found = open(file).unwrap();
            assert_eq!((found[0].guest.as_str(), found[0].writable), ("/p", false));
            assert_eq!(fs::read(found[0].host.join("q")).unwrap(), b"c");
        }
        for sub in ["none", "etc/none", "out", "up"] {
            let error = open(sub).unwrap_err();
            assert!(error.starts_with("ImageVolumeMountFailed: subPath"), "{sub}: {error}");
        }
        assert!(!tree.join("none").exists());
    }

    #[test]
    fn escaping_and_invalid_paths_are_rejected() {
        let bench = Bench::new();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/etc", bench.volume("own").join("out")).unwrap();
            std::os::unix::fs::symlink("../map/a.yaml", bench.volume("own").join("other")).unwrap();
        }
        let one =
            |key: &str, sub: &str| bench.open(json!([{"name": "own", "mountPath": "/a/b", key: sub}])).unwrap_err();
        assert_eq!(one("subPath", "/etc"), "error SubPath `/etc` must not be an absolute path");
        assert_eq!(one("subPath", "a/../b"), "unable to provision SubPath `a/../b`: must not contain '..'");
        assert_eq!(one("subPathExpr", "$(NOT)/$(NEITHER)"), "missing value for NEITHER, NOT");
        if cfg!(unix) {
            for sub in ["out", "out/passwd", "out/new", "other"] {
                let error = one("subPath", sub);
                assert!(
                    error.starts_with("failed to prepare subPath for volumeMount \"own\" of container \"c\": "),
                    "{error}"
                );
            }
        }
        let within = bench.open(json!([
            {"name": "own", "mountPath": "/a"}, {"name": "map", "mountPath": "/a/b/c.yaml", "subPath": "a.yaml"}]));
        assert!(within.unwrap_err().contains("is a single file within the mount /a"));
    }
}
