//! Recursive-descent parser of the grammar: operator precedence, and the order of tokens.

use std::sync::Arc;

use super::lexer::{Lexeme, Token, lex};
use super::literal::unescape;
use super::macros;
use super::recovery::expected;
use super::{CompileError, Entry, FieldInit, Id, Issues, Kind, Literal, Source, Tree};
use crate::limits;

/// Words that can't be variable names.
pub(crate) const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Binary operators: text, precedence, and the function that they call.
const BINARY: &[(&str, u8, &str)] = &[
    ("==", 1, "_==_"),
    ("!=", 1, "_!=_"),
    ("<", 1, "_<_"),
    ("<=", 1, "_<=_"),
    (">", 1, "_>_"),
    (">=", 1, "_>=_"),
    ("in", 1, "@in"),
    ("+", 2, "_+_"),
    ("-", 2, "_-_"),
    ("*", 3, "_*_"),
    ("/", 3, "_/_"),
    ("%", 3, "_%_"),
];

/// Ends the parse after an error.
pub(super) struct ParseAborted;

pub(super) type Parsed<T> = Result<T, ParseAborted>;

pub(super) struct Parser<'a> {
    pub(super) source: &'a Source,
    pub(super) tokens: Vec<Lexeme>,
    pub(super) at: usize,
    depth: usize,
    /// The number of open brackets.
    pub(super) open: usize,
    pub(super) tree: Tree,
    pub(super) issues: Issues,
    /// Whether `cel.bind` is a macro.
    pub(super) binds: bool,
}

/// Parses an expression and expands its macros; `binds` enables `cel.bind`.
pub(crate) fn parse(source: &Source, binds: bool) -> Result<Tree, CompileError> {
    let mut issues = Issues::default();
    let size = source.chars.len();
    if size > limits::EXPRESSION_CHARS {
        let limit = limits::EXPRESSION_CHARS;
        issues.report_unlocated(format!("expression code point size exceeds limit: size: {size}, limit {limit}"));
        return Err(issues.into_error(source));
    }
    let (tokens, unrecognized) = lex(&source.chars);
    for (at, text) in unrecognized {
        issues.report(source, at, format!("Syntax error: token recognition error at: '{text}'"));
    }
    let mut parser = Parser { source, tokens, at: 0, depth: 0, open: 0, tree: Tree::default(), issues, binds };
    if let Ok(root) = parser.whole() {
        parser.tree.root = root;
    }
    if parser.issues.is_empty() { Ok(parser.tree) } else { Err(parser.issues.into_error(source)) }
}

impl Parser<'_> {
    fn whole(&mut self) -> Parsed<Id> {
        let root = self.expression()?;
        if self.peek() != Token::End {
            let last = self.tokens.get(self.at + 1).is_some_and(|next| next.token == Token::End);
            let how = if last { "extraneous" } else { "mismatched" };
            let text = self.text();
            return self.syntax(format!("{how} input '{text}' expecting <EOF>"));
        }
        Ok(root)
    }

    pub(super) fn peek(&self) -> Token {
        self.tokens[self.at].token
    }

    pub(super) fn position(&self) -> u32 {
        self.tokens[self.at].start
    }

    pub(super) fn text(&self) -> String {
        let lexeme = self.tokens[self.at];
        match lexeme.token {
            Token::End => "<EOF>".to_owned(),
            _ => self.source.chars[lexeme.start as usize..lexeme.end as usize].iter().collect(),
        }
    }

    pub(super) fn sign(&self) -> &'static str {
        match self.peek() {
            Token::Sign(sign) => sign,
            _ => "",
        }
    }

    /// Consumes a sign if it is the next token.
    pub(super) fn take(&mut self, sign: &str) -> bool {
        let found = self.sign() == sign;
        self.at += usize::from(found);
        found
    }

    pub(super) fn error(&mut self, at: u32, message: impl Into<String>) {
        self.issues.report(self.source, at, message.into());
    }

    pub(super) fn add(&mut self, kind: Kind, at: u32) -> Parsed<Id> {
        let id = self.tree.add(kind, at);
        if self.tree.nodes[id as usize].depth > limits::TREE_DEPTH {
            self.issues.report_unlocated("max recursion depth exceeded".to_owned());
            return Err(ParseAborted);
        }
        Ok(id)
    }

    pub(super) fn call(&mut self, function: &str, args: Vec<Id>, at: u32) -> Parsed<Id> {
        self.add(Kind::Call { function: function.into(), target: None, args }, at)
    }

    fn expression(&mut self) -> Parsed<Id> {
        self.depth += 1;
        if self.depth > limits::RECURSION {
            let limit = limits::RECURSION;
            self.issues.report_unlocated(format!("expression recursion limit exceeded: {limit}"));
            return Err(ParseAborted);
        }
        let condition = self.logic()?;
        let at = self.position();
        let result = if self.take("?") {
            let yes = self.logic()?;
            self.expect(":", "':'")?;
            let no = self.expression()?;
            self.call("_?_:_", vec![condition, yes, no], at)
        } else {
            Ok(condition)
        };
        self.depth -= 1;
        result
    }

    /// Alternatives of conjunctions, each as a balanced tree, so that a long chain isn't deep.
    fn logic(&mut self) -> Parsed<Id> {
        let mut alternatives = (Vec::new(), Vec::new());
        let mut terms = (Vec::new(), Vec::new());
        loop {
            terms.0.push(self.binary(1)?);
            let at = self.position();
            if self.take("&&") {
                terms.1.push(at);
                continue;
            }
            let (conjuncts, places) = std::mem::take(&mut terms);
            alternatives.0.push(self.balance("_&&_", &conjuncts, &places)?);
            if !self.take("||") {
                return self.balance("_||_", &alternatives.0, &alternatives.1);
            }
            alternatives.1.push(at);
        }
    }

    fn balance(&mut self, function: &str, terms: &[Id], places: &[u32]) -> Parsed<Id> {
        if terms.len() == 1 {
            return Ok(terms[0]);
        }
        let middle = places.len() / 2;
        let left = self.balance(function, &terms[..=middle], &places[..middle])?;
        let right = self.balance(function, &terms[middle + 1..], &places[middle + 1..])?;
        self.call(function, vec![left, right], places[middle])
    }

    fn binary(&mut self, weakest: u8) -> Parsed<Id> {
        let mut left = self.unary()?;
        loop {
            let sign = self.sign();
            let found = BINARY.iter().find(|(text, strength, _)| *text == sign && *strength >= weakest);
            let Some((_, strength, function)) = found else { return Ok(left) };
            let at = self.position();
            self.at += 1;
            let right = self.binary(strength + 1)?;
            left = self.call(function, vec![left, right], at)?;
        }
    }

    fn unary(&mut self) -> Parsed<Id> {
        self.sync(&[])?;
        let at = self.position();
        let sign = self.sign();
        let number = |token: Token| matches!(token, Token::Int | Token::Float);
        let negative = sign == "-" && number(self.tokens[self.at + 1].token);
        let function = match sign {
            "!" => "!_",
            "-" if !negative => "-_",
            _ => return self.member(),
        };
        let mut count = 0;
        while self.take(sign) {
            count += 1;
        }
        if self.sign() == "!" {
            return self.syntax(format!("no viable alternative at input '{sign}!'"));
        }
        self.sync(&[])?;
        let operand = self.member()?;
        if count % 2 == 0 { Ok(operand) } else { self.call(function, vec![operand], at) }
    }

    fn member(&mut self) -> Parsed<Id> {
        let mut operand = self.primary()?;
        loop {
            let at = self.position();
            if self.take(".") {
                operand = self.selection(operand, at)?;
            } else if self.take("[") {
                self.open += 1;
                self.sync(&["?"])?;
                let function = if self.take("?") { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.close("]", "']'")?;
                operand = self.call(function, vec![operand, index], at)?;
            } else {
                return Ok(operand);
            }
        }
    }

    fn selection(&mut self, operand: Id, at: u32) -> Parsed<Id> {
        let optional = self.take("?");
        let (name, name_at) = self.field_name()?;
        if optional {
            let field = self.add(Kind::Literal(Literal::String(name)), name_at)?;
            return self.call("_?._", vec![operand, field], at);
        }
        let open = self.position();
        if !self.take("(") {
            return self.add(Kind::Select { operand, field: name, test: false }, at);
        }
        let args = self.arguments()?;
        if let Some(expanded) = macros::expand(self, &name, Some(operand), &args, open)? {
            return Ok(expanded);
        }
        self.add(Kind::Call { function: name, target: Some(operand), args }, open)
    }

    fn field_name(&mut self) -> Parsed<(Arc<str>, u32)> {
        let at = self.position();
        match self.peek() {
            Token::Ident => {}
            Token::EscapedIdent => self.error(at, "unsupported syntax: '`'"),
            _ => {
                return self.no_field();
            }
        }
        let name = self.text();
        self.at += 1;
        Ok((name.into(), at))
    }

    fn arguments(&mut self) -> Parsed<Vec<Id>> {
        let mut args = Vec::new();
        self.open += 1;
        self.sync(&[")"])?;
        if self.take(")") {
            self.open -= 1;
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if !self.take(",") {
                self.close(")", "')'")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Parsed<Id> {
        let at = self.position();
        match self.peek() {
            Token::Sign("(") => {
                self.at += 1;
                self.open += 1;
                let inside = self.expression()?;
                self.close(")", "')'")?;
                Ok(inside)
            }
            Token::Sign("[") => self.list(),
            Token::Sign("{") => self.map(),
            Token::Sign("true" | "false" | "null") => {
                let literal = match self.sign() {
                    "null" => Literal::Null,
                    word => Literal::Bool(word == "true"),
                };
                self.at += 1;
                self.add(Kind::Literal(literal), at)
            }
            Token::Sign(".") if self.tokens[self.at + 1].token == Token::Ident => self.ident_or_call(),
            Token::Ident => self.ident_or_call(),
            Token::Sign("-") | Token::Int | Token::Uint | Token::Float => self.number(),
            Token::String | Token::Bytes => self.string(),
            Token::Sign(".") => {
                self.at += 1;
                self.no_field()
            }
            _ => {
                let text = self.text();
                self.syntax(format!("mismatched input '{text}' expecting {}", expected(&[])))
            }
        }
    }

    /// A variable, a call, or an object construction: all begin with a name.
    fn ident_or_call(&mut self) -> Parsed<Id> {
        if let Some(past) = self.object_brace() {
            return self.object(past);
        }
        let dotted = self.take(".");
        let at = self.position();
        let name = self.text();
        self.at += 1;
        if RESERVED.contains(&name.as_str()) {
            self.error(at, format!("reserved identifier: {name}"));
        }
        let name = if dotted { format!(".{name}") } else { name };
        let open = self.position();
        if !self.take("(") {
            return self.add(Kind::Ident(name.into()), at);
        }
        let args = self.arguments()?;
        if let Some(expanded) = macros::expand(self, &name, None, &args, open)? {
            return Ok(expanded);
        }
        self.add(Kind::Call { function: name.into(), target: None, args }, open)
    }

    /// The position of the brace if it follows a dotted name.
    fn object_brace(&self) -> Option<usize> {
        let mut at = self.at + usize::from(self.sign() == ".");
        loop {
            if self.tokens.get(at)?.token != Token::Ident {
                return None;
            }
            match self.tokens.get(at + 1)?.token {
                Token::Sign("{") => return Some(at + 1),
                Token::Sign(".") => at += 2,
                _ => return None,
            }
        }
    }

    fn object(&mut self, brace: usize) -> Parsed<Id> {
        let name: String = (self.at..brace)
            .map(|at| {
                self.at = at;
                self.text()
            })
            .collect();
        self.at = brace;
        let at = self.position();
        self.at += 1;
        self.open += 1;
        let mut fields = Vec::new();
        self.sync_field()?;
        if self.take(",") || self.sign() == "}" {
            self.close("}", "'}'")?;
            return self.add(Kind::Struct { name: name.into(), fields }, at);
        }
        loop {
            let optional = self.take("?");
            let (name, _) = self.field_name()?;
            let at = self.expect(":", "':'")?;
            let value = self.expression()?;
            fields.push(FieldInit { name, value, optional, at });
            if self.take_list_end("}", |parser| {
                matches!(parser.peek(), Token::Ident | Token::EscapedIdent | Token::Sign("?"))
            })? {
                break;
            }
        }
        self.add(Kind::Struct { name: name.into(), fields }, at)
    }

    fn list(&mut self) -> Parsed<Id> {
        let at = self.expect("[", "'['")?;
        let (mut items, mut optional) = (Vec::new(), Vec::new());
        self.open += 1;
        self.sync(&["]", ",", "?"])?;
        if self.take(",") || self.sign() == "]" {
            self.close("]", "']'")?;
            return self.add(Kind::List { items, optional }, at);
        }
        loop {
            optional.push(self.take("?"));
            items.push(self.expression()?);
            if self.take_list_end("]", |parser| parser.starts_expression() || parser.sign() == "?")? {
                break;
            }
        }
        self.add(Kind::List { items, optional }, at)
    }

    fn map(&mut self) -> Parsed<Id> {
        let at = self.expect("{", "'{'")?;
        let mut entries = Vec::new();
        self.open += 1;
        self.sync(&["}", ",", "?"])?;
        if self.take(",") || self.sign() == "}" {
            self.close("}", "'}'")?;
            return self.add(Kind::Map(entries), at);
        }
        loop {
            let optional = self.take("?");
            let key = self.expression()?;
            self.expect(":", "':'")?;
            let value = self.expression()?;
            entries.push(Entry { key, value, optional });
            if self.take_list_end("}", |parser| parser.starts_expression() || parser.sign() == "?")? {
                break;
            }
        }
        self.add(Kind::Map(entries), at)
    }

    fn number(&mut self) -> Parsed<Id> {
        let at = self.position();
        let sign = if self.take("-") { "-" } else { "" };
        let token = self.peek();
        let text = self.text();
        self.at += 1;
        let parsed = match token {
            Token::Float => {
                let value: Option<f64> = format!("{sign}{text}").parse().ok();
                value.filter(|value| value.is_finite()).map(Literal::Double).ok_or("invalid double literal")
            }
            Token::Uint => {
                let digits = text.trim_end_matches(['u', 'U']);
                let value = match digits.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => digits.parse(),
                };
                value.map(Literal::Uint).map_err(|_| "invalid uint literal")
            }
            Token::Int => {
                let value = match text.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16),
                    None => format!("{sign}{text}").parse(),
                };
                value.map(Literal::Int).map_err(|_| "invalid int literal")
            }
            _ => {
                self.at -= 1;
                let text = if token == Token::End { String::new() } else { text };
                return self.syntax(format!("no viable alternative at input '-{text}'"));
            }
        };
        let literal = parsed.unwrap_or_else(|message| {
            self.error(at, message);
            Literal::Null
        });
        self.add(Kind::Literal(literal), at)
    }

    fn string(&mut self) -> Parsed<Id> {
        let at = self.position();
        let bytes = self.peek() == Token::Bytes;
        let lexeme = self.tokens[self.at];
        self.at += 1;
        let token = &self.source.chars[lexeme.start as usize + usize::from(bytes)..lexeme.end as usize];
        let value = unescape(token, bytes).unwrap_or_else(|message| {
            self.issues.report(self.source, at, message.to_owned());
            Vec::new()
        });
        let literal = match bytes {
            true => Literal::Bytes(value.into()),
            false => Literal::String(String::from_utf8_lossy(&value).into()),
        };
        self.add(Kind::Literal(literal), at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPRESSION_STARTS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, \
                                     NUM_UINT, STRING, BYTES, IDENTIFIER}";

    fn error(text: &str) -> String {
        parse(&Source::new(text), false).expect_err(text).to_string()
    }

    #[test]
    fn errors_are_drawn_under_the_text() {
        assert_eq!(
            error("1 +"),
            format!(
                "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {EXPRESSION_STARTS}\n | 1 +\n | ...^"
            )
        );
        assert_eq!(
            error("a && namespace"),
            "ERROR: <input>:1:6: reserved identifier: namespace\n | a && namespace\n | .....^"
        );
        assert_eq!(
            error("1 2"),
            "ERROR: <input>:1:3: Syntax error: extraneous input '2' expecting <EOF>\n | 1 2\n | ..^"
        );
        assert_eq!(error("has(a)"), "ERROR: <input>:1:5: invalid argument to has() macro\n | has(a)\n | ....^");
        assert!(error("99999999999999999999").contains("invalid int literal"));
        assert!(error(r#""\q""#).contains(r#"token recognition error at: '"\q'"#));
    }

    #[test]
    fn deep_expressions_are_rejected() {
        for (open, close) in [("(", ")"), ("[", "]"), ("-(", ")"), ("{1:", "}"), ("f(", ")"), ("!(", ")")] {
            let text = format!("{}1{}", open.repeat(3000), close.repeat(3000));
            assert!(error(&text).contains("recursion limit exceeded"), "{open}");
        }
        assert!(error(&format!("1{}", "+1".repeat(3000))).contains("max recursion depth exceeded"));
        assert!(error(&format!("a{}", ".a".repeat(3000))).contains("max recursion depth exceeded"));
        assert!(parse(&Source::new(&format!("a{}", "&&a".repeat(3000))), false).is_ok());
        assert!(error(&"a".repeat(100_001)).contains("size exceeds limit"));
    }

    #[test]
    fn literals_are_read() {
        let literal = |text: &str| {
            let tree = parse(&Source::new(text), false).expect(text);
            match &tree.get(tree.root).kind {
                Kind::Literal(literal) => literal.clone(),
                other => panic!("{text}: {other:?}"),
            }
        };
        assert_eq!(literal("-9223372036854775808"), Literal::Int(i64::MIN));
        assert_eq!(literal("0xff"), Literal::Int(255));
        assert_eq!(literal("0xFFu"), Literal::Uint(255));
        assert_eq!(literal("1e3"), Literal::Double(1000.0));
        assert_eq!(literal(".5"), Literal::Double(0.5));
        assert_eq!(literal(r#"'a\n\x41\u00e9\U0001F600\101'"#), Literal::String("a\nAé😀A".into()));
        assert_eq!(literal(r#"r'a\n'"#), Literal::String("a\\n".into()));
        assert_eq!(literal("'''it's\r\n'''"), Literal::String("it's\n".into()));
        assert_eq!(literal(r#"b'\xffé'"#), Literal::Bytes([255, 0xc3, 0xa9].as_slice().into()));
        assert_eq!(literal(r#"br'\x'"#), Literal::Bytes(b"\\x".as_slice().into()));
    }
}
