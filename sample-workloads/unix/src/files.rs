//! Files by path, below the container's mounts. Folders above the mounts are synthetic: they lead to mounts.
use core::cell::OnceCell;

use crate::coracle::host::stat as host;
use crate::io::{Input, Output, Sink, Source};
use crate::{Context, words};
use guest::wasip2::filesystem::preopens::get_directories;
use guest::wasip2::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, OpenFlags, PathFlags,
};
use guest::{String, ToOwned, Vec, format};

/// The mounts, read once: each call of the host creates new handles.
struct Mounts(OnceCell<Vec<(Descriptor, String)>>);

// SAFETY: the toolbox has one thread.
unsafe impl Sync for Mounts {}

static MOUNTS: Mounts = Mounts(OnceCell::new());

fn mounts() -> &'static [(Descriptor, String)] {
    MOUNTS.0.get_or_init(|| {
        let mut all: Vec<(Descriptor, String)> =
            get_directories().into_iter().map(|(mount, at)| (mount, normal(&at))).collect();
        // The longest path first: it is the most specific mount.
        all.sort_by_key(|(_, at)| core::cmp::Reverse(at.len()));
        all
    })
}

/// A path without `.`, `..` and doubled slashes.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut whole = String::new();
    for part in parts {
        whole.push('/');
        whole.push_str(part);
    }
    if whole.is_empty() { "/".to_owned() } else { whole }
}

/// A path relative to the root.
pub fn absolute(cwd: &str, path: &str) -> String {
    if path.starts_with('/') { normal(path) } else { normal(&format!("{cwd}/{path}")) }
}

/// The name of a path's target, and its folder.
pub fn split(path: &str) -> (&str, &str) {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => (".", trimmed),
    }
}

/// A path below a folder.
pub fn join(folder: &str, name: &str) -> String {
    if folder == "/" { format!("/{name}") } else { format!("{folder}/{name}") }
}

/// The mount of an absolute path, and the rest of the path; none above all mounts.
pub fn mount(path: &str) -> Result<(&'static Descriptor, &str), ErrorCode> {
    let found = mounts().iter().find_map(|(mount, at)| {
        let rest = if at == "/" { path } else { path.strip_prefix(at.as_str())? };
        (rest.is_empty() || rest.starts_with('/')).then(|| (mount, rest.trim_start_matches('/')))
    });
    match found {
        Some((mount, "")) => Ok((mount, ".")),
        Some(found) => Ok(found),
        None if !above(path).is_empty() => Err(ErrorCode::ReadOnly),
        None => Err(ErrorCode::NoEntry),
    }
}

/// The names in a folder above mounts.
fn above(path: &str) -> Vec<String> {
    let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
    let mut names: Vec<String> = mounts()
        .iter()
        .filter_map(|(_, at)| at.strip_prefix(prefix.as_str())?.split('/').next().map(ToOwned::to_owned))
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The attributes of a path.
#[derive(Clone)]
pub struct Stat {
    pub kind: DescriptorType,
    pub size: u64,
    /// The time of the last change, in seconds since 1970.
    pub modified: u64,
    pub links: u64,
}

impl Stat {
    pub fn is_dir(&self) -> bool {
        self.kind == DescriptorType::Directory
    }

    pub fn is_link(&self) -> bool {
        self.kind == DescriptorType::SymbolicLink
    }
}

fn of(stat: &DescriptorStat) -> Stat {
    let modified = stat.data_modification_timestamp.map_or(0, |time| time.seconds);
    Stat { kind: stat.type_, size: stat.size, modified, links: stat.link_count }
}

/// Reads a path's attributes; `follow`: those of a link's target.
pub fn stat(path: &str, follow: bool) -> Result<Stat, ErrorCode> {
    let flags = if follow { PathFlags::SYMLINK_FOLLOW } else { PathFlags::empty() };
    match mount(path) {
        Ok((_, ".")) => Ok(Stat { kind: DescriptorType::Directory, size: 4096, modified: 0, links: 1 }),
        Ok((mount, rest)) => mount.stat_at(flags, rest).map(|stat| of(&stat)),
        Err(_) if path == "/" || !above(path).is_empty() => {
            Ok(Stat { kind: DescriptorType::Directory, size: 4096, modified: 0, links: 1 })
        }
        Err(error) => Err(error),
    }
}

/// The permission bits of a path's target.
pub fn mode(path: &str) -> Result<u32, ErrorCode> {
    let opened = match mount(path)? {
        (folder, ".") => return host::mode(folder).ok_or(ErrorCode::Unsupported),
        (folder, rest) => {
            folder.open_at(PathFlags::SYMLINK_FOLLOW, rest, OpenFlags::empty(), DescriptorFlags::READ)?
        }
    };
    host::mode(&opened).ok_or(ErrorCode::Unsupported)
}

/// A mode in the form of `ls`, with the letter of the file type.
pub fn mode_letters(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for (at, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode >> (8 - at) & 1 == 1 { letter } else { '-' });
    }
    text
}

/// The names in a folder, sorted.
pub fn names(path: &str) -> Result<Vec<String>, ErrorCode> {
    let mut names = above(path);
    match open(path, OpenFlags::DIRECTORY, DescriptorFlags::READ) {
        Ok(folder) => {
            let entries = folder.read_directory()?;
            while let Some(entry) = entries.read_directory_entry()? {
                names.push(entry.name);
            }
            names.sort();
            names.dedup();
        }
        Err(error) if names.is_empty() && path != "/" => return Err(error),
        Err(_) => {}
    }
    Ok(names)
}

/// Opens a path's target.
pub fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, ErrorCode> {
    let (mount, rest) = mount(path)?;
    mount.open_at(PathFlags::SYMLINK_FOLLOW, rest, open, flags)
}

impl Context {
    /// A file to read; `-` is the tool's input.
    pub fn open(&mut self, path: &str) -> Result<Input, String> {
        if path == "-" || path == "/dev/stdin" {
            return Ok(self.input.clone());
        }
        let at = self.absolute(path);
        if at == "/dev/null" {
            return Ok(Source::Empty.into());
        }
        let said = |error| format!("{path}: {}", words(error));
        if stat(&at, true).map_err(said)?.is_dir() {
            return Err(format!("{path}: {}", words(ErrorCode::IsDirectory)));
        }
        open(&at, OpenFlags::empty(), DescriptorFlags::READ).map(|file| Source::File(file, 0).into()).map_err(said)
    }

    /// A file to write, created if missing.
    pub fn create(&self, path: &str, append: bool) -> Result<Output, String> {
        let at = self.absolute(path);
        if at == "/dev/null" {
            return Ok(Sink::Nowhere.into());
        }
        let said = |error| format!("{path}: {}", words(error));
        let how = if append { OpenFlags::CREATE } else { OpenFlags::CREATE | OpenFlags::TRUNCATE };
        let file = open(&at, how, DescriptorFlags::WRITE).map_err(said)?;
        let from = if append { file.stat().map_err(said)?.size } else { 0 };
        Ok(Sink::File(file, from).into())
    }
}
