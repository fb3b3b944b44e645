//! The shell's grammar: text to commands. Pure, so that the node's own tests include it.
//!
//! Supported for scripts of `sh -c`: lists, pipelines, redirections, here-documents, `if`, `while`, `until`, `for`, `case`,
//! groups, functions. Absent: jobs (`&`), aliases, arrays.
use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Maximum nesting of commands: it bounds the stack.
pub const DEPTH_MAX: usize = 40;

/// A word before expansion, with its quotes and `$`.
pub type Word = String;

/// One redirection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// `N< FILE`
    From(Word),
    /// `N> FILE`, `N>> FILE`: the stream (1, 2; 3 is both), the file, whether to append.
    To(u8, Word, bool),
    /// `2>&1`, `>&2`
    Same(u8, u8),
    /// `<< END`: the text, and whether it is expanded.
    Here(String, bool),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `A=1 B=2 name args…`
    Simple { assigns: Vec<(String, Word)>, words: Vec<Word>, redirects: Vec<Redirect> },
    /// Commands in sequence.
    List(Vec<Command>),
    /// `a && b` (true), `a || b` (false), and so on.
    AndOr(Box<Command>, Vec<(bool, Command)>),
    /// `! a | b | c`
    Pipe { not: bool, commands: Vec<Command> },
    /// `if …; then …; else …; fi`
    If { condition: Box<Command>, then: Box<Command>, otherwise: Option<Box<Command>> },
    /// `while` (true), `until` (false)
    While { wanted: bool, condition: Box<Command>, body: Box<Command> },
    /// `for NAME in WORDS`; none = the parameters.
    For { name: String, words: Option<Vec<Word>>, body: Box<Command> },
    /// `case WORD in PATTERN|PATTERN) …;; esac`
    Case { word: Word, arms: Vec<(Vec<Word>, Command)> },
    /// `( … )`
    Subshell(Box<Command>),
    /// `name() …`
    Function(String, Box<Command>),
    /// A compound command with redirections.
    Redirected(Box<Command>, Vec<Redirect>),
}

/// A syntax error. `unfinished`: more text could complete the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The message.
    pub why: String,
    /// Whether more text could complete the script.
    pub unfinished: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    Op(&'static str),
    /// The digits directly before a redirection.
    Stream(u8),
    Here(String, bool),
    Newline,
    End,
}

/// Longer operators first.
const OPERATORS: [&str; 16] =
    ["<<-", "&>", "&&", "||", ";;", "<<", ">>", ">&", "<&", ">|", "<", ">", "|", ";", "(", ")"];

type Parsed<T> = Result<T, Wrong>;

fn wrong<T>(why: impl Into<String>) -> Parsed<T> {
    Err(Wrong { why: why.into(), unfinished: false })
}

fn unfinished<T>(what: &str) -> Parsed<T> {
    Err(Wrong { why: format!("syntax error: {what}"), unfinished: true })
}

/// The end position of `$(…)`, `${…}` or a backquoted text from `from`, after the closing character.
pub fn end_of_nested(text: &[u8], from: usize, close: u8) -> Option<usize> {
    let mut at = from;
    let mut depth = 0_usize;
    let open = match close {
        b')' => b'(',
        b'}' => b'{',
        _ => 0,
    };
    while at < text.len() {
        let byte = text[at];
        match byte {
            b'\\' => at += 1,
            b'\'' if close != b'`' => at = skip_to(text, at + 1, b'\'')?,
            b'"' if close != b'`' => at = end_of_double(text, at + 1)? - 1,
            _ if byte == close && depth == 0 => return Some(at + 1),
            _ if byte == close => depth -= 1,
            _ if open != 0 && byte == open => depth += 1,
            _ => {}
        }
        at += 1;
    }
    None
}

fn skip_to(text: &[u8], from: usize, what: u8) -> Option<usize> {
    (from..text.len()).find(|at| text[*at] == what)
}

/// The position after the closing quote of a double-quoted text from `from`.
fn end_of_double(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while at < text.len() {
        match text[at] {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            b'$' if matches!(text.get(at + 1), Some(b'(' | b'{')) => {
                let close = if text[at + 1] == b'(' { b')' } else { b'}' };
                at = end_in_quotes(text, at + 2, close)?;
            }
            b'`' => at = end_of_nested(text, at + 1, b'`')?,
            _ => at += 1,
        }
    }
    None
}

/// As [`end_of_nested`], without quotes: it is called for quoted text and is not recursive.
pub fn end_in_quotes(text: &[u8], from: usize, close: u8) -> Option<usize> {
    let open = if close == b')' { b'(' } else { b'{' };
    let (mut at, mut depth) = (from, 0_usize);
    let mut quote = 0_u8;
    while at < text.len() {
        let byte = text[at];
        if byte == b'\\' {
            at += 2;
            continue;
        }
        if quote != 0 {
            if byte == quote {
                quote = 0;
            }
        } else if close == b')' && (byte == b'\'' || byte == b'"') {
            quote = byte;
        } else if byte == close {
            if depth == 0 {
                return Some(at + 1);
            }
            depth -= 1;
        } else if byte == open {
            depth += 1;
        }
        at += 1;
    }
    None
}

fn lex(text: &str) -> Parsed<Vec<Token>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    // Here-documents that begin at the next line: token, end, whether expanded, whether tabs are removed.
    let mut here: Vec<(usize, String, bool, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\n' {
            at += 1;
            tokens.push(Token::Newline);
            for (token, end, expands, cuts) in here.drain(..) {
                let (body, next) = here_document(text, at, &end, cuts)?;
                at = next;
                tokens[token] = Token::Here(body, expands);
            }
        } else if byte == b' ' || byte == b'\t' || byte == b'\r' {
            at += 1;
        } else if byte == b'\\' && bytes.get(at + 1) == Some(&b'\n') {
            at += 2;
        } else if byte == b'#' {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
        } else if let Some(operator) = OPERATORS.iter().find(|operator| bytes[at..].starts_with(operator.as_bytes())) {
            at += operator.len();
            if *operator == "<<" || *operator == "<<-" {
                while matches!(bytes.get(at), Some(b' ' | b'\t')) {
                    at += 1;
                }
                let (end, next) = word(text, at)?;
                at = next;
                let expands = !end.contains(['\'', '"', '\\']);
                let plain: String = end.chars().filter(|c| !matches!(c, '\'' | '"' | '\\')).collect();
                here.push((tokens.len(), plain, expands, *operator == "<<-"));
                tokens.push(Token::Here(String::new(), false));
            } else {
                tokens.push(Token::Op(operator));
            }
        } else if byte == b'&' {
            return wrong("nothing runs in the background here: there is no \"&\"");
        } else if byte.is_ascii_digit() && matches!(bytes.get(at + 1), Some(b'<' | b'>')) {
            tokens.push(Token::Stream(byte - b'0'));
            at += 1;
        } else {
            let (found, next) = word(text, at)?;
            at = next;
            tokens.push(Token::Word(found));
        }
    }
    if !here.is_empty() {
        return unfinished("a here-document does not end");
    }
    tokens.push(Token::End);
    Ok(tokens)
}

fn here_document(text: &str, from: usize, end: &str, cuts: bool) -> Parsed<(String, usize)> {
    let mut body = String::new();
    let mut at = from;
    while at < text.len() {
        let line_end = text[at..].find('\n').map_or(text.len(), |length| at + length);
        let line = &text[at..line_end];
        let line = if cuts { line.trim_start_matches('\t') } else { line };
        let next = (line_end + 1).min(text.len());
        if line == end {
            return Ok((body, next));
        }
        body.push_str(line);
        body.push('\n');
        at = next;
    }
    unfinished("a here-document does not end")
}

/// The word at `from`, and its end.
fn word(text: &str, from: usize) -> Parsed<(Word, usize)> {
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b' ' | b'\t' | b'\n' | b'\r' | b'|' | b'&' | b';' | b'<' | b'>' | b'(' | b')' => break,
            b'\\' => at += 2,
            b'\'' => at = skip_to(bytes, at + 1, b'\'').map_or_else(|| unfinished("an unterminated '"), Ok)? + 1,
            b'"' => at = end_of_double(bytes, at + 1).map_or_else(|| unfinished("an unterminated \""), Ok)?,
            b'`' => at = end_of_nested(bytes, at + 1, b'`').map_or_else(|| unfinished("an unterminated `"), Ok)?,
            b'$' if bytes.get(at + 1) == Some(&b'(') => {
                at = end_of_nested(bytes, at + 2, b')').map_or_else(|| unfinished("an unterminated $("), Ok)?;
            }
            b'$' if bytes.get(at + 1) == Some(&b'{') => {
                at = end_of_nested(bytes, at + 2, b'}').map_or_else(|| unfinished("an unterminated ${"), Ok)?;
            }
            _ => at += 1,
        }
    }
    if at > bytes.len() {
        return unfinished("a \\ at the end");
    }
    // A backslash may have advanced into the middle of a character.
    while !text.is_char_boundary(at) {
        at += 1;
    }
    Ok((text[from..at].to_owned(), at))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

/// Parses a script.
pub fn parse(text: &str) -> Result<Command, Wrong> {
    let mut parser = Parser { tokens: lex(text)?, at: 0, depth: 0 };
    let list = parser.list(&[])?;
    match parser.peek() {
        Token::End => Ok(list),
        other => {
            let other = other.clone();
            parser.unexpected(&other)
        }
    }
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

    fn unexpected<T>(&self, token: &Token) -> Parsed<T> {
        match token {
            Token::End => unfinished("unexpected end of file"),
            Token::Word(word) => wrong(format!("syntax error: unexpected \"{word}\"")),
            Token::Op(operator) => wrong(format!("syntax error: unexpected \"{operator}\"")),
            Token::Newline => wrong("syntax error: unexpected newline"),
            Token::Stream(_) | Token::Here(..) => wrong("syntax error: unexpected redirection"),
        }
    }

    fn is_word(&self, wanted: &str) -> bool {
        matches!(self.peek(), Token::Word(word) if word == wanted)
    }

    fn is_op(&self, wanted: &str) -> bool {
        matches!(self.peek(), Token::Op(operator) if *operator == wanted)
    }

    fn expect(&mut self, wanted: &str) -> Parsed<()> {
        if self.is_word(wanted) || self.is_op(wanted) {
            self.at += 1;
            return Ok(());
        }
        let found = self.peek().clone();
        self.unexpected(&found)
    }

    fn newlines(&mut self) {
        while matches!(self.peek(), Token::Newline) {
            self.at += 1;
        }
    }

    /// Parses commands until one of the words of `ends`, which is not consumed.
    fn list(&mut self, ends: &[&str]) -> Parsed<Command> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return wrong("the script's commands stand too deep in each other");
        }
        let mut commands = Vec::new();
        loop {
            while matches!(self.peek(), Token::Newline) || self.is_op(";") {
                if self.is_op(";") && commands.is_empty() {
                    let found = self.peek().clone();
                    return self.unexpected(&found);
                }
                self.at += 1;
            }
            let ended = match self.peek() {
                Token::End => true,
                Token::Word(word) => ends.contains(&word.as_str()),
                Token::Op(operator) => ends.contains(operator),
                _ => false,
            };
            if ended || self.is_op(")") || self.is_op(";;") {
                self.depth -= 1;
                return Ok(match (commands.pop(), commands.is_empty()) {
                    (Some(only), true) => only,
                    (Some(last), false) => {
                        commands.push(last);
                        Command::List(commands)
                    }
                    (None, _) => Command::List(commands),
                });
            }
            commands.push(self.and_or()?);
            let separated = matches!(self.peek(), Token::Newline | Token::End) || self.is_op(";");
            if !separated && !self.is_op(")") && !self.is_op(";;") {
                let found = self.peek().clone();
                return self.unexpected(&found);
            }
        }
    }

    /// A list with at least one command.
    fn body(&mut self, ends: &[&str]) -> Parsed<Box<Command>> {
        let list = self.list(ends)?;
        if list == Command::List(Vec::new()) {
            let found = self.peek().clone();
            return self.unexpected(&found);
        }
        Ok(Box::new(list))
    }

    fn and_or(&mut self) -> Parsed<Command> {
        let first = self.pipeline()?;
        let mut rest = Vec::new();
        loop {
            let wanted = match self.peek() {
                Token::Op("&&") => true,
                Token::Op("||") => false,
                _ if rest.is_empty() => return Ok(first),
                _ => return Ok(Command::AndOr(Box::new(first), rest)),
            };
            self.at += 1;
            self.newlines();
            rest.push((wanted, self.pipeline()?));
        }
    }

    fn pipeline(&mut self) -> Parsed<Command> {
        let not = self.is_word("!");
        if not {
            self.at += 1;
        }
        let mut commands = alloc::vec![self.command()?];
        while self.is_op("|") {
            self.at += 1;
            self.newlines();
            commands.push(self.command()?);
        }
        if commands.len() == 1 && !not {
            return commands.pop().map_or_else(|| unfinished("no command"), Ok);
        }
        Ok(Command::Pipe { not, commands })
    }

    fn command(&mut self) -> Parsed<Command> {
        let compound = match self.peek() {
            Token::Op("(") => {
                self.at += 1;
                let inner = self.body(&[")"])?;
                self.expect(")")?;
                Command::Subshell(inner)
            }
            Token::Word(word) => match word.as_str() {
                "if" => self.conditional()?,
                "while" | "until" => self.repeated()?,
                "for" => self.each()?,
                "case" => self.case()?,
                "{" => {
                    self.at += 1;
                    let inner = self.body(&["}"])?;
                    self.expect("}")?;
                    *inner
                }
                "then" | "else" | "elif" | "fi" | "do" | "done" | "esac" | "}" | "in" => {
                    let found = self.peek().clone();
                    return self.unexpected(&found);
                }
                _ => return self.simple(),
            },
            _ => return self.simple(),
        };
        let mut redirects = Vec::new();
        while let Some(redirect) = self.redirect()? {
            redirects.push(redirect);
        }
        Ok(if redirects.is_empty() { compound } else { Command::Redirected(Box::new(compound), redirects) })
    }

    fn conditional(&mut self) -> Parsed<Command> {
        self.at += 1;
        let condition = self.body(&["then"])?;
        self.expect("then")?;
        let then = self.body(&["elif", "else", "fi"])?;
        let otherwise = if self.is_word("elif") {
            // As an `if` that shares this one's `fi`.
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return wrong("too many elif in one command");
            }
            return Ok(Command::If { condition, then, otherwise: Some(Box::new(self.conditional()?)) });
        } else if self.is_word("else") {
            self.at += 1;
            Some(self.body(&["fi"])?)
        } else {
            None
        };
        self.expect("fi")?;
        Ok(Command::If { condition, then, otherwise })
    }

    fn repeated(&mut self) -> Parsed<Command> {
        let wanted = self.is_word("while");
        self.at += 1;
        let condition = self.body(&["do"])?;
        let body = self.loop_body()?;
        Ok(Command::While { wanted, condition, body })
    }

    fn loop_body(&mut self) -> Parsed<Box<Command>> {
        self.expect("do")?;
        let body = self.body(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn each(&mut self) -> Parsed<Command> {
        self.at += 1;
        let name = match self.next() {
            Token::Word(name) if is_name(&name) => name,
            other => return self.unexpected(&other),
        };
        self.newlines();
        let mut words = None;
        if self.is_word("in") {
            self.at += 1;
            let mut all = Vec::new();
            while let Token::Word(word) = self.peek() {
                all.push(word.clone());
                self.at += 1;
            }
            words = Some(all);
        }
        if self.is_op(";") {
            self.at += 1;
        }
        self.newlines();
        let body = self.loop_body()?;
        Ok(Command::For { name, words, body })
    }

    fn case(&mut self) -> Parsed<Command> {
        self.at += 1;
        let word = match self.next() {
            Token::Word(word) => word,
            other => return self.unexpected(&other),
        };
        self.newlines();
        self.expect("in")?;
        let mut arms = Vec::new();
        loop {
            self.newlines();
            if self.is_word("esac") {
                self.at += 1;
                return Ok(Command::Case { word, arms });
            }
            if self.is_op("(") {
                self.at += 1;
            }
            let mut patterns = Vec::new();
            loop {
                match self.next() {
                    Token::Word(pattern) => patterns.push(pattern),
                    other => return self.unexpected(&other),
                }
                if !self.is_op("|") {
                    break;
                }
                self.at += 1;
            }
            self.expect(")")?;
            let body = self.list(&["esac"])?;
            arms.push((patterns, body));
            if self.is_op(";;") {
                self.at += 1;
            } else if !self.is_word("esac") {
                let found = self.peek().clone();
                return self.unexpected(&found);
            }
        }
    }

    fn simple(&mut self) -> Parsed<Command> {
        let (mut assigns, mut words, mut redirects) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            if let Some(redirect) = self.redirect()? {
                redirects.push(redirect);
                continue;
            }
            let Token::Word(word) = self.peek() else { break };
            let word = word.clone();
            self.at += 1;
            match word.split_once('=') {
                Some((name, value)) if words.is_empty() && is_name(name) => {
                    assigns.push((name.to_owned(), value.to_owned()));
                }
                _ => words.push(word),
            }
            if let [name] = words.as_slice()
                && assigns.is_empty()
                && redirects.is_empty()
                && is_name(name)
                && self.is_op("(")
            {
                let name = name.clone();
                self.at += 1;
                self.expect(")")?;
                self.newlines();
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return wrong("the script's commands stand too deep in each other");
                }
                let body = self.command()?;
                self.depth -= 1;
                return Ok(Command::Function(name, Box::new(body)));
            }
        }
        if assigns.is_empty() && words.is_empty() && redirects.is_empty() {
            let found = self.peek().clone();
            return self.unexpected(&found);
        }
        Ok(Command::Simple { assigns, words, redirects })
    }

    fn redirect(&mut self) -> Parsed<Option<Redirect>> {
        let stream = match self.peek() {
            Token::Stream(stream) => Some(*stream),
            _ => None,
        };
        if stream.is_some() {
            self.at += 1;
        }
        let operator = match self.peek() {
            Token::Here(text, expands) => {
                let here = Redirect::Here(text.clone(), *expands);
                self.at += 1;
                return Ok(Some(here));
            }
            Token::Op(operator @ ("<" | ">" | ">>" | ">|" | ">&" | "<&" | "&>")) => *operator,
            other if stream.is_some() => {
                let other = other.clone();
                return self.unexpected(&other);
            }
            _ => return Ok(None),
        };
        self.at += 1;
        let word = match self.next() {
            Token::Word(word) => word,
            other => return self.unexpected(&other),
        };
        let of = stream.unwrap_or(u8::from(!operator.starts_with('<')));
        if of > 2 {
            return wrong(format!("{of}: there are streams 0, 1 and 2"));
        }
        Ok(Some(match operator {
            "<" => Redirect::From(word),
            ">" | ">|" => Redirect::To(of, word, false),
            ">>" => Redirect::To(of, word, true),
            "&>" => Redirect::To(3, word, false),
            _ => match word.as_str() {
                "0" | "1" | "2" => Redirect::Same(of, word.as_bytes()[0] - b'0'),
                "-" => Redirect::To(of, "/dev/null".to_owned(), false),
                _ => return wrong(format!("{word}: not one of the streams 0, 1 and 2")),
            },
        }))
    }
}

/// Whether the text is a valid variable name.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
