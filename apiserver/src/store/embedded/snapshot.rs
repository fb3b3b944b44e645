//! Snapshots: the whole state at a revision in one checksummed file, written completely or not at all. Below the newest
//! one the log may be cut.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::super::plan::{Stored, Write};
use super::folder::write_whole;
use super::{Revision, frame};

const MAGIC: &[u8; 8] = b"\xFFCRSNAP\xFE";
const PREFIX: &str = "snapshot-";

/// State in key order: key and write of each.
pub(super) type Rows = Vec<Write>;

/// A writer that checksums what passes.
struct Checked<'a> {
    out: BufWriter<&'a mut File>,
    crc: crc32fast::Hasher,
}

impl Checked<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Writes `snapshot-REV` into the folder and deletes older ones.
pub(super) fn write(folder: &Path, revision: Revision, rows: &Rows) -> io::Result<()> {
    let path = folder.join(format!("{PREFIX}{revision:020}"));
    write_whole(&path, |file| {
        let mut out = Checked { out: BufWriter::new(file), crc: crc32fast::Hasher::new() };
        out.put(MAGIC)?;
        out.put(&revision.to_le_bytes())?;
        out.put(&(rows.len() as u64).to_le_bytes())?;
        let mut row = Vec::new();
        for write in rows {
            row.clear();
            frame::encode_write(&mut row, write);
            out.put(&row)?;
        }
        let crc = out.crc.clone().finalize();
        out.out.write_all(&crc.to_le_bytes())?;
        out.out.flush()
    })?;
    for (older, at) in list(folder)? {
        if at < revision {
            fs::remove_file(older)?;
        }
    }
    Ok(())
}

/// Snapshots in the folder, newest first.
pub(super) fn list(folder: &Path) -> io::Result<Vec<(PathBuf, Revision)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if let Some(revision) = name.strip_prefix(PREFIX).and_then(|digits| digits.parse().ok()) {
            found.push((path, revision));
        }
    }
    found.sort_by_key(|(_, revision)| std::cmp::Reverse(*revision));
    Ok(found)
}

/// Reads a snapshot; `None`: it is damaged.
pub(super) fn read(path: &Path) -> io::Result<Option<(Revision, Rows)>> {
    Ok(parse(&fs::read(path)?))
}

fn parse(bytes: &[u8]) -> Option<(Revision, Rows)> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let body = body.strip_prefix(MAGIC)?;
    let (revision, body) = body.split_first_chunk::<8>()?;
    let (count, mut body) = body.split_first_chunk::<8>()?;
    let mut rows = Vec::new();
    while !body.is_empty() {
        let (write, rest) = frame::decode_write(body)?;
        rows.push(write);
        body = rest;
    }
    (rows.len() as u64 == u64::from_le_bytes(*count)).then_some((u64::from_le_bytes(*revision), rows))
}

/// A row of the state.
pub(super) fn row(key: &std::sync::Arc<str>, modified: Revision, stored: &std::sync::Arc<Stored>) -> Write {
    Write { revision: modified, key: key.clone(), stored: Some(stored.clone()) }
}
