//! Values as JSON in the forms of docs/contract.md §4: parses arguments by type, and writes results.

mod map;
mod read;
mod write;

pub(crate) use read::arguments;
pub(crate) use write::result;

/// Larger integers lose digits in a reader with a single number type (IEEE 754; RFC 8259 §6).
const SAFE_INTEGER_MAX: u64 = 1 << 53;
