//! Flags as upstream's programs take them: `--name=value`, `--name value`, and a switch by its name alone.
use guest::{String, ToOwned, Vec, format};

pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// Reads all of them; `switches` need no value. What is no flag of `known` is an error.
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

    /// The last value of a flag, if it was given one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }
}
