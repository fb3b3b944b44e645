//! The Common Expression Language of Kubernetes 1.36: parser, type checker, costs and evaluator. Pure: no clock, no IO.
//!
//! An [`Env`] declares variables and compiles expressions to [`Program`]s, which callers cache and share. A program is
//! evaluated over an [`Activation`], which borrows its values, within a [`Budget`].

mod budget;
mod check;
mod cost;
mod env;
mod error;
mod eval;
mod library;
pub mod limits;
mod syntax;
pub mod types;
mod value;

pub use budget::Budget;
pub use cost::CostEstimate;
pub use env::{Env, Program};
pub use error::{ErrorKind, EvalError};
pub use eval::Activation;
pub use library::{AuthorizationDecision, AuthorizationRequest, Authorizer, compile_pattern, translate_pattern};
pub use syntax::{CompileError, Issue};
pub use value::{Object, Text, Value, to_json};

#[cfg(test)]
mod facts;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
