//! Values as JSON, by the forms of contract.md §4.

mod map;
mod read;
mod write;

pub(crate) use read::arguments;
pub(crate) use write::result;

/// Integers beyond this lose digits in a reader that has one kind of number (IEEE 754; RFC 8259 §6).
const SAFE_INTEGER_MAX: u64 = 1 << 53;
