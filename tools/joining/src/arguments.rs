//! Moves a token of the command line into the environment: every user of a machine can read the arguments of its processes, while
//! the environment is readable for the process's user alone.
//!
//! The program starts itself again, in the same process, with the other arguments. Until then, some milliseconds, the token is
//! visible; `--token-file` has no such time.

use std::ffi::{OsStr, OsString};

/// The verbs with a token.
const VERBS: [&str; 2] = ["node", "server"];
const FLAG: &str = "--token";
/// The variable of the flag.
const VARIABLE: &str = "CORACLE_TOKEN";

/// Starts the program again without the token in its arguments. Returns if they have none, or if it can't be started.
pub fn hide() {
    let Some((token, arguments)) = split(&std::env::args_os().collect::<Vec<_>>()) else { return };
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        let Ok(program) = std::env::current_exe() else { return };
        let (name, rest) =
            arguments.split_first().map_or((OsStr::new("coracle"), &[][..]), |(name, rest)| (name.as_os_str(), rest));
        let error = std::process::Command::new(program).arg0(name).args(rest).env(VARIABLE, token).exec();
        tools_command::output::print_stderr!("coracle: the token stays visible in this process's arguments: {error}");
    }
    #[cfg(not(unix))]
    drop((token, arguments));
}

/// The token, and the arguments without it. Pure.
fn split(arguments: &[OsString]) -> Option<(OsString, Vec<OsString>)> {
    let verb = arguments.iter().position(|one| VERBS.iter().any(|verb| one == verb))?;
    let (mut token, mut left) = (None, Vec::new());
    let mut rest = arguments.iter().enumerate();
    while let Some((at, one)) = rest.next() {
        let assigned = one.to_str().and_then(|one| one.strip_prefix(FLAG)?.strip_prefix('='));
        let found = match assigned {
            _ if at < verb => None,
            Some(value) => Some(OsString::from(value)),
            None if one == FLAG => Some(rest.next()?.1.clone()),
            None => None,
        };
        match found {
            // Twice is wrong usage, which the parser reports.
            Some(_) if token.is_some() => return None,
            Some(found) => token = Some(found),
            None => left.push(one.clone()),
        }
    }
    token.map(|token| (token, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &str) -> Option<(String, String)> {
        let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
        let (token, left) = split(&arguments)?;
        let left: Vec<_> = left.iter().map(|one| one.to_str().unwrap().to_owned()).collect();
        Some((token.to_str().unwrap().to_owned(), left.join(" ")))
    }

    #[test]
    fn the_token_leaves_the_arguments() {
        let is = |token: &str, left: &str| Some((token.to_owned(), left.to_owned()));
        assert_eq!(check("c node --server u --token a.b --ca-hash h"), is("a.b", "c node --server u --ca-hash h"));
        assert_eq!(check("c --log-level info server --token=a.b.c"), is("a.b.c", "c --log-level info server"));
        for unchanged in [
            "c node --server u",
            "c node --token",
            "c node --token-file f",
            "c node --token a --token b",
            "c token create --token a",
            "c --token a node",
            "c",
        ] {
            assert_eq!(check(unchanged), None, "{unchanged}");
        }
    }
}
