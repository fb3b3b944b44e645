//! Tokens of Rust's text: comments, string literals, words and punctuation, so that a guard doesn't take a quoted brace for a block.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Comment,
    /// The content of a string literal, without its quotes and with its escapes.
    Literal,
    Word,
    Punctuation,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind,
    pub(super) text: &'a str,
    /// The range of bytes in the file, quotes included.
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// The tokens of a file in their order.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let token = next_token(text, at, c);
        at = token.map_or(at + c.len_utf8(), |token| token.end);
        all.extend(token);
    }
    all
}

fn next_token(text: &str, begin: usize, first: char) -> Option<Token<'_>> {
    let rest = &text[begin..];
    let token = |kind, length: usize| Token { kind, text: &rest[..length], begin, end: begin + length };
    let find = |pattern: &str, from: usize| rest[from..].find(pattern).map_or(rest.len(), |length| from + length);
    match first {
        _ if first.is_whitespace() => None,
        '/' if rest.starts_with("//") => Some(token(TokenKind::Comment, find("\n", 2))),
        '/' if rest.starts_with("/*") => Some(token(TokenKind::Comment, (find("*/", 2) + 2).min(rest.len()))),
        '"' => {
            let length = literal_length(&rest[1..]);
            let end = (begin + length + 2).min(text.len());
            Some(Token { kind: TokenKind::Literal, text: &rest[1..=length], begin, end })
        }
        '\'' => Some(token(TokenKind::Punctuation, character_length(rest))),
        _ if is_word(first) => {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            raw_literal(text, begin, &rest[..length]).or_else(|| Some(token(TokenKind::Word, length)))
        }
        _ => Some(token(TokenKind::Punctuation, first.len_utf8())),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of a literal's content, up to the quote that ends it.
fn literal_length(content: &str) -> usize {
    let mut escaped = false;
    let ends = |c: char| {
        let end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        end
    };
    content.find(ends).unwrap_or(content.len().saturating_sub(1))
}

/// The length of a character literal, or of the quote that begins a lifetime.
fn character_length(text: &str) -> usize {
    let mut rest = text.char_indices().skip(1);
    match rest.next() {
        // The character after the backslash may be a quote itself.
        Some((_, '\\')) => text[3.min(text.len())..].find('\'').map_or(1, |length| length + 4),
        Some(_) => rest.next().filter(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 1),
        None => 1,
    }
}

/// A raw string that begins with the prefix `r`, `br` or `cr`.
fn raw_literal<'a>(text: &'a str, begin: usize, prefix: &str) -> Option<Token<'a>> {
    let rest = text[begin..].strip_prefix(prefix).filter(|_| matches!(prefix, "r" | "br" | "cr"))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let content = rest[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let length = content.find(&closing).unwrap_or(content.len());
    let end = (begin + prefix.len() + hashes + 1 + length + closing.len()).min(text.len());
    Some(Token { kind: TokenKind::Literal, text: &content[..length], begin, end })
}

#[test]
fn tokens_are_found() {
    use TokenKind::{Comment, Literal, Word};
    let of = |kind, text| {
        let all = tokens(text).into_iter().filter(|token| token.kind == kind);
        all.map(|token| token.text.to_owned()).collect::<Vec<_>>()
    };
    let text = "let a = ('\"', '\\'', '\\u{7b}', \"b\\\"c\"); // It's \"d\"\nfn e<'f>(g: &'f str) { r#\"h\"i\"# }";
    assert_eq!(of(Literal, text), ["b\\\"c", "h\"i"]);
    assert_eq!(of(Comment, text), ["// It's \"d\""]);
    assert_eq!(of(Word, text), ["let", "a", "fn", "e", "f", "g", "f", "str"]);
    assert_eq!(of(Literal, "b\"a\" \"\" \"ä\""), ["a", "", "ä"]);
    assert_eq!(of(Word, "\"open"), [""; 0]);
}
