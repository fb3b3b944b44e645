//! Syntax errors and recovery, as in ANTLR: skips one superfluous token or inserts a missing one.

use super::lexer::Token;
use super::parser::{ParseAborted, Parsed, Parser};

/// Tokens that messages list, in order, and whether an expression may begin with each.
const LISTED: &[(&str, bool)] = &[
    ("[", true),
    ("]", false),
    ("{", true),
    ("}", false),
    ("(", true),
    (")", false),
    (".", true),
    (",", false),
    ("-", true),
    ("!", true),
    ("?", false),
    ("true", true),
    ("false", true),
    ("null", true),
];
const LITERALS: &str = "NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const FIELDS: &str = "{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}";

impl Parser<'_> {
    pub(super) fn syntax<T>(&mut self, message: String) -> Parsed<T> {
        let at = self.position();
        self.issues.report(self.source, at, format!("Syntax error: {message}"));
        Err(ParseAborted)
    }

    pub(super) fn expect(&mut self, sign: &str, expecting: &str) -> Parsed<u32> {
        let at = self.position();
        if self.take(sign) {
            return Ok(at);
        }
        let text = self.text();
        // Skips a superfluous token.
        if self.peek() != Token::End && self.tokens[self.at + 1].token == Token::Sign(static_sign(sign)) {
            self.error(at, format!("Syntax error: extraneous input '{text}' expecting {expecting}"));
            self.at += 2;
            return Ok(at);
        }
        // Inserts a missing token if a token that can follow it is next.
        let missing = match sign {
            ":" => self.starts_expression(),
            _ => self.peek() == Token::End && self.open == 1 && !expecting.starts_with('{'),
        };
        if missing {
            self.error(at, format!("Syntax error: missing '{sign}' at '{text}'"));
            return Ok(at);
        }
        self.syntax(format!("mismatched input '{text}' expecting {expecting}"))
    }

    /// Expects the closing sign of the innermost bracket.
    pub(super) fn close(&mut self, sign: &str, expecting: &str) -> Parsed<u32> {
        let closed = self.expect(sign, expecting)?;
        self.open -= 1;
        Ok(closed)
    }

    /// Whether an expression begins here.
    pub(super) fn starts_expression(&self) -> bool {
        match self.peek() {
            Token::Sign(sign) => LISTED.contains(&(sign, true)),
            Token::End | Token::EscapedIdent => false,
            _ => true,
        }
    }

    /// Checks that an expression or one of the given signs comes next, and skips one token that doesn't fit.
    pub(super) fn sync(&mut self, also: &[&str]) -> Parsed<()> {
        let fits = |token: Token| match token {
            Token::Sign(sign) => also.contains(&sign) || LISTED.contains(&(sign, true)),
            Token::End | Token::EscapedIdent => false,
            _ => true,
        };
        if fits(self.peek()) {
            return Ok(());
        }
        let message = format!("input '{}' expecting {}", self.text(), expected(also));
        if self.peek() != Token::End && fits(self.tokens[self.at + 1].token) {
            self.error(self.position(), format!("Syntax error: extraneous {message}"));
            self.at += 1;
            return Ok(());
        }
        if also.is_empty() && self.peek() != Token::End && self.tokens[self.at + 1].token == Token::End {
            // The token is skipped, and the end of input doesn't fit either.
            let end = self.tokens[self.at + 1].start;
            self.error(end, format!("Syntax error: mismatched input '<EOF>' expecting {}", expected(&[])));
        }
        self.syntax(format!("mismatched {message}"))
    }

    pub(super) fn no_field<T>(&mut self) -> Parsed<T> {
        let text = self.text();
        match self.peek() {
            Token::End => self.syntax("no viable alternative at input '.'".into()),
            Token::Sign("true" | "false" | "null" | "in") => {
                self.syntax(format!("mismatched input '{text}' expecting IDENTIFIER"))
            }
            _ => self.syntax(format!("no viable alternative at input '.{text}'")),
        }
    }

    /// Checks that a field or the end of the fields comes next.
    pub(super) fn sync_field(&mut self) -> Parsed<()> {
        let fits = |token: Token| matches!(token, Token::Ident | Token::EscapedIdent | Token::Sign("}" | "," | "?"));
        if fits(self.peek()) {
            return Ok(());
        }
        let message = format!("input '{}' expecting {FIELDS}", self.text());
        if self.peek() != Token::End && fits(self.tokens[self.at + 1].token) {
            self.error(self.position(), format!("Syntax error: extraneous {message}"));
            self.at += 1;
            return Ok(());
        }
        self.syntax(format!("mismatched {message}"))
    }

    /// Whether the list ends here; a trailing comma is allowed.
    pub(super) fn take_list_end(&mut self, sign: &str, goes_on: impl Fn(&Self) -> bool) -> Parsed<bool> {
        let comma = self.take(",");
        if comma && goes_on(self) {
            return Ok(false);
        }
        let expecting = if comma { format!("'{sign}'") } else { format!("{{'{sign}', ','}}") };
        self.close(sign, &expecting)?;
        Ok(true)
    }
}

/// The expected tokens of an expression's start, plus the given signs.
pub(super) fn expected(also: &[&str]) -> String {
    let listed = LISTED.iter().filter(|(sign, starts)| *starts || also.contains(sign));
    let signs: String = listed.map(|(sign, _)| format!("'{sign}', ")).collect();
    format!("{{{signs}{LITERALS}")
}

/// The static text of a sign.
fn static_sign(sign: &str) -> &'static str {
    LISTED.iter().find(|(known, _)| *known == sign).map_or(":", |(known, _)| known)
}
