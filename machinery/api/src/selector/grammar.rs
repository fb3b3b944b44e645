//! The parser of label selectors, with the messages of upstream's parser.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::{Operator, Requirement, SelectorError, go_quoted, label_key_problems, refuse};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    End,
    Word,
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Not,
    Greater,
    Less,
    Open,
    Close,
    Comma,
}

type Token<'a> = (Kind, Cow<'a, str>);

fn symbol(text: &str) -> Option<Kind> {
    Some(match text {
        ")" => Kind::Close,
        "," => Kind::Comma,
        "!" => Kind::Not,
        "==" => Kind::DoubleEquals,
        "=" => Kind::Equals,
        ">" => Kind::Greater,
        "<" => Kind::Less,
        "!=" => Kind::NotEquals,
        "(" => Kind::Open,
        _ => return None,
    })
}

fn scan(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let special = |b: u8| b"=!(),><".contains(&b);
    let blank = |b: u8| b" \t\r\n".contains(&b);
    let (mut tokens, mut at) = (Vec::new(), 0);
    loop {
        while at < bytes.len() && blank(bytes[at]) {
            at += 1;
        }
        // A NUL ends the text, as in upstream's scanner.
        if at >= bytes.len() || bytes[at] == 0 {
            tokens.push((Kind::End, "".into()));
            return tokens;
        }
        let start = at;
        if special(bytes[at]) {
            let mut found = None;
            while at < bytes.len() && special(bytes[at]) {
                match symbol(&text[start..=at]) {
                    Some(kind) => found = Some(kind),
                    None if found.is_some() => break,
                    None => {}
                }
                at += 1;
            }
            tokens.push(match found {
                Some(kind) => (kind, text[start..at].into()),
                None => (Kind::Error, format!("error expected: keyword found '{}'", &text[start..at]).into()),
            });
        } else {
            while at < bytes.len() && bytes[at] != 0 && !special(bytes[at]) && !blank(bytes[at]) {
                at += 1;
            }
            let word = &text[start..at];
            let kind = match word {
                "in" => Kind::In,
                "notin" => Kind::NotIn,
                _ => Kind::Word,
            };
            tokens.push((kind, word.into()));
            // Upstream's scanner swallows a NUL that ends a word.
            if bytes.get(at) == Some(&0) {
                at += 1;
            }
        }
    }
}

pub(super) struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { tokens: scan(text), at: 0 }
    }

    /// The current token, with keywords as words (which they are except as operators).
    fn peek(&self) -> Token<'a> {
        let (kind, text) = self.tokens.get(self.at).cloned().unwrap_or((Kind::End, "".into()));
        (if matches!(kind, Kind::In | Kind::NotIn) { Kind::Word } else { kind }, text)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    pub(super) fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            let (kind, text) = self.peek();
            match kind {
                Kind::Word | Kind::Not => {
                    let requirement = self
                        .requirement()
                        .map_err(|e| SelectorError(format!("unable to parse requirement: {}", e.0)))?;
                    requirements.push(requirement);
                    let (kind, text) = self.next();
                    match kind {
                        Kind::End => return Ok(requirements),
                        Kind::Comma => {
                            let (kind, text) = self.peek();
                            if !matches!(kind, Kind::Word | Kind::Not) {
                                return refuse(format!("found '{text}', expected: identifier after ','"));
                            }
                        }
                        _ => return refuse(format!("found '{text}', expected: ',' or 'end of string'")),
                    }
                }
                Kind::End => return Ok(requirements),
                _ => return refuse(format!("found '{text}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut kind, mut key) = self.next();
        let negated = kind == Kind::Not;
        if negated {
            (kind, key) = self.next();
        }
        if kind != Kind::Word {
            return refuse(format!("found '{key}', expected: identifier"));
        }
        let problems = label_key_problems(&key);
        if !problems.is_empty() {
            return refuse(format!("<nil>: Invalid value: {}: {}", go_quoted(&key), problems.join("; ")));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (kind, text) = self.tokens.get(self.at).cloned().unwrap_or((Kind::End, "".into()));
        self.at += 1;
        let operator = match kind {
            Kind::In => Operator::In,
            Kind::NotIn => Operator::NotIn,
            Kind::Equals => Operator::Equals,
            Kind::DoubleEquals => Operator::DoubleEquals,
            Kind::NotEquals => Operator::NotEquals,
            Kind::Greater => Operator::GreaterThan,
            Kind::Less => Operator::LessThan,
            _ => return refuse(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        Requirement::new(&key, operator, values.into_iter().collect())
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Kind::Word, text) => Ok(text.into_owned()),
            (_, text) => refuse(format!("found '{text}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let (kind, text) = self.next();
        if kind != Kind::Open {
            return refuse(format!("found '{text}' expected: '('"));
        }
        let (kind, text) = self.peek();
        match kind {
            Kind::Word | Kind::Comma => {
                let values = self.value_list()?;
                if self.next().0 != Kind::Close {
                    return refuse(format!("found '{text}', expected: ')'"));
                }
                Ok(values)
            }
            Kind::Close => {
                self.next();
                Ok(BTreeSet::from([String::new()]))
            }
            _ => refuse(format!("found '{text}', expected: ',', ')' or identifier")),
        }
    }

    fn value_list(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Kind::Word, text) => {
                    values.insert(text.into_owned());
                    match self.peek() {
                        (Kind::Comma, _) => {}
                        (Kind::Close, _) => return Ok(values),
                        (_, text) => return refuse(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Kind::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek().0 {
                        Kind::Close => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Kind::Comma => {
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, text) => return refuse(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }
}
