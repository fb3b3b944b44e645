//! Environments, which declare names and compile expressions, and the compiled programs.

use std::sync::Arc;

use crate::budget::Budget;
use crate::check::{CheckedTree, Declarations, check};
use crate::cost::{CostEstimate, estimate};
use crate::error::EvalError;
use crate::eval::{Activation, Code, evaluate, plan};
use crate::syntax::{CompileError, Source, parse};
use crate::types::{DeclType, Declared, Shape, Type};
use crate::value::Value;

/// The names that an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Env {
    names: Declarations,
}

/// A compiled expression.
#[derive(Clone)]
pub struct Program {
    pub(crate) code: Arc<Code>,
    output: Type,
    estimate: CostEstimate,
}

impl Env {
    /// The environment of Kubernetes 1.36, without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable of a type.
    #[must_use]
    pub fn variable(self, name: &str, ty: Type) -> Self {
        self.declare(name, DeclType { max_elements: -1, ..DeclType::scalar(ty, 0) })
    }

    /// Declares a variable of a type with sizes and, for objects, fields.
    #[must_use]
    pub fn declare(self, name: &str, decl: DeclType) -> Self {
        self.declare_shared(name, Arc::new(decl))
    }

    /// Declares a variable with the type of a schema.
    #[must_use]
    pub fn schema(self, name: &str, declared: &Declared) -> Self {
        self.declare_shared(name, declared.decl.clone())
    }

    fn declare_shared(mut self, name: &str, decl: Arc<DeclType>) -> Self {
        decl.objects(&mut |name, decl| {
            self.names.structs.insert(name.clone(), decl.clone());
        });
        self.names.variables.insert(name.into(), decl);
        self
    }

    /// Adds a field to an object type and creates the type if it is missing. Declare its variables with
    /// [`Type::object`].
    pub fn add_field(&mut self, object: &str, field: &str, ty: Type) {
        let fresh = || Arc::new(DeclType::object(object, []));
        let declared = Arc::make_mut(self.names.structs.entry(object.into()).or_insert_with(fresh));
        if let Shape::Object(fields) = &mut declared.shape {
            fields.insert(field.into(), Arc::new(DeclType { max_elements: -1, ..DeclType::scalar(ty, 0) }));
        }
    }

    /// Allows `Object{…}` and `JSONPatch{…}` in expressions.
    #[must_use]
    pub fn mutation(mut self) -> Self {
        self.names.mutation = true;
        self
    }

    /// Enables the macro `cel.bind(name, value, expression)`.
    #[must_use]
    pub fn bindings(mut self) -> Self {
        self.names.binds = true;
        self
    }

    pub fn compile(&self, text: &str) -> Result<Program, CompileError> {
        let source = Source::new(text);
        let checked: CheckedTree = check(parse(&source, self.names.binds)?, &source, &self.names)?;
        let estimate = estimate(&checked, &self.names);
        let code = Arc::new(plan(&checked).map_err(CompileError::instantiation)?);
        Ok(Program { code, output: checked.ty(checked.tree.root).clone(), estimate })
    }
}

impl Program {
    pub fn output_type(&self) -> &Type {
        &self.output
    }

    /// Minimum and maximum cost of an evaluation, from the declared sizes of the variables.
    pub fn estimate(&self) -> CostEstimate {
        self.estimate
    }

    /// Whether the expression refers to a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.code.uses(variable)
    }

    pub fn eval<'d>(&self, activation: &Activation<'d>, budget: &mut Budget<'_>) -> Result<Value<'d>, EvalError> {
        evaluate(&self.code, activation, budget)
    }
}
