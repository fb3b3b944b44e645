//! Label and field selectors: upstream's grammars with upstream's messages, and matching.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

mod field;
mod grammar;
mod rules;

pub use field::{FieldRequirement, FieldSelector};
pub use rules::{go_quoted, is_printable, label_key_problems, label_value_problems, subdomain_problems};

/// Why a selector is rejected; the message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

fn refuse<T>(message: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(message.into()))
}

/// The operator of a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`, also true without the key
    NotIn,
    /// `key=a`
    Equals,
    /// `key==a`
    DoubleEquals,
    /// `key!=a`, also true without the key
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// One condition on labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The relation.
    pub operator: Operator,
    /// Sorted and unique.
    pub values: Vec<String>,
}

/// Conditions on labels, all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// Matches no object (an absent `metav1.LabelSelector`).
    nothing: bool,
}

/// A source of labels.
pub trait Labels {
    /// The label's value; `None` if it is missing.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for serde_json::Map<String, serde_json::Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(serde_json::Value::as_str)
    }
}

impl Labels for serde_json::Value {
    /// Reads an object's `metadata.labels`.
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Self::as_str)
    }
}

impl Requirement {
    /// Validates as upstream does; errors name `key` and `values` as upstream's.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut problems = Vec::new();
        let key_problems = label_key_problems(key);
        if !key_problems.is_empty() {
            problems.push(format!("key: Invalid value: {}: {}", go_quoted(key), key_problems.join("; ")));
        }
        let listed = || {
            let quoted: Vec<String> = values.iter().map(|v| go_quoted(v)).collect();
            format!("[{}]", quoted.join(","))
        };
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                problems
                    .push("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into());
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => problems.push(
                format!("values: Invalid value: {}: exact-match compatibility requires one single value", listed()),
            ),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => problems.push(format!(
                "values: Invalid value: {}: values set must be empty for exists and does not exist",
                listed()
            )),
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    problems.push(format!(
                        "values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required",
                        listed()
                    ));
                }
                for (at, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    problems.push(format!(
                        "values[{at}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        go_quoted(value)
                    ));
                }
            }
            _ => {}
        }
        for (at, value) in values.iter().enumerate() {
            let value_problems = label_value_problems(value);
            if !value_problems.is_empty() {
                problems.push(format!(
                    "values[{at}][{key}]: Invalid value: {}: {}",
                    go_quoted(value),
                    value_problems.join("; ")
                ));
            }
        }
        match problems.len() {
            0 => Ok(Self { key: key.into(), operator, values }),
            1 => refuse(problems.swap_remove(0)),
            _ => refuse(format!("[{}]", problems.join(", "))),
        }
    }

    /// Whether labels meet the condition.
    #[must_use]
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let found = labels.label(&self.key);
        let listed = || found.is_some_and(|value| self.values.iter().any(|v| v == value));
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => listed(),
            Operator::NotIn | Operator::NotEquals => !listed(),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
                match (number(found), number(self.values.first().map(String::as_str))) {
                    (Some(a), Some(b)) if self.operator == Operator::GreaterThan => a > b,
                    (Some(a), Some(b)) => a < b,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl LabelSelector {
    /// Matches everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = grammar::Parser::new(text).parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From `metav1.LabelSelector` as JSON; absent or null matches nothing, an empty one everything.
    pub fn from_value(selector: Option<&serde_json::Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(Self::nothing()) };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(|v| v.as_object()).into_iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![text(value)])?);
        }
        for expression in selector.get("matchExpressions").and_then(|v| v.as_array()).into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return refuse(format!("{} is not a valid label selector operator", go_quoted(other))),
            };
            let values: BTreeSet<String> =
                expression.get("values").and_then(|v| v.as_array()).into_iter().flatten().map(text).collect();
            let key = expression["key"].as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, operator, values.into_iter().collect())?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From `{key: value}` (a Service's selector), without validation, as upstream.
    pub fn from_labels<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut requirements: Vec<Requirement> = labels
            .into_iter()
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::Equals, values: vec![v.into()] })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// The conditions, by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether every object matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether labels meet every condition.
    #[must_use]
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether an object's `metadata.labels` meet every condition.
    #[must_use]
    pub fn matches_object(&self, object: &serde_json::Value) -> bool {
        self.matches(object.pointer("/metadata/labels").unwrap_or(&serde_json::Value::Null))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn printed_forms_and_messages_are_upstreams() {
        for (text, expected) in [
            ("", Ok("")),
            ("a=b", Ok("a=b")),
            ("b==c, a", Ok("a,b==c")),
            ("!a,b in (y, x)", Ok("!a,b in (x,y)")),
            ("a notin ()", Ok("a notin ()")),
            ("a in (,)", Ok("a in ()")),
            ("a!=", Ok("a!=")),
            ("a>1,b<2", Ok("a>1,b<2")),
            ("in in (in)", Ok("in in (in)")),
            ("x in (foo,,baz)", Ok("x in (,baz,foo)")),
            ("a=b,", Err("found '', expected: identifier after ','")),
            (",", Err("found ',', expected: !, identifier, or 'end of string'")),
            ("a b", Err("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt")),
            ("a=b c", Err("found 'c', expected: ',' or 'end of string'")),
            ("a in b", Err("unable to parse requirement: found 'b' expected: '('")),
            ("a in (b", Err("unable to parse requirement: found '', expected: ',' or ')'")),
            ("!", Err("unable to parse requirement: found '', expected: identifier")),
            (
                "a>b",
                Err(
                    "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
                ),
            ),
        ] {
            let found = LabelSelector::parse(text).map(|s| s.to_string()).map_err(|e| e.0);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{text}");
        }
        let error = LabelSelector::parse("-a=b").unwrap_err().0;
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"),
            "{error}"
        );
    }

    #[test]
    fn sentences_are_upstreams() {
        for (selector, sentence) in [
            (
                "x>-1",
                "unable to parse requirement: values[0][x]: Invalid value: \"-1\": a valid label must be an empty string or \
                 consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                 (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (
                "x/",
                "unable to parse requirement: <nil>: Invalid value: \"x/\": name part must be non-empty; name part must \
                 consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                 (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
            ("a in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
            ("a,,b", "found ',', expected: identifier after ','"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            ("a in (b,c", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a=(b)", "unable to parse requirement: found '(', expected: identifier"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a>=b", "unable to parse requirement: found '=', expected: identifier"),
            ("a in ((b))", "unable to parse requirement: found '(', expected: ',', ')' or identifier"),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().0, sentence, "{selector}");
        }
    }

    #[test]
    fn every_form_matches_as_upstream() {
        let labels: BTreeMap<String, String> = [("x", "1"), ("e", ""), ("p.q/r", "s"), ("in", "in")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for yes in [
            "",
            "x=1",
            "x==1",
            "x!=2",
            "x",
            "!y",
            "e=",
            " x = 1 , e",
            "x in (1, 2,3 )",
            "y notin (1)",
            "e in ()",
            "p.q/r in (s)",
            "x>0",
            "x<2",
            "in in (in)",
            "e in (a,)",
            "e in (,a)",
            "e in (a,,)",
            "e in (a,,b)",
            "y!=",
        ] {
            assert!(LabelSelector::parse(yes).unwrap().matches(&labels), "{yes}");
        }
        for no in ["x=2", "x!=1", "y", "!x", "x in (2)", "x notin (1)", "x>1", "x<1", "e>1"] {
            assert!(!LabelSelector::parse(no).unwrap().matches(&labels), "{no}");
        }
    }

    #[test]
    fn matching() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        for (text, expected) in [
            ("a", true),
            ("!a", false),
            ("a=1,b=", true),
            ("a!=1", false),
            ("c!=1", true),
            ("c notin (x)", true),
            ("a in (0,1)", true),
            ("a>0", true),
            ("b>0", false),
            ("c", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), expected, "{text}");
        }
        let pod = json!({"metadata": {"labels": {"app": "x"}}});
        let by = |selector: serde_json::Value| LabelSelector::from_value(Some(&selector)).unwrap().matches_object(&pod);
        assert!(by(json!({})) && by(json!({"matchLabels": {"app": "x"}})));
        assert!(!by(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x", "y"]}]})));
        assert!(!LabelSelector::from_value(None).unwrap().matches_object(&pod));
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse("metadata.name=a,status.phase!=Running,,x==\\,\\=\\\\").unwrap();
        assert_eq!(selector.to_string(), "metadata.name=a,status.phase!=Running,x=\\,\\=\\\\");
        assert_eq!(selector.exact("x"), Some(",=\\"));
        assert_eq!(FieldSelector::parse("type==a/b,p!=").unwrap().to_string(), "p!=,type=a/b");
        assert_eq!(FieldSelector::parse("=,!=").unwrap(), FieldSelector::default());
        for (text, message) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            ("a=\\b", "invalid field selector: invalid escape sequence: \\b"),
            ("a=b\\", "invalid field selector: invalid escape sequence: \\"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().0, message);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_printing_settles(text in "[a-c!=<>(), \u{e9}\\\\inot]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let printed = selector.to_string();
                prop_assert_eq!(LabelSelector::parse(&printed).unwrap().to_string(), printed);
            }
            if let Ok(selector) = FieldSelector::parse(&text) {
                let mut again = FieldSelector::parse(&selector.to_string()).unwrap().requirements;
                let mut first = selector.requirements;
                let key = |r: &FieldRequirement| (r.field.clone(), r.equal, r.value.clone());
                again.sort_by_key(key);
                first.sort_by_key(key);
                prop_assert_eq!(again, first);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
            let _ = (LabelSelector::parse(&text), FieldSelector::parse(&text));
        }
    }
}
