//! The shell's builtins: commands that change the shell itself, such as `cd`, `export`, `set` and `read`.
use super::parse::is_name;
use super::{Flow, Ran, Shell, parse};
use crate::{files, words};
use guest::wasip2::filesystem::types::ErrorCode;
use guest::{String, ToOwned, Vec, format};

type Builtin = fn(&mut Shell<'_>, &[String]) -> Ran<i32>;

const BUILTINS: [(&str, Builtin); 18] = [
    (".", source),
    (":", nothing),
    ("break", leave),
    ("cd", cd),
    ("command", command),
    ("continue", next),
    ("eval", eval),
    ("exec", exec),
    ("exit", exit),
    ("export", export),
    ("local", local),
    ("read", read),
    ("return", give),
    ("set", set),
    ("shift", shift),
    ("trap", nothing),
    ("type", kind),
    ("unset", unset),
];

pub fn find(name: &str) -> Option<Builtin> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, builtin)| *builtin)
}

fn nothing(_: &mut Shell<'_>, _: &[String]) -> Ran<i32> {
    Ok(0)
}

fn number(args: &[String], otherwise: i32) -> i32 {
    args.get(1).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn exit(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    Err(Flow::Exit(number(args, shell.status) & 0xff))
}

fn give(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    Err(Flow::Return(number(args, shell.status) & 0xff))
}

fn leave(_: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    Err(Flow::Break(usize::try_from(number(args, 1)).unwrap_or(1)))
}

fn next(_: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    Err(Flow::Continue(usize::try_from(number(args, 1)).unwrap_or(1)))
}

fn cd(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    let to = match args.get(1) {
        Some(to) if to == "-" => shell.value("OLDPWD").unwrap_or_else(|| "/".to_owned()),
        Some(to) => to.clone(),
        None => shell.value("HOME").unwrap_or_else(|| "/".to_owned()),
    };
    let path = shell.context.absolute(&to);
    let why = match files::stat(&path, true) {
        Ok(stat) if stat.is_dir() => {
            let before = core::mem::replace(&mut shell.context.cwd, path);
            shell.set("OLDPWD", &before);
            return Ok(0);
        }
        Ok(_) => words(ErrorCode::NotDirectory),
        Err(error) => words(error),
    };
    shell.context.say("sh", &format!("cd: {to}: {why}"))?;
    Ok(1)
}

fn export(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    for arg in args[1..].iter().filter(|arg| *arg != "-p") {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg.as_str(), None),
        };
        if !is_name(name) {
            shell.context.say("sh", &format!("export: {name}: bad variable name"))?;
            return Ok(1);
        }
        if value.is_some() || shell.value(name).is_none() {
            shell.set(name, value.unwrap_or_default());
        }
        if let Some((.., exported)) = shell.vars.iter_mut().find(|(known, ..)| known == name) {
            *exported = true;
        }
    }
    if args.len() == 1 || args.iter().any(|arg| arg == "-p") {
        for (name, value, _) in shell.vars.clone().iter().filter(|(.., exported)| *exported) {
            shell.context.out.line(&format!("export {name}='{value}'"))?;
        }
    }
    Ok(0)
}

/// Variables of a function are global here: they are set and persist.
fn local(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    for arg in &args[1..] {
        let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
        shell.set(name, value);
    }
    Ok(0)
}

fn unset(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    for name in &args[1..] {
        shell.vars.retain(|(known, ..)| known != name);
        if args.get(1).is_some_and(|arg| arg == "-f") {
            shell.functions.retain(|(known, _)| known != name);
        }
    }
    Ok(0)
}

fn set(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    if args.len() == 1 {
        for (name, value, _) in shell.vars.clone() {
            shell.context.out.line(&format!("{name}='{value}'"))?;
        }
        return Ok(0);
    }
    let mut at = 1;
    while let Some(arg) = args.get(at).filter(|arg| arg.len() > 1 && arg.starts_with(['-', '+'])) {
        at += 1;
        if arg == "--" {
            shell.params = args[at..].to_vec();
            return Ok(0);
        }
        let on = arg.starts_with('-');
        for letter in arg[1..].chars() {
            match letter {
                'e' => shell.errexit = on,
                'u' => shell.nounset = on,
                'x' => shell.xtrace = on,
                'o' => {
                    match args.get(at).map(String::as_str) {
                        Some("errexit") => shell.errexit = on,
                        Some("nounset") => shell.nounset = on,
                        Some("xtrace") => shell.xtrace = on,
                        // The status of a pipeline is that of its last command.
                        _ => {
                            shell.context.say("sh", "set -o: there are errexit, nounset, xtrace")?;
                            return Ok(2);
                        }
                    }
                    at += 1;
                }
                other => {
                    shell.context.say("sh", &format!("set: unknown option -{other}"))?;
                    return Ok(2);
                }
            }
        }
    }
    if at < args.len() {
        shell.params = args[at..].to_vec();
    }
    Ok(0)
}

fn shift(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    let by = usize::try_from(number(args, 1)).unwrap_or(1);
    if by > shell.params.len() {
        return Ok(1);
    }
    shell.params.drain(..by);
    Ok(0)
}

fn eval(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    let command = parse::parse(&args[1..].join(" ")).map_err(|wrong| Flow::Wrong(wrong.why))?;
    shell.enter()?;
    let ran = shell.run(&command);
    shell.calls -= 1;
    ran
}

fn source(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    let Some(name) = args.get(1) else { return Err(Flow::Wrong(".: a file is missing".to_owned())) };
    let input = shell.context.open(name).map_err(Flow::Wrong)?;
    let text = crate::disk::whole(shell.context, input)?;
    let command = parse::parse(&String::from_utf8_lossy(&text)).map_err(|wrong| Flow::Wrong(wrong.why))?;
    shell.enter()?;
    let ran = shell.run(&command);
    shell.calls -= 1;
    ran
}

fn exec(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    if args.len() < 2 {
        return Ok(0);
    }
    let status = shell.call(&[], &args[1..])?;
    Err(Flow::Exit(status))
}

fn found(shell: &Shell<'_>, name: &str) -> bool {
    find(name).is_some() || shell.context.tool(name).is_some() || shell.functions.iter().any(|(known, _)| known == name)
}

/// `command -v NAME`, `command NAME ARGS…`
fn command(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    match args.get(1).map(String::as_str) {
        Some("-v" | "-V") => {
            let mut status = 0;
            for name in &args[2..] {
                if found(shell, name) {
                    shell.context.out.line(name)?;
                } else {
                    status = 127;
                }
            }
            Ok(status)
        }
        Some(_) => shell.call(&[], &args[1..]),
        None => Ok(0),
    }
}

fn kind(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    let mut status = 0;
    for name in &args[1..] {
        let text = if find(name).is_some() {
            format!("{name} is a shell builtin")
        } else if shell.functions.iter().any(|(known, _)| known == name) {
            format!("{name} is a function")
        } else if shell.context.tool(name).is_some() {
            format!("{name} is a tool of the toolbox")
        } else {
            status = 127;
            format!("{name}: not found")
        };
        shell.context.out.line(&text)?;
    }
    Ok(status)
}

/// Reads one line into variables; the last one gets the rest.
fn read(shell: &mut Shell<'_>, args: &[String]) -> Ran<i32> {
    let (mut raw, mut names, mut rest) = (false, Vec::new(), args[1..].iter());
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "-r" => raw = true,
            "-p" => {
                let prompt = rest.next().cloned().unwrap_or_default();
                shell.context.err.write(prompt.as_bytes())?;
            }
            name if is_name(name) => names.push(name.to_owned()),
            other => return Err(Flow::Wrong(format!("read: {other}: bad variable name"))),
        }
    }
    if names.is_empty() {
        names.push("REPLY".to_owned());
    }
    let mut input = shell.context.input.clone();
    let Some(line) = input.line(&mut shell.context.stdin)? else {
        for name in names {
            shell.set(&name, "");
        }
        return Ok(1);
    };
    let is_whole = line.ends_with(b"\n");
    let text = String::from_utf8_lossy(&line).into_owned();
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = if raw { text.to_owned() } else { text.replace('\\', "") };
    let separators = shell.value("IFS").unwrap_or_else(|| " \t\n".to_owned());
    let is_separator = |c: char| separators.contains(c);
    let mut left = text.trim_matches(|c: char| is_separator(c) && c.is_whitespace());
    for (at, name) in names.iter().enumerate() {
        let value = if at + 1 == names.len() {
            left
        } else {
            let (first, more) = left.split_once(is_separator).unwrap_or((left, ""));
            left = more.trim_start_matches(|c: char| is_separator(c) && c.is_whitespace());
            first
        };
        shell.set(name, value);
    }
    Ok(i32::from(!is_whole))
}
