//! Values as WAVE, the Component Model's text format: arguments as `(ARG, …)`, a result as one value. A resource is a
//! string, as in JSON.

mod read;
mod write;

pub(crate) use read::arguments;
pub(crate) use write::result;
