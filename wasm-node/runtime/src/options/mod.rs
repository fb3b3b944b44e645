//! The options of the runtime: limits of guests and of their compilation.

pub mod guests;
