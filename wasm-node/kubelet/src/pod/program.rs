//! Resolves argv[0] of a session to a program, as by PATH. Pure.

use std::collections::BTreeMap;

/// The PATH of a Linux image, which scripts use as prefixes.
const FOLDERS: [&str; 6] = ["/bin/", "/usr/bin/", "/usr/local/bin/", "/sbin/", "/usr/sbin/", "/usr/local/sbin/"];

/// The program of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// The container's own module.
    Own,
    /// Another module of its image, by digest.
    Other(String),
    /// A tool of the node's toolbox.
    Toolbox,
    /// No such program.
    NotFound,
}

/// The tools of `sample-workloads/toolbox` (a test compares both lists).
const TOOLS: [&str; 49] = [
    "[", "[[", "awk", "basename", "cat", "cp", "cut", "date", "dirname", "du", "echo", "env", "expr", "false", "find",
    "grep", "head", "hexdump", "hostname", "id", "ln", "ls", "mkdir", "mv", "nc", "nslookup", "printenv", "printf",
    "pwd", "readlink", "rm", "rmdir", "seq", "sh", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "toolbox",
    "touch", "tr", "true", "uniq", "wc", "wget", "whoami",
];

/// Resolves a program. `own` is the image's argv[0], `others` are its modules by path; `has_toolbox`: the toolbox is
/// available to the session.
pub(crate) fn resolve(
    wanted: &str,
    own: Option<&str>,
    others: &BTreeMap<String, String>,
    has_toolbox: bool,
) -> Program {
    if own.is_some_and(|own| is_named(wanted, own)) {
        return Program::Own;
    }
    // A path selects one module; a name selects the first match in a PATH folder, else the first match.
    let in_path = |path: &str| FOLDERS.iter().any(|folder| path.starts_with(folder));
    let named = || others.iter().filter(|(path, _)| !wanted.contains('/') && is_named(wanted, path));
    let other = others.get_key_value(wanted).or_else(|| named().find(|(path, _)| in_path(path)));
    if let Some((_, digest)) = other.or_else(|| named().next()) {
        return Program::Other(digest.clone());
    }
    if has_toolbox && TOOLS.contains(&plain(wanted)) {
        return Program::Toolbox;
    }
    Program::NotFound
}

/// The name without a PATH folder as its prefix.
fn plain(wanted: &str) -> &str {
    FOLDERS.iter().find_map(|folder| wanted.strip_prefix(folder)).unwrap_or(wanted)
}

/// Whether `wanted` matches the file `own`: by path, name, or name without the extension.
fn is_named(wanted: &str, own: &str) -> bool {
    let name = own.rsplit('/').next().unwrap_or(own);
    let stem = name.strip_suffix(".wasm").unwrap_or(name);
    let plain = plain(wanted);
    !stem.is_empty() && (wanted == own || plain == name || plain == stem)
}

/// The exit code of shells and container runtimes for a missing program.
pub(crate) const NOT_FOUND_CODE: i32 = 127;

/// See [`NOT_FOUND_CODE`].
pub(crate) fn not_found(wanted: &str) -> String {
    if wanted.contains('/') {
        format!("exec: {wanted:?}: stat {wanted}: no such file or directory\n")
    } else {
        format!("exec: {wanted:?}: executable file not found in $PATH\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_like_a_path() {
        let own = Some("/app/wordcount.wasm");
        let resolve =
            |wanted: &str, own: Option<&str>, has_toolbox| resolve(wanted, own, &BTreeMap::new(), has_toolbox);
        for wanted in
            ["wordcount", "wordcount.wasm", "/app/wordcount.wasm", "/bin/wordcount", "/usr/bin/wordcount.wasm"]
        {
            assert_eq!(resolve(wanted, own, true), Program::Own, "{wanted}");
        }
        for wanted in ["", "word", "/opt/wordcount", "../wordcount", "/app/wordcount", "/bin/", ".wasm"] {
            assert_eq!(resolve(wanted, own, true), Program::NotFound, "{wanted}");
        }
        assert_eq!(resolve("", Some(""), true), Program::NotFound);
        for wanted in ["ls", "/bin/sh", "/usr/bin/tar", "["] {
            assert_eq!(resolve(wanted, own, true), Program::Toolbox, "{wanted}");
            assert_eq!(resolve(wanted, own, false), Program::NotFound, "{wanted}");
        }
        // The image takes precedence over the toolbox.
        assert_eq!(resolve("cat", Some("cat.wasm"), true), Program::Own);
    }

    #[test]
    fn other_modules_of_an_image_are_found_by_name_and_path() {
        let others =
            [("/app/count.wasm", "d1"), ("/app/sh.wasm", "d2"), ("/usr/bin/count", "d3"), ("/z/late.wasm", "d4")];
        let others = others.map(|(path, digest)| (path.to_owned(), digest.to_owned())).into();
        let of = |wanted: &str| match resolve(wanted, Some("/app/main.wasm"), &others, true) {
            Program::Other(digest) => digest,
            other => format!("{other:?}"),
        };
        assert_eq!(["count", "/app/count.wasm", "/usr/bin/count", "late"].map(of), ["d3", "d1", "d3", "d4"]);
        // The image takes precedence over the toolbox; a path matches no other path.
        assert_eq!(
            ["sh", "main", "/bin/sh", "/app/count", "nope"].map(of),
            ["d2", "Own", "Toolbox", "NotFound", "NotFound"]
        );
    }

    #[test]
    fn the_toolbox_has_the_tools_that_are_resolved() {
        let source = include_str!("../../../../sample-workloads/unix/src/lib.rs");
        let named = |line: &str| Some(line.trim().strip_prefix("(\"")?.split_once('"')?.0.to_owned());
        let mut tools: Vec<String> =
            source.lines().filter(|line| line.contains("::") || line.contains("list)")).filter_map(named).collect();
        let network = include_str!("../../../../sample-workloads/unix/src/dial.rs");
        assert!(network.contains("[(\"nc\", nc), (\"nslookup\", nslookup)]"));
        tools.extend(["nc", "nslookup"].map(str::to_owned));
        tools.sort_unstable();
        assert_eq!(tools, TOOLS);
    }

    #[test]
    fn missing_programs_have_upstreams_message() {
        assert_eq!(not_found("foo"), "exec: \"foo\": executable file not found in $PATH\n");
        assert_eq!(not_found("/foo"), "exec: \"/foo\": stat /foo: no such file or directory\n");
    }
}
