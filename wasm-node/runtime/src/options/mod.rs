//! The options of the runtime: limits of guests and of their compilation, and the store that nodes share.

pub mod guests;
pub mod keyvalue;
