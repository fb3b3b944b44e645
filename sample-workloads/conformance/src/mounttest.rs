//! `agnhost mounttest`: writes and reads files, and prints their attributes. Tests expect this order of operations.
use crate::flags::Flags;
use guest::wasip2::clocks::monotonic_clock;
use guest::wasip2::filesystem::types::{DescriptorFlags, ErrorCode, OpenFlags};
use guest::{String, Vec, format};
use unix::{Context, Ended, files, words};

const FLAGS: [&str; 11] = [
    "fs_type",
    "file_mode",
    "file_perm",
    "file_owner",
    "new_file_0644",
    "new_file_0666",
    "new_file_0660",
    "new_file_0777",
    "file_content",
    "file_content_in_loop",
    "retry_time",
];
const SWITCHES: [&str; 1] = ["break_on_expected_content"];
const NEW_FILES: [(&str, u32); 4] =
    [("new_file_0644", 0o644), ("new_file_0666", 0o666), ("new_file_0660", 0o660), ("new_file_0777", 0o777)];
const NEW_CONTENT: &str = "mount-tester new file\n";
const RETRY_SECONDS: u64 = 180;
const SECOND: u64 = 1_000_000_000;
const READ_BYTES: u64 = 64 * 1024;

/// Whether all operations succeeded.
type Went = Result<bool, unix::io::Stop>;

pub fn mounttest(context: &mut Context, args: &[String]) -> Ended {
    let flags = match Flags::read(args, &FLAGS, &SWITCHES) {
        Ok(flags) => flags,
        Err(why) => return context.fail("mounttest", &why),
    };
    let mut well = true;
    for (name, mode) in NEW_FILES {
        if let Some(path) = flags.get(name) {
            well &= write_new(context, path, mode)?;
        }
    }
    for (name, what, with_type) in [("file_mode", "mode of file", true), ("file_perm", "perms of file", false)] {
        if let Some(path) = flags.get(name) {
            well &= show_mode(context, path, what, with_type)?;
        }
    }
    for name in ["fs_type", "file_owner"] {
        if flags.get(name).is_some() {
            context.say("mounttest", &format!("--{name}: a module is not told"))?;
            well = false;
        }
    }
    if let Some(path) = flags.get("file_content") {
        well &= show(context, path)?;
    }
    if let Some(path) = flags.get("file_content_in_loop") {
        let seconds = flags.get("retry_time").and_then(|text| text.parse().ok()).unwrap_or(RETRY_SECONDS);
        well &= show_in_loop(context, path, seconds, flags.get("break_on_expected_content") != Some("false"))?;
    }
    Ok(i32::from(!well))
}

fn read(path: &str) -> Result<Vec<u8>, ErrorCode> {
    let file = files::open(&files::absolute("/", path), OpenFlags::empty(), DescriptorFlags::READ)?;
    let mut all = Vec::new();
    loop {
        let (mut bytes, at_end) = file.read(READ_BYTES, all.len() as u64)?;
        all.append(&mut bytes);
        if at_end {
            return Ok(all);
        }
    }
}

/// A failed operation in Go's form.
fn failed(operation: &str, path: &str, error: ErrorCode) -> String {
    format!("{operation} {path}: {}", words(error).to_lowercase())
}

fn show(context: &mut Context, path: &str) -> Went {
    let line = match read(path) {
        Ok(content) => {
            context.out.line(&format!("content of file {path:?}: {}", String::from_utf8_lossy(&content)))?;
            return Ok(true);
        }
        Err(error) => format!("error reading file content for {path:?}: {}", failed("open", path, error)),
    };
    context.out.line(&line)?;
    Ok(false)
}

/// A mode in Go's form: the letters of type and special bits precede those of the permissions.
fn letters(mode: u32, is_dir: bool) -> String {
    let special = [(u32::from(is_dir), 'd'), (mode >> 11 & 1, 'u'), (mode >> 10 & 1, 'g'), (mode >> 9 & 1, 't')];
    let mut text: String = special.iter().filter(|(bit, _)| *bit == 1).map(|(_, letter)| *letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    text.extend(files::mode_letters('-', mode).chars().skip(1));
    text
}

fn show_mode(context: &mut Context, path: &str, what: &str, with_type: bool) -> Went {
    let at = files::absolute("/", path);
    let asked = files::stat(&at, true).and_then(|stat| Ok((files::mode(&at)?, stat.is_dir())));
    let line = match &asked {
        Ok((mode, is_dir)) if with_type => format!("{what} {path:?}: {}", letters(*mode, *is_dir)),
        Ok((mode, _)) => format!("{what} {path:?}: {}", letters(mode & 0o777, false)),
        Err(error) => format!("error from Stat({path:?}): {}", failed("stat", path, *error)),
    };
    context.out.line(&line)?;
    Ok(asked.is_ok())
}

fn write_new(context: &mut Context, path: &str, _mode: u32) -> Went {
    let how = OpenFlags::CREATE | OpenFlags::TRUNCATE;
    let written = files::open(&files::absolute("/", path), how, DescriptorFlags::WRITE)
        .and_then(|file| file.write(NEW_CONTENT.as_bytes(), 0));
    if let Err(error) = written {
        context.out.line(&format!("error writing new file {path:?}: {}", failed("open", path, error)))?;
        return Ok(false);
    }
    show(context, path)
}

/// Prints a file every 2 s, until its content is that of [`write_new`], or for the given time.
fn show_in_loop(context: &mut Context, path: &str, seconds: u64, until_expected: bool) -> Went {
    let end = monotonic_clock::now().saturating_add(seconds.saturating_mul(SECOND));
    let mut well = true;
    while monotonic_clock::now() < end {
        match read(path) {
            Ok(content) => {
                well = true;
                context.out.line(&format!("content of file {path:?}: {}", String::from_utf8_lossy(&content)))?;
                if until_expected && content == NEW_CONTENT.as_bytes() {
                    break;
                }
                if until_expected {
                    context.out.line(&format!("Unexpected content. Expected: {NEW_CONTENT}. Retrying"))?;
                }
            }
            Err(error) => {
                well = false;
                context.out.line(&format!("Error reading file {path}: {}, retrying", failed("open", path, error)))?;
            }
        }
        monotonic_clock::subscribe_duration(2 * SECOND).block();
    }
    Ok(well)
}
