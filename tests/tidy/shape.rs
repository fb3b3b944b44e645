//! Structs have few fields and functions few parameters. An exception is listed with its reason.

use super::{all_rust_files, check};

const FIELDS_MAX: usize = 20;
const PARAMETERS_MAX: usize = 6;

/// Structs with more fields, and why they are one value.
const WIDE_STRUCTS: &[(&str, &str, &str)] = &[
    (
        "apiserver/resources/src/info.rs",
        "ResourceInfo",
        "a served resource: one field for each property of discovery and storage",
    ),
    ("apiserver/resources/src/lib.rs", "Row", "a row of the table of built-in kinds"),
    ("wasm-node/kubelet/src/node/mod.rs", "NodeConfig", "one field for each setting of a node"),
];

/// Functions with more parameters, and why.
const WIDE_FUNCTIONS: &[(&str, &str, &str)] = &[
    ("apiserver/cel/src/syntax/macros.rs", "fold", "the parts of a comprehension, as CEL's specification names them"),
    (
        "apiserver/admission/src/policies/mutating.rs",
        "add_invocations",
        "one evaluation: policy, binding, parameters and request",
    ),
    ("apiserver/server/src/http/watch.rs", "stream", "one watch: its cache, its options and its connection"),
    ("apiserver/storage/src/store/record/tests.rs", "built_records_are_read", "arguments of a property test"),
    ("controllers/src/job/tally.rs", "end", "the parts of one decision about a Job"),
    ("apiserver/schema/src/patch/mod.rs", "decode_patched", "a patch, its type and the object's schema"),
    ("apiserver/schema/src/protobuf.rs", "put", "a field of a message with its type and its place"),
    ("wasm-node/kubelet/src/log/mod.rs", "take", "the settings of one log stream"),
    ("wasm-node/kubelet/src/node/heartbeat.rs", "new", "constructor: the node's parts"),
    ("wasm-node/kubelet/src/volume/files.rs", "add", "a file of a volume with its mode and owner"),
    ("wasm-node/runtime/src/host/preview1.rs", "path_link", "the signature of WASI preview 1"),
    ("wasm-node/runtime/src/host/preview1.rs", "path_open", "the signature of WASI preview 1"),
];

/// Name and number of fields of each struct with named fields, as rustfmt writes them.
fn structs(text: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    let mut open: Option<(&str, usize)> = None;
    for line in text.lines() {
        match &mut open {
            None => {
                let words = line.split_whitespace().skip_while(|word| word.starts_with("pub") || word.ends_with(')'));
                let mut words = words.skip_while(|word| *word == "(crate)");
                if !line.starts_with(' ') && words.next() == Some("struct") && line.ends_with('{') {
                    let name = words.next().unwrap_or_default();
                    open = Some((name.split(['<', '{']).next().unwrap_or(name), 0));
                }
            }
            Some(known) if line == "}" => {
                found.push(*known);
                open = None;
            }
            Some((_, fields)) => {
                let own = line.strip_prefix("    ").filter(|line| !line.starts_with([' ', '/', '#', '}', ')', ']']));
                *fields += usize::from(own.is_some_and(|line| line.contains(':')));
            }
        }
    }
    found
}

/// Name and number of parameters of each function, `self` included.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        if at > 0 && !text[..at].ends_with([' ', '\n', '(']) {
            continue;
        }
        let rest = &text[at + 3..];
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if name.is_empty() {
            continue;
        }
        let Some(open) = after_generics(&rest[name.len()..]) else { continue };
        found.push((name, parameters(open)));
    }
    found
}

/// The text behind the parenthesis that opens the parameters; none where generics or parentheses don't follow.
fn after_generics(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix('(') {
        return Some(rest);
    }
    let generics = text.strip_prefix('<')?;
    let mut depth = 1;
    let mut previous = ' ';
    for (at, c) in generics.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if previous != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return generics[at + 1..].strip_prefix('(');
        }
        previous = c;
    }
    None
}

/// The number of parameters up to the closing parenthesis.
fn parameters(text: &str) -> usize {
    let (mut depth, mut count, mut some, mut previous) = (0, 0, false, ' ');
    for c in text.chars() {
        match c {
            ')' if depth == 0 => break,
            '(' | '[' | '{' | '<' => depth += 1,
            '>' if previous == '-' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                count += 1;
                some = false;
                previous = c;
                continue;
            }
            _ => {}
        }
        some |= !c.is_whitespace();
        previous = c;
    }
    count + usize::from(some)
}

#[test]
fn structs_and_functions_are_narrow() {
    let mut problems = Vec::new();
    let mut used = Vec::new();
    for (path, text) in all_rust_files() {
        let found = |names: Vec<(&str, usize)>, max: usize| -> Vec<(String, usize)> {
            names.into_iter().filter(|(_, count)| *count > max).map(|(name, count)| (name.to_owned(), count)).collect()
        };
        let wide = found(structs(&text), FIELDS_MAX).into_iter().map(|found| (WIDE_STRUCTS, "fields", found));
        let long =
            found(functions(&text), PARAMETERS_MAX).into_iter().map(|found| (WIDE_FUNCTIONS, "parameters", found));
        for (exceptions, what, (name, count)) in wide.chain(long) {
            match exceptions.iter().find(|(file, item, _)| *file == path && *item == name) {
                Some(exception) => used.push(*exception),
                None => problems.push(format!("{path}: {name} has {count} {what}")),
            }
        }
    }
    for exception in WIDE_STRUCTS.iter().chain(WIDE_FUNCTIONS).filter(|exception| !used.contains(exception)) {
        problems.push(format!("{} {} is an exception that is no longer needed", exception.0, exception.1));
    }
    check(&problems);
}

#[test]
fn fields_and_parameters_are_counted() {
    let text = "pub(crate) struct A<T> {\n    /// One: two.\n    #[serde(rename = \"x: y\")]\n    pub a: Vec<\n        T,\n    >,\n    b: u8,\n}\n";
    assert_eq!(structs(text), [("A", 2)]);
    let text = "fn one<F: Fn(u8, u8) -> u8>(a: (u8, u8), b: BTreeMap<u8, u8>,) -> u8 {}\nfn two() {}\nlet f: fn(u8);";
    assert_eq!(functions(text), [("one", 2), ("two", 0)]);
}
