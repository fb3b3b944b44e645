//! Repetition operators as Go's `regexp` reads them: an operator needs an argument and follows no other operator, and a
//! brace that begins no count is a literal. The `regex` crate differs in both.

/// Maximum repetition count, as in Go.
const REPEAT_MAX: u32 = 1000;

/// The pattern with its literal opening braces escaped. The error is Go's message about the first wrong operator. A
/// malformed class, group or escape ends the scan, and is left to the compiler.
pub(super) fn escape_literal_braces(pattern: &str) -> Result<String, String> {
    let mut scan = Scan { pattern, at: 0, out: String::with_capacity(pattern.len()), groups: vec![false] };
    scan.run()?;
    let rest = &pattern[scan.at..];
    Ok(scan.out + rest)
}

struct Scan<'a> {
    pattern: &'a str,
    at: usize,
    out: String,
    /// For each open group: whether an operator has an argument there.
    groups: Vec<bool>,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        &self.pattern[self.at..]
    }

    fn take(&mut self, bytes: usize) {
        self.out.push_str(&self.pattern[self.at..self.at + bytes]);
        self.at += bytes;
    }

    /// Whether an operator may follow.
    fn set_argument(&mut self, there: bool) {
        if let Some(last) = self.groups.last_mut() {
            *last = there;
        }
    }

    fn run(&mut self) -> Result<(), String> {
        // The start of the operator that ends here.
        let mut last_operator = None;
        while let Some(c) = self.rest().chars().next() {
            let start = self.at;
            let operator = match c {
                '*' | '+' | '?' => Some(1),
                '{' => count(self.rest())?,
                _ => None,
            };
            if let Some(bytes) = operator {
                let lazy = usize::from(self.rest()[bytes..].starts_with('?'));
                self.take(bytes + lazy);
                let text = |from: usize| &self.pattern[from..self.at];
                if let Some(before) = last_operator {
                    return Err(wrong("invalid nested repetition operator", text(before)));
                }
                if self.groups.last() != Some(&true) {
                    return Err(wrong("missing argument to repetition operator", text(start)));
                }
                last_operator = Some(start);
                continue;
            }
            last_operator = None;
            if !self.step(c) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads what is no operator; false for a malformed part.
    fn step(&mut self, c: char) -> bool {
        let rest = self.rest();
        let (bytes, argument) = match c {
            '|' => (1, false),
            '(' => {
                let Some((bytes, opens)) = group_head(rest) else { return false };
                self.take(bytes);
                if opens {
                    self.groups.push(false);
                }
                return true;
            }
            ')' => {
                if self.groups.len() < 2 {
                    return false;
                }
                self.groups.pop();
                (1, true)
            }
            '[' => match class(rest) {
                Some(bytes) => (bytes, true),
                None => return false,
            },
            '\\' => {
                let Some(bytes) = escape(rest) else { return false };
                // An empty quotation is nothing.
                let nothing = rest.starts_with(r"\Q\E") || rest == r"\Q";
                self.take(bytes);
                if !nothing {
                    self.set_argument(true);
                }
                return true;
            }
            '{' => {
                self.out.push('\\');
                (1, true)
            }
            other => (other.len_utf8(), true),
        };
        self.take(bytes);
        self.set_argument(argument);
        true
    }
}

fn wrong(what: &str, operator: &str) -> String {
    format!("error parsing regexp: {what}: `{operator}`")
}

/// The bytes of a count (`{2}`, `{2,}`, `{2,3}`); `None` if the brace is a literal.
fn count(rest: &str) -> Result<Option<usize>, String> {
    let Some((inner, _)) = rest[1..].split_once('}') else { return Ok(None) };
    let (least, most) = inner.split_once(',').map_or((inner, None), |(least, most)| (least, Some(most)));
    let number = |text: &str| {
        let plain =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !(text.len() > 1 && text.starts_with('0'));
        // Numbers beyond 32 bits are above the maximum, too.
        plain.then(|| text.parse::<u32>().unwrap_or(u32::MAX))
    };
    let Some(least) = number(least) else { return Ok(None) };
    let most = match most {
        None => least,
        Some("") => least,
        Some(text) => match number(text) {
            Some(most) => most,
            None => return Ok(None),
        },
    };
    let bytes = inner.len() + 2;
    if least > REPEAT_MAX || most > REPEAT_MAX || least > most {
        return Err(wrong("invalid repeat count", &rest[..bytes]));
    }
    Ok(Some(bytes))
}

/// The bytes of a group's head, and whether it opens a group: flags alone don't.
fn group_head(rest: &str) -> Option<(usize, bool)> {
    let Some(inner) = rest.strip_prefix("(?") else { return Some((1, true)) };
    if inner.starts_with("P<") || inner.starts_with('<') {
        return Some((rest.find('>')? + 1, true));
    }
    let end = inner.find(|c: char| !matches!(c, 'i' | 'm' | 's' | 'U' | '-'))?;
    match inner.as_bytes()[end] {
        b')' => Some((end + 3, false)),
        b':' => Some((end + 3, true)),
        _ => None,
    }
}

/// The bytes of a class.
fn class(rest: &str) -> Option<usize> {
    let mut at = 1 + usize::from(rest[1..].starts_with('^'));
    at += usize::from(rest[at..].starts_with(']'));
    while let Some(c) = rest[at..].chars().next() {
        match c {
            ']' => return Some(at + 1),
            '\\' => at += escape(&rest[at..])?,
            '[' if rest[at..].starts_with("[:") => at += rest[at..].find(":]").map_or(1, |end| end + 2),
            other => at += other.len_utf8(),
        }
    }
    None
}

/// The bytes of an escape.
fn escape(rest: &str) -> Option<usize> {
    let c = rest[1..].chars().next()?;
    match c {
        'Q' => Some(rest.find(r"\E").map_or(rest.len(), |end| end + 2)),
        'p' | 'P' | 'x' if rest[2..].starts_with('{') => Some(rest.find('}')? + 1),
        other => Some(1 + other.len_utf8()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::compile;

    /// Upstream's answers.
    #[test]
    fn operators_are_gos() {
        let missing = "missing argument to repetition operator: ";
        let nested = "invalid nested repetition operator: ";
        for (pattern, wanted) in [
            ("*", "*"),
            ("*?", "*?"),
            ("(*a)", "*"),
            ("a|*", "*"),
            ("|*", "*"),
            ("(?i)*", "*"),
            ("(?:*)", "*"),
            ("(?P<a>*)", "*"),
            ("(?i:*)", "*"),
            (r"\Q\E*", "*"),
            ("{2}", "{2}"),
            ("{2}?x", "{2}?"),
            ("*a{1001}", "*"),
            ("*[", "*"),
            ("*\u{e9}", "*"),
        ] {
            assert_eq!(
                compile(pattern).unwrap_err(),
                format!("error parsing regexp: {missing}`{wanted}`"),
                "{pattern}"
            );
        }
        for (pattern, wanted) in [
            ("a**", "**"),
            ("a*??", "*??"),
            ("a{2}{3}", "{2}{3}"),
            ("a{2}*?b", "{2}*?"),
            ("[*]*+", "*+"),
            ("a?*x", "?*"),
        ] {
            assert_eq!(compile(pattern).unwrap_err(), format!("error parsing regexp: {nested}`{wanted}`"), "{pattern}");
        }
        assert_eq!(compile("a{1001}").unwrap_err(), "error parsing regexp: invalid repeat count: `{1001}`");
        for (pattern, text) in [
            ("a{2", "a{2"),
            ("^{,2}$", "{,2}"),
            ("a*{", "aa{"),
            ("^{.+}$", "{x}"),
            (r"\Q*\E*", "**"),
            ("()*", ""),
            ("^*", ""),
            ("a*?b*?", "ab"),
            (r"\pN*", "1"),
            (r"\p{Greek}{2}", "\u{3b1}\u{3b1}"),
            ("^a{2,}$", "aaa"),
            ("x{01}", "x{01}"),
        ] {
            assert!(compile(pattern).unwrap().is_match(text), "{pattern}");
        }
        assert_eq!(compile("[*").unwrap_err(), "error parsing regexp: missing closing ]: `[*`");
        assert_eq!(compile("a)*").unwrap_err(), "error parsing regexp: unexpected ): `a)*`");
    }
}
