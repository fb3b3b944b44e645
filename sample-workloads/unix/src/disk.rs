//! Tools for files and folders: `ls`, `cp`, `rm`, `find` and others. Each walks at most [`DEPTH_MAX`] folders deep.
use crate::io::{Input, Stop};
use crate::process::time_text;
use crate::{Context, Ended, files, letters, words};
use files::{Stat, join, split};
use guest::wasip2::filesystem::types::{
    DescriptorFlags, DescriptorType, ErrorCode, NewTimestamp, OpenFlags, PathFlags,
};
use guest::{String, ToOwned, Vec, format};

/// Maximum depth of a walk: it bounds the stack.
const DEPTH_MAX: usize = 100;

/// Parses options, or reports the unknown one.
macro_rules! options {
    ($context:expr, $args:expr, $name:literal, $known:literal) => {
        match letters($args, $known) {
            Ok(read) => read,
            Err(why) => return $context.fail($name, &why),
        }
    };
}

/// The permission bits; the default ones if the node cannot report them.
fn permissions(path: &str, stat: &Stat) -> u32 {
    match stat.kind {
        DescriptorType::SymbolicLink => 0o777,
        DescriptorType::Directory => files::mode(path).unwrap_or(0o755),
        _ => files::mode(path).unwrap_or(0o644),
    }
}

fn mode(path: &str, stat: &Stat) -> String {
    let kind = match stat.kind {
        DescriptorType::Directory => 'd',
        DescriptorType::SymbolicLink => 'l',
        _ => '-',
    };
    files::mode_letters(kind, permissions(path, stat))
}

pub fn ls(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "ls", "1alARdhrtF");
    let operands = if operands.is_empty() { &[".".to_owned()][..] } else { operands };
    let (mut code, mut folders) = (0, Vec::new());
    for name in operands {
        let path = context.absolute(name);
        match files::stat(&path, !options.contains('d')).or_else(|_| files::stat(&path, false)) {
            Ok(stat) if stat.is_dir() && !options.contains('d') => folders.push((name.clone(), path)),
            Ok(stat) => row(context, &options, name, &path, &stat)?,
            Err(error) => {
                context.say("ls", &format!("{name}: {}", words(error)))?;
                code = 1;
            }
        }
    }
    let titles = operands.len() > 1 || options.contains('R');
    for (name, path) in folders {
        list(context, &options, (&name, &path), titles, 0, &mut code)?;
    }
    Ok(code)
}

fn list(
    context: &mut Context,
    options: &str,
    (name, path): (&str, &str),
    titles: bool,
    depth: usize,
    code: &mut i32,
) -> Result<(), Stop> {
    let mut names = match files::names(path) {
        Ok(names) => names,
        Err(error) => {
            *code = 1;
            return context.say("ls", &format!("{name}: {}", words(error)));
        }
    };
    names.retain(|name| options.contains(['a', 'A']) || !name.starts_with('.'));
    if options.contains('r') {
        names.reverse();
    }
    if titles {
        context.out.line(&format!("{name}:"))?;
    }
    let mut below = Vec::new();
    for entry in names {
        let at = join(path, &entry);
        let stat =
            files::stat(&at, false).unwrap_or(Stat { kind: DescriptorType::Unknown, size: 0, modified: 0, links: 0 });
        row(context, options, &entry, &at, &stat)?;
        if options.contains('R') && stat.is_dir() && depth < DEPTH_MAX {
            below.push((format!("{name}/{entry}"), at));
        }
    }
    for (name, path) in below {
        context.out.line("")?;
        list(context, options, (&name, &path), titles, depth + 1, code)?;
    }
    Ok(())
}

fn row(context: &mut Context, options: &str, name: &str, path: &str, stat: &Stat) -> Result<(), Stop> {
    let sign = if options.contains('F') && stat.is_dir() { "/" } else { "" };
    if !options.contains('l') {
        return context.out.line(&format!("{name}{sign}"));
    }
    let to = if stat.is_link() { link(path).map(|to| format!(" -> {to}")).unwrap_or_default() } else { String::new() };
    let time = time_text("%b %e %H:%M", stat.modified, 0);
    let (mode, links, size) = (mode(path, stat), stat.links, stat.size);
    context.out.line(&format!("{mode} {links:4} root root {size:10} {time} {name}{sign}{to}"))
}

fn link(path: &str) -> Result<String, ErrorCode> {
    let (mount, rest) = files::mount(path)?;
    mount.readlink_at(rest)
}

pub fn readlink(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "readlink", "fn");
    let mut code = 0;
    for name in operands {
        let path = context.absolute(name);
        match link(&path) {
            Ok(to) => context.out.line(&to)?,
            Err(_) if options.contains('f') && files::stat(&path, true).is_ok() => context.out.line(&path)?,
            Err(_) => code = 1,
        }
    }
    Ok(code)
}

pub fn stat(context: &mut Context, args: &[String]) -> Ended {
    let (mut format, mut follow, mut operands) = (None, false, Vec::new());
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "-c" => format = rest.next().cloned(),
            "-L" => follow = true,
            other => operands.push(other.to_owned()),
        }
    }
    let mut code = 0;
    for name in operands {
        let path = context.absolute(&name);
        let stat = match files::stat(&path, follow) {
            Ok(stat) => stat,
            Err(error) => {
                code = context.fail("stat", &format!("cannot stat '{name}': {}", words(error)))?;
                continue;
            }
        };
        let kind = match stat.kind {
            DescriptorType::Directory => "directory",
            DescriptorType::SymbolicLink => "symbolic link",
            DescriptorType::RegularFile if stat.size == 0 => "regular empty file",
            DescriptorType::RegularFile => "regular file",
            _ => "special file",
        };
        let time = time_text("%F %T %z", stat.modified, 0);
        let text = match &format {
            Some(format) => format
                .replace("%s", &format!("{}", stat.size))
                .replace("%n", &name)
                .replace("%F", kind)
                .replace("%Y", &format!("{}", stat.modified))
                .replace("%y", &time)
                .replace("%h", &format!("{}", stat.links))
                .replace("%A", &mode(&path, &stat))
                .replace("%a", &format!("{:o}", permissions(&path, &stat))),
            None => format!(
                "  File: {name}\n  Size: {}\t{kind}\t{}\n Links: {}\nModify: {time}",
                stat.size,
                mode(&path, &stat),
                stat.links
            ),
        };
        context.out.line(&text)?;
    }
    Ok(code)
}

/// Applies a function to each operand; reports failures.
fn at_each(
    context: &mut Context,
    tool: &str,
    operands: &[String],
    mut act: impl FnMut(&mut Context, &str) -> Result<(), ErrorCode>,
) -> Ended {
    if operands.is_empty() {
        return context.fail(tool, "missing operand");
    }
    let mut code = 0;
    for name in operands {
        let path = context.absolute(name);
        if let Err(error) = act(context, &path) {
            context.say(tool, &format!("{name}: {}", words(error)))?;
            code = 1;
        }
    }
    Ok(code)
}

pub fn touch(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "touch", "cam");
    at_each(context, "touch", operands, |_, path| {
        if !options.contains('c') {
            let exclusive = OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
            match files::open(path, exclusive, DescriptorFlags::WRITE) {
                Ok(_) => return Ok(()),
                Err(ErrorCode::Exist) => {}
                Err(error) => return Err(error),
            }
        }
        let (mount, rest) = files::mount(path)?;
        mount.set_times_at(PathFlags::SYMLINK_FOLLOW, rest, NewTimestamp::Now, NewTimestamp::Now)
    })
}

/// Creates a folder, with its parents if `parents` is set.
pub fn make_folder(path: &str, parents: bool) -> Result<(), ErrorCode> {
    if parents {
        if files::stat(path, true).is_ok_and(|stat| stat.is_dir()) {
            return Ok(());
        }
        let (parent, _) = split(path);
        if parent != "/" {
            make_folder(parent, true)?;
        }
    }
    let (mount, rest) = files::mount(path)?;
    if rest == "." {
        return Err(ErrorCode::Exist);
    }
    match mount.create_directory_at(rest) {
        Err(ErrorCode::Exist) if parents && files::stat(path, true).is_ok_and(|stat| stat.is_dir()) => Ok(()),
        done => done,
    }
}

pub fn mkdir(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "mkdir", "pv");
    at_each(context, "mkdir", operands, |_, path| make_folder(path, options.contains('p')))
}

pub fn rmdir(context: &mut Context, args: &[String]) -> Ended {
    let (_, operands) = options!(context, args, "rmdir", "");
    at_each(context, "rmdir", operands, |_, path| {
        let (mount, rest) = files::mount(path)?;
        mount.remove_directory_at(rest)
    })
}

fn remove(path: &str, recursive: bool, depth: usize) -> Result<(), ErrorCode> {
    let stat = files::stat(path, false)?;
    let (mount, rest) = files::mount(path)?;
    if !stat.is_dir() {
        return mount.unlink_file_at(rest);
    }
    if !recursive {
        return Err(ErrorCode::IsDirectory);
    }
    if rest == "." {
        return Err(ErrorCode::Busy);
    }
    if depth > DEPTH_MAX {
        return Err(ErrorCode::Loop);
    }
    for name in files::names(path)? {
        remove(&join(path, &name), true, depth + 1)?;
    }
    mount.remove_directory_at(rest)
}

pub fn rm(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "rm", "rRfv");
    let force = options.contains('f');
    if operands.is_empty() && force {
        return Ok(0);
    }
    at_each(context, "rm", operands, |_, path| match remove(path, options.contains(['r', 'R']), 0) {
        Err(ErrorCode::NoEntry) if force => Ok(()),
        done => done,
    })
}

pub fn ln(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "ln", "sfn");
    let [to, name] = operands else { return context.fail("ln", "usage: ln -s TARGET NAME") };
    if !options.contains('s') {
        return context.fail("ln", "there are no hard links here: ln -s TARGET NAME");
    }
    let path = context.absolute(name);
    let made = files::mount(&path).and_then(|(mount, rest)| {
        if options.contains('f') {
            let _ = mount.unlink_file_at(rest);
        }
        mount.symlink_at(to, rest)
    });
    match made {
        Ok(()) => Ok(0),
        Err(error) => context.fail("ln", &format!("{name}: {}", words(error))),
    }
}

fn copy(context: &mut Context, from: &str, to: &str, recursive: bool, depth: usize) -> Result<(), String> {
    let said = |path: &str, error| format!("{path}: {}", words(error));
    let stat = files::stat(from, !recursive).map_err(|error| said(from, error))?;
    if stat.is_dir() {
        if !recursive {
            return Err(said(from, ErrorCode::IsDirectory));
        }
        if depth > DEPTH_MAX || to == from || to.starts_with(&format!("{from}/")) {
            return Err(said(from, ErrorCode::Loop));
        }
        make_folder(to, true).map_err(|error| said(to, error))?;
        for name in files::names(from).map_err(|error| said(from, error))? {
            copy(context, &join(from, &name), &join(to, &name), true, depth + 1)?;
        }
        return Ok(());
    }
    if stat.is_link() {
        let target = link(from).map_err(|error| said(from, error))?;
        let (mount, rest) = files::mount(to).map_err(|error| said(to, error))?;
        let _ = mount.unlink_file_at(rest);
        return mount.symlink_at(&target, rest).map_err(|error| said(to, error));
    }
    if from == to {
        return Err(format!("{from} and {to} are the same file"));
    }
    let mut input = context.open(from)?;
    let mut output = context.create(to, false)?;
    loop {
        let failed = |_: Stop| format!("{to}: cannot be written");
        let bytes = input.read(&mut context.stdin).map_err(|_| format!("{from}: cannot be read"))?;
        if bytes.is_empty() {
            return Ok(());
        }
        output.write(&bytes).map_err(failed)?;
    }
}

/// The destination of operands: the last one, or a path below it if it is a folder.
fn targets(context: &Context, operands: &[String]) -> Result<Vec<(String, String)>, String> {
    let Some((last, sources)) = operands.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err("usage: SOURCE… TARGET".into());
    };
    let to = context.absolute(last);
    let is_dir = files::stat(&to, true).is_ok_and(|stat| stat.is_dir());
    if sources.len() > 1 && !is_dir {
        return Err(format!("{last}: {}", words(ErrorCode::NotDirectory)));
    }
    let each = sources.iter().map(|source| {
        let from = context.absolute(source);
        let to = if is_dir { join(&to, split(&from).1) } else { to.clone() };
        (from, to)
    });
    Ok(each.collect())
}

pub fn cp(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "cp", "rRapfv");
    let targets = match targets(context, operands) {
        Ok(targets) => targets,
        Err(why) => return context.fail("cp", &why),
    };
    let mut code = 0;
    for (from, to) in targets {
        if let Err(why) = copy(context, &from, &to, options.contains(['r', 'R', 'a']), 0) {
            code = context.fail("cp", &why)?;
        }
    }
    Ok(code)
}

pub fn mv(context: &mut Context, args: &[String]) -> Ended {
    let (_, operands) = options!(context, args, "mv", "fv");
    let targets = match targets(context, operands) {
        Ok(targets) => targets,
        Err(why) => return context.fail("mv", &why),
    };
    let mut code = 0;
    for (from, to) in targets {
        let renamed = files::mount(&from).and_then(|(mount, rest)| {
            let (other, target) = files::mount(&to)?;
            mount.rename_at(rest, other, target)
        });
        let moved = match renamed {
            Err(ErrorCode::CrossDevice) => copy(context, &from, &to, true, 0)
                .and_then(|()| remove(&from, true, 0).map_err(|error| format!("{from}: {}", words(error)))),
            done => done.map_err(|error| format!("{from}: {}", words(error))),
        };
        if let Err(why) = moved {
            code = context.fail("mv", &why)?;
        }
    }
    Ok(code)
}

/// All paths below a path, parents first, in the form of the operand.
fn walk(
    context: &mut Context,
    name: &str,
    path: &str,
    depth: usize,
    visit: &mut impl FnMut(&mut Context, &str, &Stat, usize) -> Result<(), Stop>,
) -> Result<bool, Stop> {
    let Ok(stat) = files::stat(path, false) else { return Ok(false) };
    visit(context, name, &stat, depth)?;
    if stat.is_dir() && depth < DEPTH_MAX {
        for entry in files::names(path).unwrap_or_default() {
            walk(context, &join(name, &entry), &join(path, &entry), depth + 1, visit)?;
        }
    }
    Ok(true)
}

pub fn find(context: &mut Context, args: &[String]) -> Ended {
    let (mut roots, mut name, mut kind, mut deepest) = (Vec::new(), None, None, usize::MAX);
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "-name" => name = rest.next(),
            "-type" => kind = rest.next(),
            "-maxdepth" => deepest = rest.next().and_then(|text| text.parse().ok()).unwrap_or(0),
            "-print" => {}
            other if other.starts_with('-') => {
                return context.fail("find", &format!("unknown option {other} (there are -name, -type, -maxdepth)"));
            }
            _ => roots.push(arg.clone()),
        }
    }
    if roots.is_empty() {
        roots.push(".".to_owned());
    }
    let mut code = 0;
    for root in roots {
        let path = context.absolute(&root);
        let found = walk(context, &root, &path, 0, &mut |context, shown, stat, depth| {
            let fits = name.is_none_or(|name| crate::sh::pattern::matches(name, split(shown).1))
                && kind.is_none_or(|kind| match kind.as_str() {
                    "d" => stat.is_dir(),
                    "l" => stat.is_link(),
                    _ => !stat.is_dir() && !stat.is_link(),
                });
            if fits && depth <= deepest { context.out.line(shown) } else { Ok(()) }
        })?;
        if !found {
            code = context.fail("find", &format!("{root}: {}", words(ErrorCode::NoEntry)))?;
        }
    }
    Ok(code)
}

pub fn du(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = options!(context, args, "du", "skbh");
    let operands = if operands.is_empty() { &[".".to_owned()][..] } else { operands };
    let mut code = 0;
    for name in operands {
        let (path, mut bytes) = (context.absolute(name), 0_u64);
        let found = walk(context, name, &path, 0, &mut |_, _, stat, _| {
            bytes += if stat.is_dir() { 0 } else { stat.size };
            Ok(())
        })?;
        if !found {
            code = context.fail("du", &format!("{name}: {}", words(ErrorCode::NoEntry)))?;
            continue;
        }
        let size = if options.contains('b') { bytes } else { bytes.div_ceil(1024) };
        context.out.line(&format!("{size}\t{name}"))?;
    }
    Ok(code)
}

/// The whole content of an input, for tools that need it at once.
pub fn whole(context: &mut Context, mut input: Input) -> Result<Vec<u8>, Stop> {
    let mut all = Vec::new();
    loop {
        let mut bytes = input.read(&mut context.stdin)?;
        if bytes.is_empty() {
            return Ok(all);
        }
        all.append(&mut bytes);
    }
}
