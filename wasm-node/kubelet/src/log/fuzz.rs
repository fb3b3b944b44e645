//! Fuzz targets of log files, which may be damaged.

use std::io::{Cursor, Seek as _};

use bolero::check;
use jiff::Timestamp;

use super::read::{Options, seek_back, show};

/// Fragments of a log, valid and invalid.
const PIECES: [&[u8]; 12] = [
    b"2026-01-01T00:00:00.000000001Z stdout F hello\n",
    b"1970-01-01T00:00:00Z stderr P half of a line\n",
    b"2026-01-01T00:00:00Z stdout F \n",
    b"2026-13-45T99:00:00Z stdout F no such day\n",
    b"\n",
    b" ",
    b"stdout",
    b" F ",
    b"\xff\xfe\x00",
    b"\r\n",
    b"2026-01-01T00:00:00.5Z STDOUT F",
    b"   \n",
];

fn log(picks: &[u8]) -> Vec<u8> {
    picks.iter().flat_map(|pick| PIECES[usize::from(*pick) % PIECES.len()]).copied().collect()
}

#[test]
fn logs_are_equal_for_any_reads() {
    check!().with_type::<(Vec<u8>, u8, u8, Option<u8>)>().for_each(|(picks, piece, flags, limit)| {
        let options = Options {
            timestamps: flags & 1 != 0,
            since: (flags & 2 != 0).then_some(Timestamp::UNIX_EPOCH),
            stream: (flags & 4 != 0).then_some("Stdout"),
            ..Options::default()
        };
        let log = log(picks);
        let limit = limit.map_or(u64::MAX, u64::from);
        let shown = |piece: usize| {
            let (mut unfinished, mut left, mut text) = (Vec::new(), limit, Vec::new());
            for chunk in log.chunks(piece) {
                text.extend(show(chunk, &mut unfinished, &options, &mut left));
            }
            assert_eq!(text.len() as u64, limit - left);
            text
        };
        let whole = shown(log.len().max(1));
        assert!(whole.len() <= log.len() && whole.len() as u64 <= limit);
        assert_eq!(whole, shown(usize::from(*piece).max(1)));
    });
}

#[test]
fn the_last_lines_are_found_in_any_bytes() {
    check!().with_type::<(Vec<u8>, u8)>().for_each(|(picks, lines)| {
        let log = log(picks);
        let all: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
        let mut file = Cursor::new(&log);
        let found = seek_back(&mut file, u64::from(*lines)).unwrap();
        let wanted = usize::from(*lines).min(all.len());
        assert_eq!(found, wanted as u64);
        let rest: usize = all[all.len() - wanted..].iter().map(|line| line.len()).sum();
        assert_eq!(file.stream_position().unwrap(), (log.len() - rest) as u64);
    });
}
