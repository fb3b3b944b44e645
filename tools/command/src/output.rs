//! Output to stdout and stderr. A closed pipe (`head`) is neither a failure nor a panic.

use std::fmt::Arguments;
use std::io::{self, Write};

use anyhow::Context as _;

/// Prints a line of a verb's result.
#[macro_export]
macro_rules! print_stdout {
    ($($part:tt)*) => {
        $crate::output::result(format_args!("{}\n", format_args!($($part)*)))
    };
}
/// Prints a line on stderr: an error or progress.
#[macro_export]
macro_rules! print_stderr {
    ($($part:tt)*) => {
        $crate::output::aside(format_args!("{}\n", format_args!($($part)*)))
    };
}
pub use {print_stderr, print_stdout};

/// Writes to stdout and flushes.
///
/// # Errors
/// If the output is lost, as on a full disk.
pub fn result(text: Arguments<'_>) -> anyhow::Result<()> {
    ignore_broken_pipe(write(&mut io::stdout().lock(), text)).context("cannot write to stdout")
}

/// Writes to stderr. A failure to write is ignored.
pub fn aside(text: Arguments<'_>) {
    let _ = write(&mut io::stderr().lock(), text);
}

/// A table as kubectl's: columns as wide as their widest cell.
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row: &Vec<String>| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// Text of others without control characters that a terminal would interpret.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// Writes with one call, so that a reader sees whole lines.
fn write(to: &mut dyn Write, text: Arguments<'_>) -> io::Result<()> {
    to.write_all(text.to_string().as_bytes())?;
    to.flush()
}

fn ignore_broken_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        let gone = write(&mut writer, format_args!("x"));
        assert_eq!(gone.as_ref().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(
            ignore_broken_pipe(gone).is_ok() && ignore_broken_pipe(Err(io::ErrorKind::StorageFull.into())).is_err()
        );
    }
}
