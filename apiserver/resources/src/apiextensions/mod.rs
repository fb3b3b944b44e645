//! CustomResourceDefinitions, and the resources that they define.

pub mod compiled;
pub mod conditions;
pub(crate) mod correlate;
pub mod custom;
mod custom_strategy;
pub(crate) mod definitions;
pub(crate) mod schema;
mod validate;
