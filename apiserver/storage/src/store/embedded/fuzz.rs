//! Fuzz targets for the files read at a start: log frames and snapshots, also with valid checksums, as for damage that
//! was written undetected.

use bolero::check;

use super::super::Record;
use super::{frame, snapshot};

fn plain(_: &str, body: &[u8]) -> Record {
    Record::plain(body)
}

#[test]
fn any_bytes_are_a_frame_or_none() {
    check!().for_each(|bytes: &[u8]| {
        let _ = frame::check(bytes);
        let mut rest = bytes;
        // Each write consumes bytes, so the loop ends.
        while let Some((_, after)) = frame::decode_write(rest, &plain) {
            assert!(after.len() < rest.len());
            rest = after;
        }
    });
}

#[test]
fn any_snapshot_with_a_right_checksum_is_read_or_refused() {
    check!().with_type::<(bool, u64, u64, Vec<(u8, Vec<u8>)>)>().for_each(|(counted, revision, count, rows)| {
        let mut body = Vec::new();
        for (form, bytes) in rows {
            body.extend(7u64.to_le_bytes());
            body.extend(2u32.to_le_bytes());
            body.extend(b"/a");
            body.push(form % 4);
            body.extend([3u64.to_le_bytes(), 0u64.to_le_bytes()].concat());
            body.extend((bytes.len() as u32).to_le_bytes());
            body.extend(bytes);
        }
        let magic: &[u8] = if *counted { b"\xFFCRSNAP\xFE" } else { b"\xFFCRSNA2\xFE" };
        let (revision, count) = (revision.to_le_bytes(), (count % 8).to_le_bytes());
        let mut file = match counted {
            true => [magic, &revision, &count, &body].concat(),
            false => [magic, &revision, &body, &count].concat(),
        };
        file.extend(crc32fast::hash(&file).to_le_bytes());
        if let Some((read, found)) = snapshot::parse(&file, &plain) {
            assert_eq!(read.to_le_bytes(), revision);
            assert_eq!((found.len() as u64).to_le_bytes(), count);
        }
    });
}
