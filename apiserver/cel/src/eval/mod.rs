//! Programs: an expression as a flat vector of operations, and its evaluation.

mod actual;
mod fold;
mod plan;
mod run;

use std::cell::OnceCell;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::budget::{Budget, Meter};
use crate::error::{ErrorKind, EvalError};
use crate::library::Authorizer;
use crate::types::{Declared, Schema};
use crate::value::{Opaque, Res, Value, from_json};

pub(crate) use plan::Code;
pub(crate) use plan::plan;

/// The values of an expression's names for one evaluation.
#[derive(Default)]
pub struct Activation<'d> {
    values: Vec<(&'d str, Res<Value<'d>>)>,
    lazy: Vec<LazyVariable<'d>>,
    authorizer: Option<&'d dyn Authorizer>,
}

/// A policy's variable, evaluated on first use.
struct LazyVariable<'d> {
    name: Arc<str>,
    code: Arc<Code>,
    value: OnceCell<Res<Value<'d>>>,
}

impl<'d> Activation<'d> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a value of any kind.
    #[must_use]
    pub fn value(mut self, name: &'d str, value: Value<'d>) -> Self {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &'d str, value: Value<'d>) {
        self.values.retain(|(other, _)| *other != name);
        self.values.push((name, Ok(value)));
    }

    /// Binds data without a schema.
    #[must_use]
    pub fn json(self, name: &'d str, json: &'d Json) -> Self {
        let value = from_json(json, None).unwrap_or(Value::Null);
        self.value(name, value)
    }

    /// Binds data with a schema.
    #[must_use]
    pub fn typed(mut self, name: &'d str, json: &'d Json, declared: &'d Declared) -> Self {
        let schema: &'d Schema = &declared.schema;
        self.values.push((name, from_json(json, Some(schema))));
        self
    }

    /// Binds data with a schema as an optional value; `None` is an empty optional.
    #[must_use]
    pub fn optional(mut self, name: &'d str, json: Option<&'d Json>, declared: &'d Declared) -> Self {
        let schema: &'d Schema = &declared.schema;
        let value = match json {
            None => Ok(Value::Optional(None)),
            Some(json) => from_json(json, Some(schema)).map(|value| Value::Optional(Some(Arc::new(value)))),
        };
        self.values.push((name, value));
        self
    }

    /// Binds `authorizer` to an implementation.
    #[must_use]
    pub fn authorizer(mut self, authorizer: &'d dyn Authorizer) -> Self {
        self.authorizer = Some(authorizer);
        self.value("authorizer", Value::opaque(Opaque::Authorizer(None)))
    }

    /// Binds a resource check, such as `authorizer.requestResource`.
    #[must_use]
    pub fn request_resource(self, name: &'d str, request: crate::AuthorizationRequest) -> Self {
        let check = crate::value::ResourceCheck {
            user: request.user,
            group: request.group,
            resource: request.resource,
            subresource: request.subresource,
            namespace: request.namespace,
            name: request.name,
            field_selector: request.field_selector,
            label_selector: request.label_selector,
        };
        self.value(name, Value::opaque(Opaque::ResourceCheck(check)))
    }

    /// Adds a field of `variables`. Its expression may use the fields added before it.
    pub fn variable(&mut self, name: &str, program: &crate::Program) {
        if self.lazy.is_empty() {
            self.set("variables", Value::Variables);
        }
        self.lazy.push(LazyVariable { name: name.into(), code: program.code.clone(), value: OnceCell::new() });
    }

    /// Adds a field of `variables` whose use is an error.
    pub fn bind_failed_variable(&mut self, name: &str, why: &str) {
        if self.lazy.is_empty() {
            self.set("variables", Value::Variables);
        }
        let value = OnceCell::from(Err(EvalError::new(why.to_owned())));
        self.lazy.push(LazyVariable { name: name.into(), code: Arc::default(), value });
    }

    fn lazy_value(&self, name: &str, meter: &mut Meter<'_>) -> Option<Res<Value<'d>>> {
        let lazy = self.lazy.iter().find(|lazy| *lazy.name == *name)?;
        if let Some(known) = lazy.value.get() {
            return Some(known.clone());
        }
        let value = meter.with_own_limit(|meter| run::run(&lazy.code, self, meter));
        let value = value.map_err(|error| match error.kind {
            ErrorKind::Value => EvalError::new(format!("composited variable \"{name}\" fails to evaluate: {error}")),
            ErrorKind::CostLimit | ErrorKind::Interrupted => error,
        });
        Some(lazy.value.get_or_init(|| value).clone())
    }
}

/// Runs a program and charges its cost.
pub(crate) fn evaluate<'d>(
    code: &Code,
    activation: &Activation<'d>,
    budget: &mut Budget<'_>,
) -> Result<Value<'d>, EvalError> {
    let mut meter = budget.meter();
    let result = run::run(code, activation, &mut meter);
    budget.charge(meter.total());
    result
}
