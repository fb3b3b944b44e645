//! Reads the checkpoint of an earlier run. Invalid files are removed, as they may hold Secrets; none of them ends the start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use machinery_client::checkpoint::{self, CheckpointError, is_partial};

use super::record::{self, NodeRecord, Origin, PodRecord, ServiceRecord, SourceRecord};

/// The maximum length of a file in bytes: the API server accepts objects of up to 3 MiB in JSON, and base64 and the
/// agent's status add to it.
const FILE_BYTES_MAX: usize = 8 << 20;
/// The maximum length of the Services' file: 100,000 Services of some 200 bytes, and more.
const SERVICES_BYTES_MAX: usize = 64 << 20;
/// The maximum number of files that are read in a folder: above any number of pods of a node.
const FILES_MAX: usize = 50_000;

/// The checkpoint of an earlier run.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) node: Option<NodeRecord>,
    /// By uid.
    pub(super) pods: BTreeMap<String, PodRecord>,
    /// By [`record::source_id`].
    pub(super) sources: BTreeMap<String, SourceRecord>,
    pub(super) services: Option<Vec<ServiceRecord>>,
}

/// Creates a folder that only this user can read: it holds Secrets.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Creates missing folders, and reads the checkpoint of the node of that name.
///
/// # Errors
/// A folder can't be created, listed or cleaned.
pub(super) fn open(folder: &Path, node: &str) -> io::Result<Loaded> {
    for below in [folder.to_owned(), folder.join("pods"), folder.join("sources")] {
        private_folder(&below)?;
        checkpoint::remove_kept(&below)?;
    }
    let node_record = read(&folder.join("node.json"), record::NODE, |body, _| record::decode_node(body, node));
    let origin: Option<Origin> = node_record.as_ref().map(NodeRecord::origin);
    let pods = read_each(&folder.join("pods"), record::POD, |body, file| {
        record::decode_pod(body, file, node, origin.as_ref())
    })?;
    let sources = read_each(&folder.join("sources"), record::SOURCE, record::decode_source)?;
    Ok(Loaded {
        services: read_bounded(&folder.join("services.json"), record::SERVICES, SERVICES_BYTES_MAX, |body, _| {
            record::decode_services(body)
        }),
        node: node_record,
        pods: pods.into_iter().map(|record| (record.uid().to_owned(), record)).collect(),
        sources: sources.into_iter().filter_map(|record| Some((record.id()?, record))).collect(),
    })
}

fn read<T>(path: &Path, kind: &str, decode: impl Fn(&[u8], &str) -> Result<T, CheckpointError>) -> Option<T> {
    read_bounded(path, kind, FILE_BYTES_MAX, decode)
}

/// The record of a file; a file that can't be used is removed.
fn read_bounded<T>(
    path: &Path,
    kind: &str,
    bytes_max: usize,
    decode: impl Fn(&[u8], &str) -> Result<T, CheckpointError>,
) -> Option<T> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let read = checkpoint::read(path, kind, bytes_max);
    let decoded = read.and_then(|body| body.map(|body| decode(&body, name)).transpose());
    decoded.unwrap_or_else(|error| {
        checkpoint::discard(path, &error);
        None
    })
}

/// The records of a folder's files, in the order of their names.
fn read_each<T>(
    folder: &Path,
    kind: &str,
    decode: impl Fn(&[u8], &str) -> Result<T, CheckpointError>,
) -> io::Result<Vec<T>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if is_partial(&path) {
            // The earlier run was killed while it wrote this file.
            let _ = std::fs::remove_file(&path);
        } else if !entry.file_type()?.is_dir() && paths.len() < FILES_MAX {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.iter().filter_map(|path| read(path, kind, &decode)).collect())
}
