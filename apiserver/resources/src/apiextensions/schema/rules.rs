//! CEL rules of a schema (`x-kubernetes-validations`): compiled once, and evaluated over an object within one cost
//! budget. Transition rules get the old value where it can be correlated.

use std::collections::HashMap;

use apiserver_cel::types::{DeclType, Declared, Type, from_schema};
use apiserver_cel::{Activation, Budget, Env, ErrorKind, Program};
use serde_json::Value;

use super::compile::{ListType, Schema};
use crate::apiextensions::correlate::{Correlated, same_item};
use crate::field::{ERRORS_MAX, ErrorList, FieldError, Path};
use crate::read::{flag, items, text};

/// A compiled rule.
pub(crate) struct Rule {
    text: Box<str>,
    message: Box<str>,
    reason: Box<str>,
    field_path: Box<str>,
    optional_old: bool,
    pub(crate) uses_old: bool,
    pub(crate) program: Result<Program, String>,
    pub(crate) message_program: Option<Result<Program, String>>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rule {
    /// The length of its texts, in bytes.
    pub(super) fn text_len(&self) -> usize {
        self.text.len() + if self.message_program.is_some() { self.message.len() + MESSAGE_EXPRESSION_BYTES } else { 0 }
    }
}

/// Assumed length of a message expression, in bytes: a sentence with one or two values.
const MESSAGE_EXPRESSION_BYTES: usize = 100;

impl Rules {
    /// The type of `self`.
    pub(super) fn declared(&self) -> &DeclType {
        &self.declared.decl
    }
}

/// The rules of a schema, with the type of `self`.
#[derive(Debug)]
pub(crate) struct Rules {
    declared: Declared,
    pub(crate) rules: Vec<Rule>,
}

/// Compiles the rules of one schema; `None` if it has none, or its type isn't exposed to rules.
pub(crate) fn compile(schema: &Value, root: bool) -> Option<Rules> {
    let given = items(schema, "x-kubernetes-validations");
    if given.is_empty() {
        return None;
    }
    let declared = from_schema(schema, root || flag(schema, "x-kubernetes-embedded-resource"))?;
    let rules = given.iter().map(|rule| compile_rule(rule, &declared)).collect();
    Some(Rules { declared, rules })
}

fn compile_rule(rule: &Value, declared: &Declared) -> Rule {
    let optional_old = flag(rule, "optionalOldSelf");
    let env = Env::new().schema("self", declared);
    let env = if optional_old {
        env.variable("oldSelf", Type::optional(declared.decl.ty.clone()))
    } else {
        env.schema("oldSelf", declared)
    };
    let made = |expression: &str, wanted: &Type, what: &str| match env.compile(expression) {
        Ok(program) if program.output_type() == wanted => Ok(program),
        Ok(_) if *wanted == Type::Bool => Err("cel expression must evaluate to a bool".to_owned()),
        Ok(_) => Err("messageExpression must evaluate to a string".to_owned()),
        Err(error) => Err(format!("{what}{}", error.detail())),
    };
    let expression = text(rule, "rule");
    let program = made(expression, &Type::Bool, "");
    let message_program = match text(rule, "messageExpression") {
        // Upstream skips the message expression of an invalid rule.
        blank if blank.trim().is_empty() || program.is_err() => None,
        expression => Some(made(expression, &Type::String, "messageExpression ")),
    };
    Rule {
        text: expression.trim().into(),
        message: text(rule, "message").trim().into(),
        reason: text(rule, "reason").into(),
        field_path: text(rule, "fieldPath").trim().into(),
        optional_old,
        uses_old: program.as_ref().is_ok_and(|program| program.uses("oldSelf")),
        program,
        message_program,
    }
}

/// The minimum size of the type's values in JSON, in bytes.
pub(crate) fn min_size(rules: &Rules) -> u64 {
    let decl: &DeclType = &rules.declared.decl;
    u64::try_from(decl.min_size).unwrap_or(0)
}

/// Evaluates the rules over a whole object. `old`: the previous object; `interrupt`: cancels the evaluation.
/// Failures of unchanged parts are ratcheted: they are warnings.
pub(crate) fn check(object: &Value, schema: &Schema, old: Option<&Value>, interrupt: fn() -> bool) -> ErrorList {
    let mut errors = ErrorList::new();
    if schema.has.rules {
        let mut budget = Budget::default().interrupt(&interrupt);
        let ratchet = Ratchet { at: old.map(|old| Correlated::new(object, old, schema)), above: None };
        let mut walk = Walk::new(&mut budget, &mut errors, true);
        walk.node(object, schema, old, None, ratchet);
    }
    errors
}

/// Evaluates the rules over a default, as an update and as a creation. All defaults of a schema share one budget.
pub(crate) fn check_default(
    default: &Value,
    schema: &Schema,
    at: &Path<'_>,
    budget: &mut Budget<'static>,
) -> ErrorList {
    let mut errors = ErrorList::new();
    for old in [Some(default), None] {
        if schema.has.rules && errors.is_empty() && !budget.exhausted() {
            Walk::new(&mut *budget, &mut errors, false).node(default, schema, old, Some(at), Ratchet::default());
        }
    }
    errors
}

/// The old counterparts of a part, by which ratcheting decides.
#[derive(Clone, Copy, Default)]
struct Ratchet<'v> {
    /// The counterpart of the part itself; `None` if it can't be correlated.
    at: Option<Correlated<'v>>,
    /// The counterpart of the nearest correlated ancestor.
    above: Option<Correlated<'v>>,
}

impl<'v> Ratchet<'v> {
    fn key(self, key: &str, value: &'v Value) -> Self {
        match self.at {
            None => self,
            // Both objects have the request's version, whatever version they were written in.
            Some(_) if self.above.is_none() && matches!(key, "apiVersion" | "kind") => Self::default(),
            Some(at) => Self { at: at.key(key, value), above: Some(at) },
        }
    }

    fn index(self, at: usize, value: &'v Value) -> Self {
        match self.at {
            None => self,
            Some(list) => Self { at: list.index(at, value), above: Some(list) },
        }
    }
}

/// Maximum number of warnings of one object; further ratcheted failures are dropped.
const WARNINGS_MAX: usize = ERRORS_MAX;

struct Walk<'e, 'i> {
    budget: &'e mut Budget<'i>,
    errors: &'e mut ErrorList,
    /// Whether failures of unchanged parts are warnings.
    ratchets: bool,
    over: bool,
    /// Results of `is_same` by the new part's address: all items of a list may fall back to the list.
    same: HashMap<usize, bool>,
}

impl<'e, 'i> Walk<'e, 'i> {
    fn new(budget: &'e mut Budget<'i>, errors: &'e mut ErrorList, ratchets: bool) -> Self {
        Self { budget, errors, ratchets, over: false, same: HashMap::new() }
    }

    fn node<'v>(
        &mut self,
        value: &'v Value,
        schema: &'v Schema,
        old: Option<&'v Value>,
        at: Option<&Path<'_>>,
        ratchet: Ratchet<'v>,
    ) {
        if !schema.has.rules || self.over || value.is_null() {
            return;
        }
        if let Some(rules) = &schema.rules {
            for rule in &rules.rules {
                self.rule(rule, &rules.declared, (value, old), at, ratchet);
                if self.over {
                    return;
                }
            }
        }
        match value {
            Value::Object(map) => {
                let olds = old.and_then(Value::as_object);
                for (key, value) in map {
                    let (below, keyed) = match (schema.properties.get(key.as_str()), schema.additional.schema()) {
                        (Some(below), _) => (below, false),
                        (None, Some(below)) => (below, true),
                        (None, None) => continue,
                    };
                    let (old, ratchet) = (olds.and_then(|old| old.get(key)), ratchet.key(key, value));
                    match at {
                        Some(at) if keyed => self.node(value, below, old, Some(&at.key(key)), ratchet),
                        Some(at) => self.node(value, below, old, Some(&at.child(key)), ratchet),
                        None => self.node(value, below, old, Some(&Path::root(key)), ratchet),
                    }
                }
            }
            Value::Array(list) => {
                let (Some(of_items), Some(at)) = (&schema.items, at) else { return };
                for (i, item) in list.iter().enumerate() {
                    let old = match (&schema.listed, old.and_then(Value::as_array)) {
                        (ListType::Map(keys), Some(old)) => same_item(old, item, keys),
                        _ => None,
                    };
                    self.node(item, of_items, old, Some(&at.index(i)), ratchet.index(i, item));
                }
            }
            _ => {}
        }
    }

    fn rule(
        &mut self,
        rule: &Rule,
        declared: &Declared,
        (value, old): (&Value, Option<&Value>),
        at: Option<&Path<'_>>,
        ratchet: Ratchet<'_>,
    ) {
        let Ok(program) = &rule.program else { return };
        if rule.uses_old && old.is_none() && !rule.optional_old {
            return;
        }
        let mut activation = Activation::new().typed("self", value, declared);
        if rule.uses_old {
            activation = match (rule.optional_old, old) {
                (true, old) => activation.optional("oldSelf", old, declared),
                (false, Some(old)) => activation.typed("oldSelf", old, declared),
                (false, None) => activation,
            };
        }
        let root = Path::root("<nil>");
        let at = at.unwrap_or(&root);
        let verdict = program.eval(&activation, self.budget);
        if self.budget.exhausted() {
            self.over = true;
            let why = "validation failed due to running out of cost budget, no further validation rules will be run";
            return self.errors.invalid(at, type_name(value), why);
        }
        match verdict {
            Ok(verdict) if verdict.as_bool() == Some(true) => {}
            Ok(_) => {
                let message = rule.message_program.as_ref().and_then(|program| {
                    let message = program.as_ref().ok()?.eval(&activation, self.budget).ok()?;
                    let message = message.as_str()?.trim().to_owned();
                    (!message.is_empty() && !message.contains(['\n', '\r']) && message.len() <= 5 * 1024)
                        .then_some(message)
                });
                let message = message.unwrap_or_else(|| match &*rule.message {
                    "" => format!("failed rule: {}", rule.text),
                    message => message.to_owned(),
                });
                let passes = !rule.uses_old && self.is_same(ratchet);
                self.failed(rule, value, at, &message, passes);
            }
            Err(error) if error.kind == ErrorKind::Interrupted => {
                self.over = true;
                self.errors.invalid(at, type_name(value), "evaluation was interrupted");
            }
            Err(error) if error.kind == ErrorKind::CostLimit => {
                let why = format!(
                    "call cost exceeds limit for rule: {}; no further validation rules will be run due to call cost exceeds limit for rule",
                    rule.text
                );
                self.over = true;
                self.errors.invalid(at, type_name(value), &why);
            }
            Err(error) => {
                let named = if rule.message.is_empty() { &rule.text } else { &rule.message };
                let why = format!("{} evaluating rule: {named}", error.message());
                self.errors.invalid(at, type_name(value), &why);
            }
        }
    }

    /// Whether the part, or else its nearest correlated ancestor, is unchanged.
    fn is_same(&mut self, ratchet: Ratchet<'_>) -> bool {
        let Some(part) = ratchet.at.or(ratchet.above).filter(|_| self.ratchets) else { return false };
        *self.same.entry(part.address()).or_insert_with(|| part.is_same())
    }

    fn failed(&mut self, rule: &Rule, value: &Value, at: &Path<'_>, message: &str, passes: bool) {
        let place = match (&*rule.field_path, at.to_string()) {
            ("", at) => at,
            (path, at) if at == "<nil>" => path.trim_start_matches('.').to_owned(),
            (path, at) => format!("{at}{path}"),
        };
        let place = Path::root(&place);
        // Objects and lists are omitted from messages: they may be large.
        let scalar = !matches!(value, Value::Object(_) | Value::Array(_)) && rule.field_path.is_empty();
        let error = || match &*rule.reason {
            "FieldValueRequired" => FieldError::required(&place, message),
            "FieldValueForbidden" => FieldError::forbidden(&place, message),
            "FieldValueDuplicate" if scalar => FieldError::duplicate(&place, value.clone()),
            "FieldValueDuplicate" => FieldError::new("FieldValueDuplicate", &place, "Duplicate value".into()),
            _ if scalar => FieldError::invalid(&place, value.clone(), message),
            _ => FieldError::new("FieldValueInvalid", &place, format!("Invalid value: {message}")),
        };
        if !(self.ratchets && passes) {
            self.errors.add(error);
        } else if self.errors.warnings.len() < WARNINGS_MAX {
            let FieldError { field, message, .. } = error();
            self.errors.warnings.push(format!("{field}: {message}"));
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
