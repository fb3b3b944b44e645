//! `tar` for `kubectl cp` and users: ustar with GNU's and pax' long names, uncompressed; create, extract and list.
use crate::disk::make_folder;
use crate::io::{Input, Output, Sink, Source, Stdin, Stop};
use crate::{Context, Ended, files, words};
use files::{join, split};
use guest::wasip2::filesystem::types::{DescriptorFlags, DescriptorType, ErrorCode, OpenFlags};
use guest::{String, ToOwned, Vec, format, vec};

const BLOCK: usize = 512;
/// An extended header: a name, attributes.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;
/// Maximum depth of folders.
const DEPTH_MAX: usize = 100;

/// The arguments.
#[derive(Default)]
struct Asked {
    act: Option<char>,
    file: Option<String>,
    folder: Option<String>,
    verbose: bool,
    to_stdout: bool,
    operands: Vec<String>,
}

fn read(args: &[String]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut rest = args[1..].iter();
    let mut first = true;
    while let Some(arg) = rest.next() {
        let bundle = match arg.strip_prefix('-') {
            Some(long) if long.starts_with('-') => match long {
                "-no-same-owner"
                | "-no-same-permissions"
                | "-numeric-owner"
                | "-overwrite"
                | "-warning=no-file-changed" => continue,
                other => return Err(format!("unknown option -{other}")),
            },
            Some(bundle) if !bundle.is_empty() => bundle,
            // The traditional form: the first word needs no dash.
            None if first => arg.as_str(),
            _ => {
                asked.operands.push(arg.clone());
                continue;
            }
        };
        first = false;
        for letter in bundle.chars() {
            match letter {
                'c' | 'x' | 't' => asked.act = Some(letter),
                'f' => asked.file = rest.next().cloned(),
                'C' => asked.folder = rest.next().cloned(),
                'v' => asked.verbose = true,
                'O' => asked.to_stdout = true,
                'm' | 'p' | 'o' | 'h' => {}
                'z' | 'j' | 'J' => return Err("compressed archives are not read or written here".into()),
                other => return Err(format!("unknown option -{other}")),
            }
        }
    }
    Ok(asked)
}

pub fn tar(context: &mut Context, args: &[String]) -> Ended {
    let asked = match read(args) {
        Ok(asked) => asked,
        Err(why) => return context.fail("tar", &why).map(|_| 2),
    };
    let folder = context.absolute(asked.folder.as_deref().unwrap_or("."));
    if !files::stat(&folder, true).is_ok_and(|stat| stat.is_dir()) {
        let why = format!("{}: Cannot open: No such file or directory", asked.folder.as_deref().unwrap_or("."));
        return context.fail("tar", &why).map(|_| 2);
    }
    let file = asked.file.clone().unwrap_or_else(|| "-".to_owned());
    let failed = |context: &mut Context, why: String| context.fail("tar", &why).map(|_| 2);
    match asked.act {
        Some('c') => {
            if asked.operands.is_empty() {
                return failed(context, "Cowardly refusing to create an empty archive".into());
            }
            let other = if file == "-" { None } else { Some(context.create(&file, false)) };
            let before = match other {
                None => None,
                Some(Ok(output)) => Some(core::mem::replace(&mut context.out, output)),
                Some(Err(why)) => return failed(context, why),
            };
            let done = create(context, &asked, &folder);
            if let Some(before) = before {
                context.out = before;
            }
            done
        }
        Some(_) => match context.open(&file) {
            Ok(input) => extract(context, &asked, &folder, input),
            Err(why) => failed(context, why),
        },
        None => failed(context, "one of -c, -x, -t must be given".into()),
    }
}

// --- create ---

fn create(context: &mut Context, asked: &Asked, folder: &str) -> Ended {
    let (mut code, mut found) = (0, false);
    for operand in &asked.operands {
        let path = files::absolute(folder, operand);
        found |= files::stat(&path, false).is_ok();
        // As every tar: names in an archive are relative.
        let name = operand.trim_start_matches('/');
        let name = if name.is_empty() { "." } else { name };
        pack(context, asked, name.trim_end_matches('/'), &path, 0, &mut code)?;
    }
    if found {
        context.out.write(&[0; 2 * BLOCK])?;
    }
    // An empty archive has no end marker either: `kubectl cp` stops at the end, and would not report the failure.
    Ok(code)
}

fn pack(
    context: &mut Context,
    asked: &Asked,
    name: &str,
    path: &str,
    depth: usize,
    code: &mut i32,
) -> Result<(), Stop> {
    let mut complain = |context: &mut Context, error| {
        *code = 2;
        context.say("tar", &format!("{name}: {}", words(error)))
    };
    let stat = match files::stat(path, false) {
        Ok(stat) => stat,
        Err(error) => return complain(context, error),
    };
    if asked.verbose {
        context.err.line(name)?;
    }
    match stat.kind {
        DescriptorType::Directory => {
            if depth > DEPTH_MAX {
                return complain(context, ErrorCode::Loop);
            }
            head(context, &format!("{name}/"), b'5', 0o755, 0, stat.modified, "")?;
            match files::names(path) {
                Ok(names) => {
                    for entry in names {
                        pack(context, asked, &format!("{name}/{entry}"), &join(path, &entry), depth + 1, code)?;
                    }
                    Ok(())
                }
                Err(error) => complain(context, error),
            }
        }
        DescriptorType::SymbolicLink => match files::mount(path).and_then(|(mount, rest)| mount.readlink_at(rest)) {
            Ok(to) => head(context, name, b'2', 0o777, 0, stat.modified, &to),
            Err(error) => complain(context, error),
        },
        DescriptorType::RegularFile => {
            let file = match files::open(path, OpenFlags::empty(), DescriptorFlags::READ) {
                Ok(file) => file,
                Err(error) => return complain(context, error),
            };
            head(context, name, b'0', 0o644, stat.size, stat.modified, "")?;
            let mut input = Input::from(Source::File(file, 0));
            let mut left = stat.size;
            while left > 0 {
                let mut bytes = input.read(&mut context.stdin)?;
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                if bytes.is_empty() {
                    // The file shrank meanwhile; its size in the archive is fixed.
                    *code = 1;
                    context.say("tar", &format!("{name}: file shrank, padding with zeros"))?;
                    bytes = vec![0; usize::try_from(left.min(1 << 16)).unwrap_or(0)];
                }
                context.out.write(&bytes)?;
                left -= bytes.len() as u64;
            }
            pad(context, stat.size)
        }
        _ => Ok(()),
    }
}

fn pad(context: &mut Context, size: u64) -> Result<(), Stop> {
    let over = (size % BLOCK as u64) as usize;
    if over > 0 { context.out.write(&vec![0; BLOCK - over]) } else { Ok(()) }
}

fn head(
    context: &mut Context,
    name: &str,
    kind: u8,
    mode: u32,
    size: u64,
    modified: u64,
    link: &str,
) -> Result<(), Stop> {
    for (long, kind) in [(link, b'K'), (name, b'L')] {
        if long.len() > 100 {
            let size = long.len() as u64 + 1;
            context.out.write(&block("././@LongLink", kind, 0o644, size, 0, ""))?;
            context.out.write(long.as_bytes())?;
            context.out.write(&[0])?;
            pad(context, size)?;
        }
    }
    context.out.write(&block(name, kind, mode, size, modified, link))
}

fn block(name: &str, kind: u8, mode: u32, size: u64, modified: u64, link: &str) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], most: usize| {
        let length = bytes.len().min(most);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, name.as_bytes(), 100);
    put(100, format!("{mode:07o}").as_bytes(), 7);
    put(108, b"0000000", 7);
    put(116, b"0000000", 7);
    if size < 1 << 33 {
        put(124, format!("{size:011o}").as_bytes(), 11);
    } else {
        put(124, &[0x80], 1);
        put(128, &size.to_be_bytes(), 8);
    }
    put(136, format!("{:011o}", modified.min((1 << 33) - 1)).as_bytes(), 11);
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, link.as_bytes(), 100);
    put(257, b"ustar\x0000", 8);
    put(265, b"root", 4);
    put(297, b"root", 4);
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

// --- extract and list ---

/// Reads an archive in pieces of any length.
struct Archive {
    input: Input,
    waiting: Vec<u8>,
}

impl Archive {
    /// That number of bytes; fewer at the end.
    fn take(&mut self, stdin: &mut Stdin, bytes: usize) -> Result<Vec<u8>, Stop> {
        while self.waiting.len() < bytes {
            let mut more = self.input.read(stdin)?;
            if more.is_empty() {
                break;
            }
            self.waiting.append(&mut more);
        }
        let rest = self.waiting.split_off(bytes.min(self.waiting.len()));
        Ok(core::mem::replace(&mut self.waiting, rest))
    }

    /// At most that number of the next bytes, as available.
    fn some(&mut self, stdin: &mut Stdin, most: u64) -> Result<Vec<u8>, Stop> {
        if self.waiting.is_empty() {
            self.waiting = self.input.read(stdin)?;
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.waiting.len());
        let rest = self.waiting.split_off(length);
        Ok(core::mem::replace(&mut self.waiting, rest))
    }
}

fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let low: [u8; 8] = field[field.len() - 8..].try_into().ok()?;
        return Some(u64::from_be_bytes(low));
    }
    let text: String = field.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(&text, 8).ok() }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// A pax header's value: `LENGTH NAME=VALUE` and a newline for each.
fn attribute(records: &[u8], wanted: &str) -> Option<String> {
    let mut rest = records;
    let mut found = None;
    while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
        let length: usize = core::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length.checked_sub(1)?)?;
        let record = String::from_utf8_lossy(record).into_owned();
        if let Some((name, value)) = record.split_once('=')
            && name == wanted
        {
            found = Some(value.to_owned());
        }
        rest = rest.get(length..)?;
    }
    found
}

/// The path of an archive's name below a folder; none if it leads out of the folder.
fn below(folder: &str, name: &str) -> Option<String> {
    if name.split('/').any(|part| part == "..") {
        return None;
    }
    Some(files::absolute(folder, name.trim_start_matches('/')))
}

fn extract(context: &mut Context, asked: &Asked, folder: &str, input: Input) -> Ended {
    let mut archive = Archive { input, waiting: Vec::new() };
    let (mut code, mut long_name, mut long_link, mut long_size) = (0, None, None, None);
    let damaged = |context: &mut Context| context.fail("tar", "this does not look like a tar archive").map(|_| 2);
    loop {
        let block = archive.take(&mut context.stdin, BLOCK)?;
        if block.is_empty() || block.iter().all(|byte| *byte == 0) && block.len() == BLOCK {
            // Padding follows the end; the sender must not see a closed pipe.
            while !archive.some(&mut context.stdin, u64::MAX)?.is_empty() {}
            return Ok(code);
        }
        if block.len() < BLOCK || !sum_fits(&block) {
            return damaged(context);
        }
        let Some(size) = number(&block[124..136]) else { return damaged(context) };
        let kind = block[156];
        if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            if size > EXTENDED_BYTES_MAX {
                return context.fail("tar", "an extended header is too long").map(|_| 2);
            }
            let padded = (size as usize).next_multiple_of(BLOCK);
            let mut content = archive.take(&mut context.stdin, padded)?;
            content.truncate(size as usize);
            match kind {
                b'L' => long_name = Some(text(&content)),
                b'K' => long_link = Some(text(&content)),
                b'x' => {
                    long_name = attribute(&content, "path").or(long_name);
                    long_link = attribute(&content, "linkpath").or(long_link);
                    long_size = attribute(&content, "size").and_then(|size| size.parse().ok());
                }
                _ => {}
            }
            continue;
        }
        let prefix = if &block[257..262] == b"ustar" { text(&block[345..500]) } else { String::new() };
        let short = text(&block[..100]);
        let short = if prefix.is_empty() || prefix.starts_with('\0') { short } else { format!("{prefix}/{short}") };
        let entry = Entry {
            name: long_name.take().unwrap_or(short),
            link: long_link.take().unwrap_or_else(|| text(&block[157..257])),
            kind,
            size: long_size.take().unwrap_or(size),
        };
        one(context, asked, folder, &mut archive, &entry, &mut code)?;
    }
}

fn sum_fits(block: &[u8]) -> bool {
    let sum: u64 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
    number(&block[148..156]) == Some(sum)
}

struct Entry {
    name: String,
    link: String,
    kind: u8,
    size: u64,
}

fn one(
    context: &mut Context,
    asked: &Asked,
    folder: &str,
    archive: &mut Archive,
    entry: &Entry,
    code: &mut i32,
) -> Result<(), Stop> {
    let name = entry.name.trim_end_matches('/');
    let plain = name.trim_start_matches("./");
    let is_wanted = asked.operands.is_empty()
        || asked.operands.iter().any(|one| {
            let one = one.trim_end_matches('/').trim_start_matches("./");
            plain == one || plain.strip_prefix(one).is_some_and(|rest| rest.starts_with('/'))
        });
    let extracts = asked.act == Some('x');
    if is_wanted && (asked.verbose || !extracts) {
        context.out.line(&entry.name)?;
    }
    let mut output = Output::from(Sink::Nowhere);
    let mut problem = None;
    if is_wanted && extracts {
        match below(folder, &entry.name) {
            None => problem = Some("its name leads out of the folder".to_owned()),
            Some(_) if asked.to_stdout => {}
            Some(path) => match make(&path, entry) {
                Ok(made) => output = made,
                Err(error) => problem = Some(words(error)),
            },
        }
    }
    if let Some(why) = problem {
        *code = 2;
        context.say("tar", &format!("{}: {why}", entry.name))?;
    }
    let mut left = if matches!(entry.kind, b'0' | 0 | b'7') { entry.size } else { 0 };
    let over = (left % BLOCK as u64) as usize;
    while left > 0 {
        let bytes = archive.some(&mut context.stdin, left)?;
        if bytes.is_empty() {
            *code = 2;
            return context.say("tar", "unexpected end of the archive");
        }
        left -= bytes.len() as u64;
        let written = if asked.to_stdout && is_wanted { context.out.write(&bytes) } else { output.write(&bytes) };
        if let Err(stop) = written {
            if asked.to_stdout {
                return Err(stop);
            }
            *code = 2;
            output = Sink::Nowhere.into();
            context
                .say("tar", &format!("{}: cannot be written: no space is left, or its folder is gone", entry.name))?;
        }
    }
    if over > 0 {
        archive.take(&mut context.stdin, BLOCK - over)?;
    }
    Ok(())
}

/// Creates an entry; a file's content follows.
fn make(path: &str, entry: &Entry) -> Result<Output, ErrorCode> {
    let (parent, _) = split(path);
    if entry.kind == b'5' || entry.name.ends_with('/') {
        // Mounts and their parents exist.
        if !files::stat(path, true).is_ok_and(|stat| stat.is_dir()) {
            make_folder(path, true)?;
        }
        return Ok(Sink::Nowhere.into());
    }
    if !files::stat(parent, true).is_ok_and(|stat| stat.is_dir()) {
        make_folder(parent, true)?;
    }
    let (mount, rest) = files::mount(path)?;
    match entry.kind {
        b'2' => {
            let _ = mount.unlink_file_at(rest);
            mount.symlink_at(&entry.link, rest)?;
            Ok(Sink::Nowhere.into())
        }
        b'0' | 0 | b'7' => {
            // An existing link is replaced, not followed.
            if files::stat(path, false).is_ok_and(|stat| stat.is_link()) {
                mount.unlink_file_at(rest)?;
            }
            let file = files::open(path, OpenFlags::CREATE | OpenFlags::TRUNCATE, DescriptorFlags::WRITE)?;
            Ok(Sink::File(file, 0).into())
        }
        _ => Err(ErrorCode::Unsupported),
    }
}
