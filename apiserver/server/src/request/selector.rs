//! Label and field selectors as queries write them (k8s.io/apimachinery `labels.Parse`, `fields.ParseSelector`), with
//! upstream's sentences for what can't be read.

use std::collections::BTreeSet;

use apiserver_resources::field::quoted;
use apiserver_resources::rules;
use apiserver_storage::cache::{FieldRequirement, LabelOp, LabelRequirement};

/// Reads a label selector.
pub fn labels(text: &str) -> Result<Vec<LabelRequirement>, String> {
    Parser { tokens: lex(text), at: 0 }.selector()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Anything that is no operator; also `in` and `notin` where a key or value stands.
    Word(String),
    /// An operator, as written.
    Sign(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Sign(sign) => sign,
            Self::End => "",
        }
    }
}

const SIGNS: &[&str] = &["==", "!=", "=", "!", "(", ")", ",", "<", ">"];

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else { break };
        if "=!(),<>".contains(first) {
            // Upstream reads a run of signs as one token as long as it is one: `==` but not `=!`.
            let sign = SIGNS.iter().find(|s| rest.starts_with(**s)).copied().unwrap_or("=");
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        } else {
            let end = rest.find(|c: char| " \t\r\n=!(),<>".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<LabelRequirement>, String> {
        let mut found = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Sign("!") => {
                    found.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.next() {
                        Token::End => break,
                        Token::Sign(",") => {
                            let after = self.peek();
                            if !matches!(after, Token::Word(_) | Token::Sign("!")) {
                                return Err(format!("found '{}', expected: identifier after ','", after.text()));
                            }
                        }
                        other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
                    }
                }
                Token::End => break,
                other @ Token::Sign(_) => {
                    return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
                }
            }
        }
        Ok(found)
    }

    fn requirement(&mut self) -> Result<LabelRequirement, String> {
        let absent = self.peek() == &Token::Sign("!");
        if absent {
            self.at += 1;
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let problems = rules::label_key(&key);
        if !problems.is_empty() {
            return Err(format!("<nil>: Invalid value: {}: {}", quoted(&key), problems.join("; ")));
        }
        if absent {
            return Ok(LabelRequirement { key, op: LabelOp::DoesNotExist, values: Vec::new() });
        }
        if matches!(self.peek(), Token::End | Token::Sign(",")) {
            return Ok(LabelRequirement { key, op: LabelOp::Exists, values: Vec::new() });
        }
        let (op, values) = match self.next() {
            Token::Word(word) if word == "in" || word == "notin" => {
                let values = self.values()?;
                check_values(&key, &values)?;
                (if word == "in" { LabelOp::In } else { LabelOp::NotIn }, values.into_iter().collect())
            }
            Token::Sign(sign @ ("=" | "==" | "!=")) => {
                let value = self.exact_value()?;
                check_values(&key, &BTreeSet::from([value.clone()]))?;
                (if sign == "!=" { LabelOp::NotIn } else { LabelOp::In }, vec![value])
            }
            Token::Sign(sign @ ("<" | ">")) => {
                let value = self.exact_value()?;
                value.parse::<i64>().map_err(|_| {
                    format!(
                        "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        quoted(&value)
                    )
                })?;
                check_values(&key, &BTreeSet::from([value.clone()]))?;
                (if sign == ">" { LabelOp::Gt } else { LabelOp::Lt }, vec![value])
            }
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        Ok(LabelRequirement { key, op, values })
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Sign(",") => Ok(String::new()),
            Token::Word(word) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        if self.peek() != &Token::Sign("(") {
            return Err(format!("found '{}' expected: '('", self.peek().text()));
        }
        self.at += 1;
        let mut values = BTreeSet::new();
        match self.peek() {
            Token::Word(_) | Token::Sign(",") => loop {
                match self.next() {
                    Token::Word(word) => {
                        values.insert(word);
                        match self.peek() {
                            Token::Sign(",") => {}
                            Token::Sign(")") => break,
                            other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                        }
                    }
                    Token::Sign(",") => {
                        if values.is_empty() {
                            values.insert(String::new());
                        }
                        if self.peek() == &Token::Sign(")") {
                            values.insert(String::new());
                            break;
                        }
                        if self.peek() == &Token::Sign(",") {
                            self.at += 1;
                            values.insert(String::new());
                        }
                    }
                    other => {
                        return Err(format!("found '{}', expected: ',', or identifier", other.text()));
                    }
                }
            },
            Token::Sign(")") => {
                values.insert(String::new());
            }
            other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
        }
        if self.peek() != &Token::Sign(")") {
            return Err(format!("found '{}', expected: ')'", self.peek().text()));
        }
        self.at += 1;
        Ok(values)
    }
}

fn check_values(key: &str, values: &BTreeSet<String>) -> Result<(), String> {
    for (i, value) in values.iter().enumerate() {
        let problems = rules::label_value(value);
        if !problems.is_empty() {
            let shown = quoted(value);
            return Err(format!("values[{i}][{key}]: Invalid value: {shown}: {}", problems.join("; ")));
        }
    }
    Ok(())
}

/// Reads a field selector.
pub fn fields(text: &str) -> Result<Vec<FieldRequirement>, String> {
    let mut terms = Vec::new();
    for term in split_terms(text) {
        if term.is_empty() {
            continue;
        }
        let cut = term.char_indices().find_map(|(i, _)| {
            let rest = &term[i..];
            let sign = ["!=", "==", "="].into_iter().find(|s| rest.starts_with(s))?;
            Some((&term[..i], sign, &rest[sign.len()..]))
        });
        let Some((field, sign, value)) = cut else {
            return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
        };
        let value = unescape(value)?;
        // A term of nothing but its sign selects everything.
        if !(field.is_empty() && value.is_empty()) {
            terms.push(FieldRequirement { label: field.into(), equals: sign != "!=", value });
        }
    }
    Ok(terms)
}

/// The value that a field must have, where it must have one.
#[must_use]
pub fn exact<'a>(fields: &'a [FieldRequirement], label: &str) -> Option<&'a str> {
    fields.iter().find(|r| r.equals && r.label == label).map(|r| r.value.as_str())
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Result<String, String> {
    if !value.contains(['\\', ',', '=']) {
        return Ok(value.to_owned());
    }
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let value = |key: &str| labels.iter().find(|(l, _)| *l == key).map(|(_, v)| *v);
        super::labels(selector).unwrap().iter().all(|r| r.holds(value(&r.key)))
    }

    #[test]
    fn label_selectors() {
        let labels: &[(&str, &str)] = &[("x", "1"), ("e", ""), ("p.q/r", "s"), ("in", "in")];
        for yes in [
            "",
            "x=1",
            "x==1",
            "x!=2",
            "x",
            "!y",
            "e=",
            " x = 1 , e",
            "x in (1, 2,3 )",
            "y notin (1)",
            "e in ()",
            "p.q/r in (s)",
            "x>0",
            "x<2",
            "in in (in)",
            "e in (a,)",
            "e in (,a)",
            "y!=",
        ] {
            assert!(matches(yes, labels), "{yes}");
        }
        for no in ["x=2", "x!=1", "y", "!x", "x in (2)", "x notin (1)", "x>1", "x<1", "e>1"] {
            assert!(!matches(no, labels), "{no}");
        }
    }

    #[test]
    fn label_sentences() {
        for (selector, sentence) in [
            (
                "x>-1",
                "unable to parse requirement: values[0][x]: Invalid value: \"-1\": a valid label must be an empty string or \
                 consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                 (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (
                "x/",
                "unable to parse requirement: <nil>: Invalid value: \"x/\": name part must be non-empty; name part must \
                 consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                 (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
            ("a in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
            ("a,,b", "found ',', expected: identifier after ','"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            ("a in (b,c", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a=(b)", "unable to parse requirement: found '(', expected: identifier"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a>=b", "unable to parse requirement: found '=', expected: identifier"),
            ("a in ((b))", "unable to parse requirement: found '(', expected: ',', ')' or identifier"),
        ] {
            assert_eq!(super::labels(selector).unwrap_err(), sentence, "{selector}");
        }
    }

    #[test]
    fn field_selectors() {
        let found = fields("type==a/b,metadata.name!=x,,p=q\\,r").unwrap();
        let terms: Vec<_> = found.iter().map(|r| (r.label.as_str(), r.equals, r.value.as_str())).collect();
        assert_eq!(terms, [("type", true, "a/b"), ("metadata.name", false, "x"), ("p", true, "q,r")]);
        assert_eq!(exact(&found, "type"), Some("a/b"));
        assert_eq!(exact(&found, "metadata.name"), None);
        assert_eq!(fields("=,!=").unwrap(), []);
        assert_eq!(fields("a").unwrap_err(), "invalid selector: 'a'; can't understand 'a'");
        assert_eq!(fields("a=b=c").unwrap_err(), "invalid field selector: unescaped character in value: 61");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[ -~é]{0,40}") {
            let _ = super::labels(&text);
            let _ = super::fields(&text);
        }
    }
}
