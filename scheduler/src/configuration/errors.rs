//! Validation errors of a configuration file, in the form of upstream's field errors.

use std::fmt::Display;

/// The path of a field.
#[derive(Debug, Clone)]
pub(super) struct Path(String);

impl Path {
    pub(super) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(super) fn child(&self, name: &str) -> Self {
        Self(format!("{}.{name}", self.0))
    }

    pub(super) fn index(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The errors found so far.
#[derive(Debug, Default)]
pub(super) struct Errors(Vec<String>);

impl Errors {
    pub(super) fn invalid(&mut self, path: &Path, value: impl Display, why: &str) {
        self.0.push(format!("{path}: Invalid value: {value}: {why}"));
    }

    pub(super) fn invalid_text(&mut self, path: &Path, value: &str, why: &str) {
        self.0.push(format!("{path}: Invalid value: {value:?}: {why}"));
    }

    pub(super) fn required(&mut self, path: &Path, why: &str) {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        self.0.push(format!("{path}: Required value{why}"));
    }

    pub(super) fn duplicate(&mut self, path: &Path, value: &str) {
        self.0.push(format!("{path}: Duplicate value: {value:?}"));
    }

    pub(super) fn forbidden(&mut self, path: &Path, why: &str) {
        self.0.push(format!("{path}: Forbidden: {why}"));
    }

    pub(super) fn unsupported(&mut self, path: &Path, value: &str, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
        self.0.push(format!("{path}: Unsupported value: {value:?}: supported values: {}", known.join(", ")));
    }

    pub(super) fn plain(&mut self, error: String) {
        self.0.push(error);
    }

    pub(super) fn percentage(&mut self, path: &Path, value: Option<i32>) {
        if let Some(value) = value.filter(|value| !(0..=100).contains(value)) {
            self.invalid(path, value, "not in valid range [0-100]");
        }
    }

    /// As upstream, several errors are put in brackets.
    pub(super) fn end(self) -> Result<(), String> {
        match self.0.as_slice() {
            [] => Ok(()),
            [only] => Err(only.clone()),
            all => Err(format!("[{}]", all.join(", "))),
        }
    }
}
