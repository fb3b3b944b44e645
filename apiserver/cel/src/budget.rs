//! Budget of evaluations: upstream's cost, and limits on memory and steps, which that cost doesn't bound.

use crate::error::EvalError;
use crate::limits;

/// The cost budget that remains for the expressions of one object or one request.
pub struct Budget<'i> {
    per_call: u64,
    left: u64,
    exhausted: bool,
    spent: u64,
    interrupt: Option<&'i dyn Fn() -> bool>,
}

impl Default for Budget<'_> {
    fn default() -> Self {
        Self::new(limits::PER_OBJECT)
    }
}

impl<'i> Budget<'i> {
    pub fn new(total: u64) -> Self {
        Self { per_call: limits::PER_CALL, left: total, exhausted: false, spent: 0, interrupt: None }
    }

    /// Overrides upstream's cost limit of one evaluation.
    #[must_use]
    pub fn per_call(mut self, limit: u64) -> Self {
        self.per_call = limit;
        self
    }

    /// Sets a callback that loops poll; `true` cancels the evaluation.
    #[must_use]
    pub fn interrupt(mut self, over: &'i dyn Fn() -> bool) -> Self {
        self.interrupt = Some(over);
        self
    }

    /// The total cost of the evaluations so far.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether the evaluations so far have exceeded the budget.
    pub fn exhausted(&self) -> bool {
        self.exhausted
    }

    pub(crate) fn meter(&self) -> Meter<'i> {
        Meter {
            cost: 0,
            limit: self.per_call,
            bytes: limits::EVALUATION_BYTES,
            steps: limits::EVALUATION_STEPS,
            loops: 0,
            depth: 0,
            lazy_cost: 0,
            pattern: None,
            interrupt: self.interrupt,
        }
    }

    pub(crate) fn charge(&mut self, cost: u64) {
        self.spent = self.spent.saturating_add(cost);
        self.exhausted |= cost > self.left;
        self.left = self.left.saturating_sub(cost);
    }
}

/// Counters and limits of one evaluation.
pub(crate) struct Meter<'i> {
    pub(crate) cost: u64,
    limit: u64,
    bytes: usize,
    steps: u64,
    loops: u32,
    /// Nesting depth of operations. A lazy variable's operations count below the operation that reads the variable.
    depth: u32,
    /// Cost of lazy variables, each of which has its own limit.
    lazy_cost: u64,
    interrupt: Option<&'i dyn Fn() -> bool>,
    /// The last non-constant pattern, so that a loop compiles it once.
    pub(crate) pattern: Option<(String, regex::Regex)>,
}

impl Meter<'_> {
    pub(crate) fn total(&self) -> u64 {
        self.cost.saturating_add(self.lazy_cost)
    }

    /// Runs an evaluation with a cost limit of its own; memory and steps are shared.
    pub(crate) fn with_own_limit<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::take(&mut self.cost);
        let result = run(self);
        self.lazy_cost = self.lazy_cost.saturating_add(std::mem::replace(&mut self.cost, outer));
        result
    }

    pub(crate) fn enter(&mut self) -> Result<(), EvalError> {
        self.depth += 1;
        if self.depth > limits::EVALUATION_DEPTH { Err(EvalError::cost_limit()) } else { Ok(()) }
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }

    pub(crate) fn cost(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::cost_limit()) } else { Ok(()) }
    }

    /// Counts work that upstream's cost doesn't include.
    pub(crate) fn step(&mut self, count: usize) -> Result<(), EvalError> {
        self.steps = self.steps.checked_sub(count as u64).ok_or_else(EvalError::cost_limit)?;
        Ok(())
    }

    /// Counts the memory of a new value.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(EvalError::cost_limit)?;
        Ok(())
    }

    /// Counts a loop iteration and polls the interrupt.
    pub(crate) fn count_iteration(&mut self) -> Result<(), EvalError> {
        self.step(1)?;
        self.loops = self.loops.wrapping_add(1);
        let poll = self.loops.is_multiple_of(limits::INTERRUPT_EVERY);
        if poll && self.interrupt.is_some_and(|over| over()) { Err(EvalError::interrupted()) } else { Ok(()) }
    }
}
