//! Errors with their places in the text, drawn as cel-go draws them.

use std::fmt;

use crate::error::EvalError;
use crate::limits;

/// The text of an expression as characters, with the beginnings of its lines.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) chars: Vec<char>,
    lines: Vec<u32>,
}

/// An error and where it is: the line counts from one, the column from zero, both in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub line: u32,
    pub column: u32,
    pub message: String,
}

/// Why an expression doesn't compile. Its text is what cel-go says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    pub issues: Vec<Issue>,
    text: String,
    instantiation: bool,
}

impl CompileError {
    /// What fails whenever it is evaluated, in words of the evaluation.
    pub(crate) fn instantiation(error: EvalError) -> Self {
        Self { issues: Vec::new(), text: error.to_string(), instantiation: true }
    }

    /// What Kubernetes says of it.
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

/// What has been found wrong so far.
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

    /// An error of the whole expression, which has no place.
    pub(crate) fn report_nowhere(&mut self, message: String) {
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
