//! Flags in the syntax of upstream's programs: `--name=value`, `--name value`, and switches without a value.
use guest::{String, ToOwned, Vec, format};

pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// Parses all flags; `switches` need no value. A flag that is not in `known` is an error.
    pub fn read(args: &[String], known: &[&str], switches: &[&str]) -> Result<Self, String> {
        let mut found = Vec::new();
        let mut rest = args[1..].iter();
        while let Some(arg) = rest.next() {
            let Some(flag) = arg.strip_prefix("--") else { return Err(format!("unexpected argument {arg:?}")) };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let value = match value {
                Some(value) => value,
                None if switches.contains(&name) => "true".to_owned(),
                None => rest.next().cloned().ok_or_else(|| format!("flag needs an argument: --{name}"))?,
            };
            if !known.contains(&name) && !switches.contains(&name) {
                return Err(format!("unknown flag: --{name}"));
            }
            found.push((name.to_owned(), value));
        }
        Ok(Self(found))
    }

    /// The last value of a flag, if given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }
}
