//! Lexer: splits an expression's characters into tokens, and reports the text that is no token.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    End,
    /// A sign or a keyword, by its text.
    Sign(&'static str),
    Ident,
    EscapedIdent,
    Int,
    Uint,
    Float,
    String,
    Bytes,
}

/// A token and its range of characters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Longer signs come first.
const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%",
];

/// Words that are tokens of their own.
const KEYWORDS: &[&str] = &["in", "true", "false", "null"];

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

struct Lexer<'a> {
    text: &'a [char],
    at: usize,
}

/// All tokens, and the position and text of each token recognition error.
pub(super) fn lex(text: &[char]) -> (Vec<Lexeme>, Vec<(u32, String)>) {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    let mut unrecognized = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        if start == text.len() {
            tokens.push(Lexeme { token: Token::End, start: start as u32, end: start as u32 });
            return (tokens, unrecognized);
        }
        match lexer.token() {
            Some(token) => tokens.push(Lexeme { token, start: start as u32, end: lexer.at as u32 }),
            None => {
                let end = lexer.at.max(start + 1).min(text.len());
                lexer.at = end;
                unrecognized.push((start as u32, text[start..end].iter().take(80).collect()));
            }
        }
    }
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip_blank(&mut self) {
        while self.at < self.text.len() {
            match self.peek(0) {
                '\t' | ' ' | '\r' | '\n' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == '/' => {
                    while self.at < self.text.len() && self.peek(0) != '\n' {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn token(&mut self) -> Option<Token> {
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        let first = self.peek(0);
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_ascii_digit()) {
            return Some(self.number());
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let start = self.at;
            self.at += self.text[start..].iter().take_while(|c| is_word(**c)).count();
            let word: String = self.text[start..self.at].iter().collect();
            return Some(KEYWORDS.iter().find(|keyword| **keyword == word).map_or(Token::Ident, |k| Token::Sign(k)));
        }
        if first == '`' {
            let inside = |c: &&char| is_word(**c) || matches!(c, '.' | '-' | '/' | ' ');
            let length = self.text[self.at + 1..].iter().take_while(inside).count();
            if length > 0 && self.peek(length + 1) == '`' {
                self.at += length + 2;
                return Some(Token::EscapedIdent);
            }
            // An invalid token is skipped including its first invalid character.
            self.at += length + 2;
            return None;
        }
        if matches!(first, '|' | '&' | '=') && self.peek(1) != if first == '=' { '=' } else { first } {
            self.at += 2;
            return None;
        }
        let sign = SIGNS.iter().find(|sign| sign.chars().enumerate().all(|(ahead, c)| self.peek(ahead) == c))?;
        self.at += sign.len();
        Some(Token::Sign(sign))
    }

    /// The length of a string's prefix: none, `r`, `b` or `br`.
    fn string_prefix(&self) -> Option<usize> {
        let quote = |ahead: usize| matches!(self.peek(ahead), '"' | '\'');
        match (self.peek(0).to_ascii_lowercase(), self.peek(1).to_ascii_lowercase()) {
            _ if quote(0) => Some(0),
            ('r' | 'b', _) if quote(1) => Some(1),
            ('b', 'r') if quote(2) => Some(2),
            _ => None,
        }
    }

    fn string(&mut self, prefix: usize) -> Option<Token> {
        let letters = &self.text[self.at..self.at + prefix];
        let raw = letters.iter().any(|c| c.eq_ignore_ascii_case(&'r'));
        let token = if letters.iter().any(|c| c.eq_ignore_ascii_case(&'b')) { Token::Bytes } else { Token::String };
        let start = self.at;
        self.at += prefix;
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        while self.at < self.text.len() {
            let c = self.peek(0);
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if triple { 3 } else { 1 };
                return Some(token);
            }
            if !triple && matches!(c, '\n' | '\r') {
                break;
            }
            if c != '\\' || raw {
                self.at += 1;
                continue;
            }
            match self.escape() {
                Ok(length) => self.at += length,
                Err(_) if triple => break,
                Err(length) => {
                    self.at = (self.at + length).min(self.text.len());
                    return None;
                }
            }
        }
        self.at = self.at.min(self.text.len());
        if triple && self.at > start + prefix + 3 {
            // An unterminated triple quote is an empty string followed by the rest.
            self.at = start + prefix + 2;
            return Some(token);
        }
        None
    }

    /// The length of an escape; the error is the length read until it became invalid.
    fn escape(&self) -> Result<usize, usize> {
        let all = |first: usize, count: usize, fits: fn(&char) -> bool| match (first..first + count)
            .find(|ahead| !fits(&self.peek(*ahead)))
        {
            Some(ahead) => Err(ahead + 1),
            None => Ok(first + count),
        };
        match self.peek(1) {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '`' | '\\' | '?' => Ok(2),
            '0'..='3' => all(2, 2, |c| matches!(c, '0'..='7')),
            'x' | 'X' => all(2, 2, char::is_ascii_hexdigit),
            'u' => all(2, 4, char::is_ascii_hexdigit),
            'U' => all(2, 8, char::is_ascii_hexdigit),
            _ => Err(2),
        }
    }

    fn digits(&mut self, digit: impl Fn(&char) -> bool) -> usize {
        let count = self.text[self.at..].iter().take_while(|c| digit(c)).count();
        self.at += count;
        count
    }

    fn number(&mut self) -> Token {
        if self.peek(0) == '0' && self.peek(1) == 'x' && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            self.digits(char::is_ascii_hexdigit);
            return self.unsigned();
        }
        self.digits(char::is_ascii_digit);
        let mut float = false;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            float = true;
            self.at += 1;
            self.digits(char::is_ascii_digit);
        }
        let sign = usize::from(matches!(self.peek(1), '+' | '-'));
        if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
            float = true;
            self.at += 1 + sign;
            self.digits(char::is_ascii_digit);
        }
        if float { Token::Float } else { self.unsigned() }
    }

    fn unsigned(&mut self) -> Token {
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return Token::Uint;
        }
        Token::Int
    }
}
