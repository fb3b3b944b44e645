//! Upstream's cost limits, and limits on size and depth that upstream leaves to its costs.

/// Cost limit of one evaluation of one expression.
pub const PER_CALL: u64 = 1_000_000;
/// Cost limit of all rules of one custom resource, or of all expressions of one policy for one request.
pub const PER_OBJECT: u64 = 10_000_000;
/// Cost limit of all match conditions of one webhook or policy for one request.
pub const MATCH_CONDITIONS: u64 = PER_OBJECT / 4;
/// Limit on the estimated cost of one rule of a schema.
pub const STATIC_RULE: u64 = 10_000_000;
/// Limit on the estimated cost of all rules of one CRD version together.
pub const STATIC_CRD: u64 = 100_000_000;
/// The largest request body, in bytes, from which sizes are derived.
pub const REQUEST_BYTES: i64 = 3 * 1024 * 1024;
/// Loop iterations between two polls of the interrupt.
pub const INTERRUPT_EVERY: u32 = 100;

/// Length of an expression, in characters.
pub(crate) const EXPRESSION_CHARS: usize = 100_000;
/// Nesting depth of an expression's text.
pub(crate) const RECURSION: usize = 250;
/// Depth of the tree after macro expansion: walks over it are recursive.
pub(crate) const TREE_DEPTH: u16 = 400;
/// Errors reported by one compilation.
pub(crate) const ERRORS: usize = 100;
/// Memory that one evaluation may allocate, in bytes.
pub(crate) const EVALUATION_BYTES: usize = 64 << 20;
/// Steps of one evaluation that its cost doesn't include: visits of equality, conversions, copies.
pub(crate) const EVALUATION_STEPS: u64 = 20_000_000;
/// Nesting depth of operations, including those of lazy variables.
pub(crate) const EVALUATION_DEPTH: u32 = 1200;
/// Nesting depth of a value that is compared or converted.
pub(crate) const VALUE_DEPTH: usize = 200;
/// Size of a compiled pattern, in bytes.
pub(crate) const PATTERN_BYTES: usize = 1 << 20;
