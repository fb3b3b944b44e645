//! What is said where the grammar doesn't fit, and where it goes on: as ANTLR does it, for one token too many or too few.

use super::lexer::Token;
use super::parser::{Parsed, Parser, Stop};

/// What messages list, in their order, and whether an expression may begin with it.
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
        let at = self.here();
        self.issues.report(self.source, at, format!("Syntax error: {message}"));
        Err(Stop)
    }

    pub(super) fn expect(&mut self, sign: &str, expecting: &str) -> Parsed<u32> {
        let at = self.here();
        if self.take(sign) {
            return Ok(at);
        }
        let text = self.text();
        // One token too many is passed over.
        if self.peek() != Token::End && self.tokens[self.at + 1].token == Token::Sign(known(sign)) {
            self.error(at, format!("Syntax error: extraneous input '{text}' expecting {expecting}"));
            self.at += 2;
            return Ok(at);
        }
        // One that is missing is thought to be there, where what follows it follows.
        let missing = match sign {
            ":" => self.begins(),
            _ => self.peek() == Token::End && self.open == 1 && !expecting.starts_with('{'),
        };
        if missing {
            self.error(at, format!("Syntax error: missing '{sign}' at '{text}'"));
            return Ok(at);
        }
        self.syntax(format!("mismatched input '{text}' expecting {expecting}"))
    }

    /// What closes the innermost bracket.
    pub(super) fn close(&mut self, sign: &str, expecting: &str) -> Parsed<u32> {
        let closed = self.expect(sign, expecting)?;
        self.open -= 1;
        Ok(closed)
    }

    /// Whether an expression begins here.
    pub(super) fn begins(&self) -> bool {
        match self.peek() {
            Token::Sign(sign) => LISTED.contains(&(sign, true)),
            Token::End | Token::EscapedIdent => false,
            _ => true,
        }
    }

    /// Looks whether an expression begins here, or one of these signs stands here; passes over one token that is none.
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
            self.error(self.here(), format!("Syntax error: extraneous {message}"));
            self.at += 1;
            return Ok(());
        }
        if also.is_empty() && self.peek() != Token::End && self.tokens[self.at + 1].token == Token::End {
            // It is passed over, and the end is no better.
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

    /// Looks whether a field or an end of them stands here.
    pub(super) fn sync_field(&mut self) -> Parsed<()> {
        let fits = |token: Token| matches!(token, Token::Ident | Token::EscapedIdent | Token::Sign("}" | "," | "?"));
        if fits(self.peek()) {
            return Ok(());
        }
        let message = format!("input '{}' expecting {FIELDS}", self.text());
        if self.peek() != Token::End && fits(self.tokens[self.at + 1].token) {
            self.error(self.here(), format!("Syntax error: extraneous {message}"));
            self.at += 1;
            return Ok(());
        }
        self.syntax(format!("mismatched {message}"))
    }

    /// Whether a list ends here; a comma may stand before its end.
    pub(super) fn ends(&mut self, sign: &str, goes_on: impl Fn(&Self) -> bool) -> Parsed<bool> {
        let comma = self.take(",");
        if comma && goes_on(self) {
            return Ok(false);
        }
        let expecting = if comma { format!("'{sign}'") } else { format!("{{'{sign}', ','}}") };
        self.close(sign, &expecting)?;
        Ok(true)
    }
}

/// What an expression may begin with, and signs beside.
pub(super) fn expected(also: &[&str]) -> String {
    let listed = LISTED.iter().filter(|(sign, starts)| *starts || also.contains(sign));
    let signs: String = listed.map(|(sign, _)| format!("'{sign}', ")).collect();
    format!("{{{signs}{LITERALS}")
}

/// A sign that lasts.
fn known(sign: &str) -> &'static str {
    LISTED.iter().find(|(known, _)| *known == sign).map_or(":", |(known, _)| known)
}
