//! The code that ships: files and items of tests aside. A guard that reads less proves less: `#[cfg(test)] mod tests;` at the top of a
//! file ends the test item, not the file.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::lexer::{Token, TokenKind, tokens};
use super::{all_rust_files, code};

/// Path and shipped code of every source file of ours that is more than tests.
pub(super) fn shipped_files() -> &'static [(String, String)] {
    static FILES: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
        let files: BTreeMap<String, String> = all_rust_files().into_iter().collect();
        let ours = files.iter().filter(|(path, _)| !is_test(path, &files));
        ours.map(|(path, text)| (path.clone(), shipped(text))).collect()
    });
    &FILES
}

/// A file's code that ships: no lines of comments, no test items.
pub(super) fn shipped(text: &str) -> String {
    let tokens = tokens(text);
    let mut kept = String::new();
    let mut from = 0;
    let mut at = 0;
    while at < tokens.len() {
        match test_attribute(&tokens[at..]) {
            Some((_, true)) => return String::new(),
            Some((length, false)) => {
                let end = item_end(&tokens[at + length..]);
                kept.push_str(&text[from..tokens[at].begin]);
                at += length + end;
                from = tokens.get(at - 1).map_or(text.len(), |last| last.end);
            }
            None => at += 1,
        }
    }
    kept.push_str(&text[from..]);
    code(&kept).collect::<Vec<_>>().join("\n")
}

/// The number of tokens of an attribute that leaves its item to tests, and whether the item is the file.
fn test_attribute(tokens: &[Token<'_>]) -> Option<(usize, bool)> {
    let texts: Vec<&str> = tokens.iter().take(8).map(|token| token.text).collect();
    let (inner, rest) = match texts.strip_prefix(&["#"])? {
        ["!", rest @ ..] => (1, rest),
        rest => (0, rest),
    };
    match rest {
        ["[", "cfg", "(", "test", ")", ..] | ["[", "cfg", "(", "all", "(", "test", ..] => {
            Some((inner + 1 + group_length(&tokens[inner + 1..]), inner == 1))
        }
        _ => None,
    }
}

/// The number of tokens of a group in brackets, with what it contains.
fn group_length(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0usize;
    let ends = |token: &Token<'_>| {
        depth = if opens(token) { depth + 1 } else { depth - usize::from(closes(token)) };
        depth == 0
    };
    tokens.iter().position(ends).map_or(tokens.len(), |at| at + 1)
}

fn opens(token: &Token<'_>) -> bool {
    token.kind == TokenKind::Punctuation && matches!(token.text, "(" | "[" | "{")
}

fn closes(token: &Token<'_>) -> bool {
    token.kind == TokenKind::Punctuation && matches!(token.text, ")" | "]" | "}")
}

/// The words that begin an item or a statement. Anything else is a field, a variant or an arm, which ends with a comma.
const ITEMS: &[&str] = &[
    "async",
    "const",
    "enum",
    "extern",
    "fn",
    "impl",
    "let",
    "macro_rules",
    "mod",
    "static",
    "struct",
    "trait",
    "type",
    "unsafe",
    "use",
];

/// The number of tokens of the item that begins there: up to its `;`, to the brace that closes its block, or to its comma. It never
/// passes the block around it.
fn item_end(tokens: &[Token<'_>]) -> usize {
    let is_item = tokens.iter().take_while(|token| !matches!(token.text, ":" | "{" | ";" | "="));
    let is_item = is_item.into_iter().any(|token| ITEMS.contains(&token.text));
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if closes(token) {
            return at;
        }
        let length = if opens(token) { group_length(&tokens[at..]) } else { 1 };
        at += length;
        let ends = token.kind == TokenKind::Punctuation
            && (token.text == ";" || token.text == "{" && is_item || token.text == "," && !is_item);
        if ends {
            // `use a::{b};` and `const A: B = B {};` have a semicolon behind their braces.
            let semicolon = token.text == "{" && tokens.get(at).is_some_and(|next| next.text == ";");
            return at + usize::from(semicolon);
        }
    }
    at
}

/// Whether a file is compiled for tests only: by its folder, or by how the module around it, or one further out, declares it.
fn is_test(path: &str, files: &BTreeMap<String, String>) -> bool {
    let outside = path.split('/').take_while(|part| *part != "src");
    if outside.into_iter().any(|part| matches!(part, "tests" | "benches" | "examples")) {
        return true;
    }
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (folder, name) = match name.strip_suffix(".rs") {
        Some("mod") => folder.rsplit_once('/').unwrap_or(("", folder)),
        stem => (folder, stem.unwrap_or(name)),
    };
    let around = ["mod.rs", "lib.rs", "main.rs"].map(|file| format!("{folder}/{file}"));
    let around = around.into_iter().chain([format!("{folder}.rs")]).filter(|parent| parent != path);
    let parents = around.filter_map(|parent| files.get_key_value(&parent));
    let mut parents = parents.filter(|(_, text)| declares(text, name)).peekable();
    parents.peek().is_some() && parents.all(|(parent, text)| !declares(&shipped(text), name) || is_test(parent, files))
}

/// Whether the text declares a module that has a file.
fn declares(text: &str, name: &str) -> bool {
    text.contains(&format!("mod {name};"))
}

#[test]
fn code_behind_a_test_module_of_its_own_file_ships() {
    let text = "//! A.\n#[cfg(test)]\nmod tests;\n\nuse tokio::sync;\n";
    assert!(shipped(text).contains("tokio::"));
    for (item, what) in [
        ("#[cfg(test)]\nmod tests {\n    // }\n    const A: &str = \"}\";\n    fn b() {}\n}", "a module"),
        ("#[cfg(test)]\n#[path = \"a.rs\"]\npub(crate) mod tests;", "a module with a path"),
        ("#[cfg(all(test, unix))]\nfn a(b: [u8; 2]) -> [u8; 2] {\n    b\n}", "a function"),
        ("#[cfg(test)]\nuse a::{b, c};", "an import"),
        ("#[cfg(test)]\nconst A: &[B] = &[B { c: 1 }, B { c: 2 }];", "a constant"),
        ("#[cfg(test)]\nimpl A {\n    fn b() {}\n}", "an implementation"),
    ] {
        let text = format!("fn before() {{}}\n{item}\nfn after() {{}}\n");
        assert_eq!(
            shipped(&text).split_whitespace().collect::<Vec<_>>().join(" "),
            "fn before() {} fn after() {}",
            "{what}"
        );
    }
    assert_eq!(shipped("struct A {\n    #[cfg(test)]\n    b: C<D>,\n    e: F,\n}"), "struct A {\n    \n    e: F,\n}");
    assert_eq!(shipped("#![cfg(test)]\nfn a() {}"), "");
}

#[test]
fn files_of_tests_are_known_by_their_declaration() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let files = BTreeMap::from([
        file("a/src/lib.rs", "#[cfg(test)]\nmod checks;\nmod b;\nmod fuzz;"),
        file("a/src/checks/mod.rs", "mod inner;"),
        file("a/src/checks/inner.rs", ""),
        file("a/src/b.rs", "#[cfg(test)]\nmod fuzz;"),
        file("a/src/b/fuzz.rs", ""),
        file("a/src/fuzz.rs", ""),
        file("a/tests/c.rs", ""),
    ]);
    let shipped: Vec<&str> = files.keys().filter(|path| !is_test(path, &files)).map(String::as_str).collect();
    assert_eq!(shipped, ["a/src/b.rs", "a/src/fuzz.rs", "a/src/lib.rs"]);
}
