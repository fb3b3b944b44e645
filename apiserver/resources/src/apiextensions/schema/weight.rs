//! Estimated memory of a compiled schema, for the cache's bound. Allocations count with their requested size;
//! programs of rules count with a measured factor.

use std::collections::HashSet;
use std::sync::Arc;

use apiserver_cel::types::{DeclType, Shape};
use serde_json::Value;

use super::compile::{Checks, ListType, Schema};
use super::pattern::Pattern;
use super::rules::Rules;

/// Overhead of a map entry, in bytes.
const ENTRY_BYTES: usize = 16;
/// Size of a compiled program, per character of its expression and as a constant.
const PROGRAM_BYTES_A_CHARACTER: usize = 64;
const PROGRAM_BYTES: usize = 1024;

/// The size of a schema and everything below it, in bytes.
pub(crate) fn of(schema: &Schema) -> usize {
    let mut estimator = SizeEstimator::default();
    size_of::<Schema>() + estimator.below(schema)
}

/// Patterns already counted, since fields share them.
#[derive(Default)]
struct SizeEstimator(HashSet<*const Pattern>);

impl SizeEstimator {
    fn all<'s>(&mut self, schemas: impl IntoIterator<Item = &'s Schema>) -> usize {
        schemas.into_iter().map(|schema| size_of::<Schema>() + self.below(schema)).sum()
    }

    fn below(&mut self, schema: &Schema) -> usize {
        let listed = match &schema.listed {
            ListType::Map(keys) => keys.iter().map(|key| size_of::<Box<str>>() + key.len()).sum(),
            ListType::Atomic | ListType::Set => 0,
        };
        let names = schema.properties.iter().map(|(name, _)| size_of::<Box<str>>() + name.len()).sum::<usize>();
        listed
            + names
            + self.all(schema.properties.values())
            + self.all(schema.items.as_deref())
            + self.all(schema.additional.schema())
            + schema.default.as_deref().map_or(0, json)
            + schema.rules.as_deref().map_or(0, rules)
            + schema.checks.as_deref().map_or(0, |checks| self.checks(checks))
    }

    fn checks(&mut self, checks: &Checks) -> usize {
        let schemas = checks.all_of.iter().chain(&checks.any_of).chain(&checks.one_of).chain(checks.not.as_deref());
        let pattern = checks.pattern.as_ref().filter(|pattern| self.0.insert(Arc::as_ptr(pattern)));
        size_of::<Checks>()
            + pattern.map_or(0, |pattern| pattern.bytes())
            + self.all(schemas)
            + checks.enumeration.iter().map(json).sum::<usize>()
            + checks.required.iter().map(|name| size_of::<Box<str>>() + name.len()).sum::<usize>()
    }
}

fn json(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(json).sum(),
            Value::Object(map) => map.iter().map(|(key, value)| ENTRY_BYTES + key.len() + json(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

fn rules(rules: &Rules) -> usize {
    let programs = rules.rules.iter().map(|rule| PROGRAM_BYTES + rule.text_len() * PROGRAM_BYTES_A_CHARACTER);
    size_of::<Rules>() + programs.sum::<usize>() + declared(rules.declared())
}

fn declared(of: &DeclType) -> usize {
    size_of::<DeclType>()
        + match &of.shape {
            Shape::Scalar => 0,
            Shape::List(item) | Shape::Map(item) => declared(item),
            Shape::Object(fields) => {
                fields.iter().map(|(name, field)| ENTRY_BYTES + name.len() + declared(field)).sum()
            }
        }
}
