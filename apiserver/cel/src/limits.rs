//! What an expression may cost, as upstream bounds it, and what one may hold, which upstream leaves to its costs.

/// One evaluation of one expression.
pub const PER_CALL: u64 = 1_000_000;
/// All rules of one custom resource, or all expressions of one policy for one request.
pub const PER_OBJECT: u64 = 10_000_000;
/// All match conditions of one webhook or policy for one request.
pub const MATCH_CONDITIONS: u64 = PER_OBJECT / 4;
/// The estimate of one rule of a schema.
pub const STATIC_RULE: u64 = 10_000_000;
/// The estimates of all rules of one CRD version together.
pub const STATIC_CRD: u64 = 100_000_000;
/// The largest request body that sizes are derived from.
pub const REQUEST_BYTES: i64 = 3 * 1024 * 1024;
/// How often a loop asks whether it is to stop.
pub const INTERRUPT_EVERY: u32 = 100;

/// Characters of an expression.
pub(crate) const EXPRESSION_CHARS: usize = 100_000;
/// How deep an expression may be nested as it is written.
pub(crate) const RECURSION: usize = 250;
/// How deep its tree may be once macros are expanded: what walks it does so on a thread's stack.
pub(crate) const TREE_DEPTH: u16 = 400;
/// Errors that one compilation reports.
pub(crate) const ERRORS: usize = 100;
/// What one evaluation may build, in bytes.
pub(crate) const EVALUATION_BYTES: usize = 64 << 20;
/// Steps that one evaluation may take beside what it is charged: visits of equality, conversions, copies.
pub(crate) const EVALUATION_STEPS: u64 = 20_000_000;
/// How deep operations may stand in one another, those of lazy variables included.
pub(crate) const EVALUATION_DEPTH: u32 = 1200;
/// How deep a value may be nested that is compared or converted.
pub(crate) const VALUE_DEPTH: usize = 200;
/// A compiled pattern, in bytes.
pub(crate) const PATTERN_BYTES: usize = 1 << 20;
