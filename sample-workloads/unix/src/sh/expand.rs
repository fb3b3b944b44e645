//! Expands words to arguments: variables, substitutions, field splitting, file names.
use super::arithmetic;
use super::parse::{end_of_nested, is_name};
use super::pattern;
use super::{Flow, Ran, Shell};
use crate::files;
use guest::{String, ToOwned, ToString, Vec, format};

/// Maximum bytes of one expanded word: `x=$x$x` in a loop must fail before memory is exhausted.
const WORD_BYTES_MAX: usize = 4 << 20;
/// Maximum names of one pattern.
const NAMES_MAX: usize = 65_536;

/// A partial argument: its text, and its pattern, in which quoted characters are literal.
#[derive(Default, Clone)]
struct Field {
    text: String,
    pattern: String,
    /// Set if the argument exists, even if it is empty.
    is_there: bool,
}

struct Fields {
    done: Vec<Field>,
    current: Field,
    splits: bool,
}

impl Fields {
    fn quoted(&mut self, text: &str) {
        self.current.is_there = true;
        self.current.text.push_str(text);
        for c in text.chars() {
            if matches!(c, '*' | '?' | '[' | ']' | '\\') {
                self.current.pattern.push('\\');
            }
            self.current.pattern.push(c);
        }
    }

    fn literal(&mut self, text: &str) {
        self.current.is_there = true;
        self.current.text.push_str(text);
        self.current.pattern.push_str(text);
    }

    /// The result of an unquoted expansion.
    fn split(&mut self, text: &str) {
        if !self.splits {
            return self.literal(text);
        }
        for c in text.chars() {
            if matches!(c, ' ' | '\t' | '\n') {
                self.end();
            } else {
                self.literal(c.encode_utf8(&mut [0; 4]));
            }
        }
    }

    fn end(&mut self) {
        let field = core::mem::take(&mut self.current);
        if field.is_there {
            self.done.push(field);
        }
    }
}

impl Shell<'_> {
    /// The arguments of a word.
    pub(super) fn arguments(&mut self, words: &[String]) -> Result<Vec<String>, Flow> {
        let mut all = Vec::new();
        for word in words {
            let mut fields = Fields { done: Vec::new(), current: Field::default(), splits: true };
            self.expand(word, &mut fields)?;
            fields.end();
            for field in fields.done {
                match self.names(&field) {
                    Some(names) => all.extend(names),
                    None => all.push(field.text),
                }
            }
        }
        Ok(all)
    }

    /// A word as one text, for an assignment, a file, or `case`.
    pub(super) fn text(&mut self, word: &str) -> Result<String, Flow> {
        Ok(self.field(word)?.text)
    }

    /// A word as a pattern.
    pub(super) fn pattern(&mut self, word: &str) -> Result<String, Flow> {
        Ok(self.field(word)?.pattern)
    }

    fn field(&mut self, word: &str) -> Result<Field, Flow> {
        let mut fields = Fields { done: Vec::new(), current: Field::default(), splits: false };
        self.expand(word, &mut fields)?;
        let mut whole = Field::default();
        for field in fields.done.into_iter().chain([fields.current]) {
            if whole.is_there {
                whole.text.push(' ');
                whole.pattern.push(' ');
            }
            whole.text.push_str(&field.text);
            whole.pattern.push_str(&field.pattern);
            whole.is_there |= field.is_there;
        }
        Ok(whole)
    }

    /// The text of a here-document, expanded as in double quotes.
    pub(super) fn here(&mut self, text: &str) -> Result<String, Flow> {
        let mut fields = Fields { done: Vec::new(), current: Field::default(), splits: false };
        self.double_quoted(text, true, &mut fields)?;
        Ok(fields.current.text)
    }

    /// File names that match a pattern; none for a plain word or without a match.
    fn names(&self, field: &Field) -> Option<Vec<String>> {
        let mut escaped = false;
        let is_pattern = field.pattern.chars().any(|c| {
            let special = !escaped && matches!(c, '*' | '?' | '[');
            escaped = !escaped && c == '\\';
            special
        });
        if !is_pattern {
            return None;
        }
        let (mut found, from_root) = (alloc::vec![String::new()], field.pattern.starts_with('/'));
        let parts: Vec<&str> = field.pattern.split('/').filter(|part| !part.is_empty()).collect();
        for (at, part) in parts.iter().enumerate() {
            let mut next = Vec::new();
            for before in &found {
                let folder = match (before.is_empty(), from_root) {
                    (true, true) => "/".to_owned(),
                    (true, false) => self.context.cwd.clone(),
                    (false, _) => self.context.absolute(before),
                };
                for name in files::names(&folder).unwrap_or_default() {
                    let hidden = name.starts_with('.') && !part.starts_with('.');
                    if hidden || !pattern::matches(part, &name) || next.len() >= NAMES_MAX {
                        continue;
                    }
                    let path = match (before.is_empty(), from_root) {
                        (true, true) => format!("/{name}"),
                        (true, false) => name,
                        (false, _) => format!("{before}/{name}"),
                    };
                    let leads_on = at + 1 == parts.len()
                        || files::stat(&self.context.absolute(&path), true).is_ok_and(|stat| stat.is_dir());
                    if leads_on {
                        next.push(path);
                    }
                }
            }
            found = next;
        }
        (!found.is_empty()).then_some(found)
    }

    fn expand(&mut self, word: &str, fields: &mut Fields) -> Ran<()> {
        let bytes = word.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            self.check_length(fields)?;
            match bytes[at] {
                b'\'' => {
                    let end = word[at + 1..].find('\'').map_or(bytes.len(), |length| at + 1 + length);
                    fields.quoted(&word[at + 1..end]);
                    at = end + 1;
                }
                b'"' => {
                    let end = super::double_end(bytes, at + 1);
                    fields.current.is_there = true;
                    let inner = word.get(at + 1..end.saturating_sub(1)).unwrap_or("").to_owned();
                    self.double_quoted(&inner, false, fields)?;
                    at = end;
                }
                b'\\' => {
                    let next = word[at + 1..].chars().next();
                    if let Some(c) = next.filter(|c| *c != '\n') {
                        fields.quoted(c.encode_utf8(&mut [0; 4]));
                    }
                    at += 1 + next.map_or(0, char::len_utf8);
                }
                b'$' | b'`' => at = self.dollar(word, at, false, fields)?,
                _ => {
                    let c = word[at..].chars().next().unwrap_or(' ');
                    fields.literal(c.encode_utf8(&mut [0; 4]));
                    at += c.len_utf8();
                }
            }
        }
        Ok(())
    }

    fn check_length(&self, fields: &Fields) -> Ran<()> {
        if fields.current.text.len() > WORD_BYTES_MAX || fields.done.len() > NAMES_MAX {
            return Err(Flow::Wrong("a word has become too long".to_owned()));
        }
        Ok(())
    }

    fn double_quoted(&mut self, text: &str, is_here: bool, fields: &mut Fields) -> Ran<()> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            self.check_length(fields)?;
            match bytes[at] {
                b'\\' => {
                    match bytes.get(at + 1) {
                        Some(b'\n') => {}
                        Some(next @ (b'$' | b'`' | b'\\')) => fields.quoted(char::from(*next).encode_utf8(&mut [0; 4])),
                        Some(b'"') if !is_here => fields.quoted("\""),
                        _ => {
                            fields.quoted("\\");
                            at += 1;
                            continue;
                        }
                    }
                    at += 2;
                }
                b'$' | b'`' => at = self.dollar(text, at, true, fields)?,
                _ => {
                    let c = text[at..].chars().next().unwrap_or(' ');
                    fields.quoted(c.encode_utf8(&mut [0; 4]));
                    at += c.len_utf8();
                }
            }
        }
        Ok(())
    }

    /// Expands the `$` or backquote at `at`; returns the end position.
    fn dollar(&mut self, word: &str, at: usize, in_quotes: bool, fields: &mut Fields) -> Result<usize, Flow> {
        let bytes = word.as_bytes();
        let put = |fields: &mut Fields, text: &str| if in_quotes { fields.quoted(text) } else { fields.split(text) };
        if bytes[at] == b'`' {
            let end = end_of_nested(bytes, at + 1, b'`').unwrap_or(bytes.len() + 1);
            let script = word.get(at + 1..end - 1).unwrap_or("").replace("\\`", "`").replace("\\\\", "\\");
            let said = self.substitute(&script)?;
            put(fields, &said);
            return Ok(end.min(bytes.len()));
        }
        match bytes.get(at + 1) {
            Some(b'(') if bytes.get(at + 2) == Some(&b'(') && word[at..].contains("))") => {
                let end = end_of_nested(bytes, at + 2, b')').unwrap_or(bytes.len());
                let inner = word.get(at + 3..end.saturating_sub(2)).unwrap_or("").to_owned();
                let inner = self.here(&inner)?;
                let number = arithmetic::evaluate(&inner, &mut |name| self.value(name)).map_err(Flow::Wrong)?;
                put(fields, &number.to_string());
                Ok(end)
            }
            Some(b'(') => {
                let end = end_of_nested(bytes, at + 2, b')').unwrap_or(bytes.len() + 1);
                let script = word.get(at + 2..end - 1).unwrap_or("").to_owned();
                let said = self.substitute(&script)?;
                put(fields, &said);
                Ok(end.min(bytes.len()))
            }
            Some(b'{') => {
                let end = end_of_nested(bytes, at + 2, b'}').unwrap_or(bytes.len() + 1);
                let inner = word.get(at + 2..end - 1).unwrap_or("").to_owned();
                if in_quotes && (inner == "@") || inner == "@" || inner == "*" {
                    self.parameters(&inner, in_quotes, fields);
                } else {
                    let value = self.braced(&inner)?;
                    put(fields, &value);
                }
                Ok(end.min(bytes.len()))
            }
            Some(b'@') => {
                self.parameters("@", in_quotes, fields);
                Ok(at + 2)
            }
            Some(b'*') => {
                self.parameters("*", in_quotes, fields);
                Ok(at + 2)
            }
            Some(sign @ (b'?' | b'#' | b'$' | b'!' | b'-' | b'0'..=b'9')) => {
                let value = self.value(char::from(*sign).encode_utf8(&mut [0; 4])).unwrap_or_default();
                put(fields, &value);
                Ok(at + 2)
            }
            Some(first) if first.is_ascii_alphabetic() || *first == b'_' => {
                let length = bytes[at + 1..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
                let name = &word[at + 1..at + 1 + length];
                let value = self.known(name)?;
                put(fields, &value);
                Ok(at + 1 + length)
            }
            _ => {
                put(fields, "$");
                Ok(at + 1)
            }
        }
    }

    fn parameters(&mut self, sign: &str, in_quotes: bool, fields: &mut Fields) {
        let all = self.params.clone();
        if sign == "*" && in_quotes {
            return fields.quoted(&all.join(" "));
        }
        for (at, one) in all.iter().enumerate() {
            if at > 0 {
                fields.end();
            }
            if in_quotes { fields.quoted(one) } else { fields.split(one) }
        }
        if all.is_empty() && in_quotes && fields.current.text.is_empty() {
            // "$@" without parameters expands to nothing.
            fields.current.is_there = false;
        }
    }

    /// A variable's value; unset is an error under `set -u`.
    fn known(&mut self, name: &str) -> Result<String, Flow> {
        match self.value(name) {
            Some(value) => Ok(value),
            None if self.nounset => Err(Flow::Wrong(format!("{name}: parameter not set"))),
            None => Ok(String::new()),
        }
    }

    /// The content of `${…}`.
    fn braced(&mut self, inner: &str) -> Result<String, Flow> {
        self.enter()?;
        let value = self.in_braces(inner);
        self.calls -= 1;
        value
    }

    fn in_braces(&mut self, inner: &str) -> Result<String, Flow> {
        if let Some(name) = inner.strip_prefix('#').filter(|name| !name.is_empty()) {
            return Ok(self.known(name)?.chars().count().to_string());
        }
        let length = inner.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let length = if length == 0 && !inner.is_empty() { 1 } else { length };
        let Some((name, rest)) = inner.split_at_checked(length) else {
            return Err(Flow::Wrong("bad substitution".to_owned()));
        };
        if rest.is_empty() {
            return self.known(name);
        }
        let value = self.value(name);
        let (counts_empty, operator) = match rest.strip_prefix(':') {
            Some(operator) => (true, operator),
            None => (false, rest),
        };
        let is_set = value.as_ref().is_some_and(|value| !counts_empty || !value.is_empty());
        let value = value.unwrap_or_default();
        let Some((sign, word)) = operator.split_at_checked(1) else {
            return Err(Flow::Wrong(format!("${{{inner}}}: bad substitution")));
        };
        match sign {
            "-" => {
                if is_set {
                    Ok(value)
                } else {
                    self.text(word)
                }
            }
            "+" => {
                if is_set {
                    self.text(word)
                } else {
                    Ok(String::new())
                }
            }
            "=" => {
                if is_set {
                    return Ok(value);
                }
                let word = self.text(word)?;
                self.set(name, &word);
                Ok(word)
            }
            "?" => {
                if is_set {
                    return Ok(value);
                }
                let why = if word.is_empty() { "parameter not set".to_owned() } else { self.text(word)? };
                Err(Flow::Wrong(format!("{name}: {why}")))
            }
            "#" | "%" if !counts_empty => {
                let (longest, word) = match word.strip_prefix(sign) {
                    Some(word) => (true, word),
                    None => (false, word),
                };
                let pattern = self.pattern(word)?;
                Ok(cut(&value, &pattern, sign == "#", longest))
            }
            _ => Err(Flow::Wrong(format!("${{{inner}}}: bad substitution"))),
        }
    }

    /// A variable or parameter; none if unset.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        match name {
            "?" => return Some(self.status.to_string()),
            "#" => return Some(self.params.len().to_string()),
            "$" => return Some("1".to_owned()),
            "!" => return Some(String::new()),
            "-" => return Some(String::new()),
            "0" => return Some(self.name.clone()),
            "@" | "*" => return Some(self.params.join(" ")),
            "PWD" => return Some(self.context.cwd.clone()),
            _ => {}
        }
        if let Ok(number) = name.parse::<usize>() {
            return self.params.get(number.checked_sub(1)?).cloned();
        }
        self.vars.iter().find(|(known, ..)| known == name).map(|(_, value, _)| value.clone())
    }

    /// Sets a variable.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self.vars.iter_mut().find(|(known, ..)| known == name) {
            Some((_, known, _)) => value.clone_into(known),
            None if is_name(name) => self.vars.push((name.to_owned(), value.to_owned(), false)),
            None => {}
        }
    }
}

/// A value without the part at its beginning or end that matches a pattern.
fn cut(value: &str, pattern: &str, front: bool, longest: bool) -> String {
    let mut ends: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    // The shortest match first.
    if front == longest {
        ends.reverse();
    }
    for at in ends {
        let (left, right) = value.split_at(at);
        if front && pattern::matches(pattern, left) {
            return right.to_owned();
        }
        if !front && pattern::matches(pattern, right) {
            return left.to_owned();
        }
    }
    value.to_owned()
}
