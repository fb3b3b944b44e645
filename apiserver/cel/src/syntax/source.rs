//! The source text, and errors with their position, formatted as cel-go does.

use std::fmt;

use crate::error::EvalError;
use crate::limits;

/// The characters of an expression, and the offsets of its lines.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) chars: Vec<char>,
    lines: Vec<u32>,
}

/// An error and its position: the line is one-based, the column zero-based, both in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub line: u32,
    pub column: u32,
    pub message: String,
}

/// A compilation error with cel-go's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    pub issues: Vec<Issue>,
    text: String,
    instantiation: bool,
}

impl CompileError {
    /// An error that every evaluation would return, with the evaluation's message.
    pub(crate) fn instantiation(error: EvalError) -> Self {
        Self { issues: Vec::new(), text: error.to_string(), instantiation: true }
    }

    /// The message in Kubernetes' form.
    #[must_use]
    pub fn detail(&self) -> String {
        let what = if self.instantiation { "program instantiation" } else { "compilation" };
        format!("{what} failed: {self}")
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CompileError {}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let ends = chars.iter().enumerate().filter(|(_, c)| **c == '\n').map(|(at, _)| at as u32 + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Self { chars, lines }
    }

    fn place(&self, at: u32) -> (u32, u32) {
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        (line as u32, at - self.lines[line - 1])
    }

    fn line(&self, line: u32) -> String {
        let start = self.lines[line as usize - 1] as usize;
        let end = self.lines.get(line as usize).map_or(self.chars.len(), |next| *next as usize - 1);
        self.chars[start.min(end)..end].iter().collect()
    }

    fn draw(&self, issue: &Issue) -> String {
        if issue.line == 0 {
            return format!("ERROR: <input>:-1:0: {}", issue.message);
        }
        if self.chars.is_empty() {
            // cel-go shows neither a column nor a line of an empty text.
            return format!("ERROR: <input>:1:0: {}", issue.message);
        }
        let mut text = format!("ERROR: <input>:{}:{}: {}", issue.line, issue.column + 1, issue.message);
        let snippet = self.line(issue.line).replace('\t', " ");
        if snippet.len() > 16_384 {
            return text;
        }
        text.push_str("\n | ");
        text.push_str(&snippet);
        text.push_str("\n | ");
        let mut rest = snippet.chars();
        for c in rest.by_ref().take(issue.column as usize) {
            text.push(if c.len_utf8() > 1 { '\u{ff0e}' } else { '.' });
        }
        text.push(if rest.next().is_some_and(|c| c.len_utf8() > 1) { '\u{ff3e}' } else { '^' });
        text
    }
}

/// The issues found so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Issues {
    found: Vec<Issue>,
    count: usize,
}

impl Issues {
    pub(crate) fn report(&mut self, source: &Source, at: u32, message: String) {
        let (line, column) = source.place(at);
        self.add(Issue { line, column, message });
    }

    /// Reports an error of the whole expression, without a position.
    pub(crate) fn report_unlocated(&mut self, message: String) {
        self.add(Issue { line: 0, column: 0, message });
    }

    pub(crate) fn found(&self) -> &[Issue] {
        &self.found
    }

    pub(crate) fn add(&mut self, issue: Issue) {
        self.count += 1;
        if self.count <= limits::ERRORS {
            self.found.push(issue);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn into_error(mut self, source: &Source) -> CompileError {
        self.found.sort_by_key(|issue| (issue.line, issue.column));
        let mut texts: Vec<String> = self.found.iter().map(|issue| source.draw(issue)).collect();
        if self.count > limits::ERRORS {
            texts.push(format!("{} more errors were truncated", self.count - limits::ERRORS));
        }
        CompileError { issues: self.found, text: texts.join("\n"), instantiation: false }
    }
}
