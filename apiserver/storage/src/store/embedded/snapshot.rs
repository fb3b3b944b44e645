//! Snapshots: the whole state at a revision in one checksummed file, written completely or not at all. The log below
//! the newest one may be deleted.

use std::fs;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::super::plan::{StoredValue, Write};
use super::folder::write_whole;
use super::{ReadFirstFormat, Revision, frame};

/// The magic of the first format, with the number of rows before them.
const MAGIC_COUNTED: &[u8; 8] = b"\xFFCRSNAP\xFE";
/// The magic of the current format, with the number of rows after them, as it is unknown before.
const MAGIC: &[u8; 8] = b"\xFFCRSNA2\xFE";
const PREFIX: &str = "snapshot-";

/// The state in key order: key and write of each entry.
pub(super) type Rows = Vec<Write>;

/// A writer that computes a checksum.
struct Checked<W> {
    out: W,
    crc: crc32fast::Hasher,
}

impl<W: io::Write> Checked<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Writes `snapshot-REV` from slices of rows and deletes older snapshots.
pub(super) fn write(folder: &Path, revision: Revision, next: impl FnMut() -> io::Result<Rows>) -> io::Result<()> {
    write_file(&folder.join(format!("{PREFIX}{revision:020}")), revision, next)?;
    for (older, at) in list(folder)? {
        if at < revision {
            fs::remove_file(older)?;
        }
    }
    Ok(())
}

/// Writes one snapshot from slices of rows, completely or not at all.
pub(super) fn write_file(path: &Path, revision: Revision, next: impl FnMut() -> io::Result<Rows>) -> io::Result<()> {
    write_whole(path, |file| write_to(BufWriter::new(file), revision, next))
}

/// Writes the bytes of one snapshot from slices of rows.
pub(super) fn write_to(
    out: impl io::Write,
    revision: Revision,
    mut next: impl FnMut() -> io::Result<Rows>,
) -> io::Result<()> {
    let mut out = Checked { out, crc: crc32fast::Hasher::new() };
    out.put(MAGIC)?;
    out.put(&revision.to_le_bytes())?;
    let (mut row, mut count) = (Vec::new(), 0u64);
    loop {
        let rows = next()?;
        if rows.is_empty() {
            break;
        }
        for write in &rows {
            row.clear();
            frame::encode_write(&mut row, write);
            out.put(&row)?;
            count += 1;
        }
    }
    out.put(&count.to_le_bytes())?;
    let crc = out.crc.clone().finalize();
    out.out.write_all(&crc.to_le_bytes())?;
    out.out.flush()
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

/// Reads a snapshot; `None` if it is damaged.
pub(super) fn read(path: &Path, plain: &ReadFirstFormat) -> io::Result<Option<(Revision, Rows)>> {
    Ok(parse(&fs::read(path)?, plain))
}

pub(super) fn parse(bytes: &[u8], plain: &ReadFirstFormat) -> Option<(Revision, Rows)> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (revision, count, mut body) = if let Some(body) = body.strip_prefix(MAGIC_COUNTED) {
        let (revision, body) = body.split_first_chunk::<8>()?;
        let (count, body) = body.split_first_chunk::<8>()?;
        (revision, count, body)
    } else {
        let (revision, body) = body.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let (body, count) = body.split_last_chunk::<8>()?;
        (revision, count, body)
    };
    let mut rows = Vec::new();
    while !body.is_empty() {
        let (write, rest) = frame::decode_write(body, plain)?;
        rows.push(write);
        body = rest;
    }
    (rows.len() as u64 == u64::from_le_bytes(*count)).then_some((u64::from_le_bytes(*revision), rows))
}

/// A row of a snapshot.
pub(super) fn row(key: &std::sync::Arc<str>, modified: Revision, stored: &std::sync::Arc<StoredValue>) -> Write {
    Write { revision: modified, key: key.clone(), stored: Some(stored.clone()) }
}

#[cfg(test)]
mod tests {
    use super::super::super::Record;
    use super::*;

    fn rows() -> Rows {
        let stored =
            |body: &str| Some(StoredValue { record: Record::plain(body.as_bytes()), created: 1, expires_ms: 0 }.into());
        let row = |n: u64| Write { revision: n, key: format!("/k/{n}").into(), stored: stored(&n.to_string()) };
        (1..=5).map(row).collect()
    }

    fn plain(_: &str, body: &[u8]) -> Record {
        Record::plain(body)
    }

    #[test]
    fn snapshots_of_both_formats_are_read_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut pieces = vec![Vec::new(), rows().split_off(2), rows()[..2].to_vec()];
        write(folder.path(), 9, || Ok(pieces.pop().unwrap())).unwrap();
        let (path, at) = list(folder.path()).unwrap().remove(0);
        assert_eq!(at, 9);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(parse(&bytes, &plain), Some((9, rows())));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert_eq!(parse(&bad, &plain), None, "byte {at}");
            assert_eq!(parse(&bytes[..at], &plain), None, "cut at {at}");
        }
        // As in the first format: JSON only, with the count in front.
        let mut counted = [&MAGIC_COUNTED[..], &9u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
        counted.extend(7u64.to_le_bytes());
        counted.extend(2u32.to_le_bytes());
        counted.extend(b"/a\x01");
        counted.extend([3u64.to_le_bytes(), 0u64.to_le_bytes()].concat());
        counted.extend(2u32.to_le_bytes());
        counted.extend(b"{}");
        counted.extend(crc32fast::hash(&counted).to_le_bytes());
        let stored = StoredValue { record: Record::plain(b"{}"), created: 3, expires_ms: 0 };
        let row = Write { revision: 7, key: "/a".into(), stored: Some(stored.into()) };
        assert_eq!(parse(&counted, &plain), Some((9, vec![row])));
    }
}
