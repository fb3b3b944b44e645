//! What evaluations may use up: costs as upstream counts them, and the memory and steps that those don't bound.

use crate::error::EvalError;
use crate::limits;

/// What is left for the expressions of one object or one request.
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

    /// What one evaluation may cost, where it isn't upstream's limit.
    #[must_use]
    pub fn per_call(mut self, limit: u64) -> Self {
        self.per_call = limit;
        self
    }

    /// Asked now and then whether the request is over.
    #[must_use]
    pub fn interrupt(mut self, over: &'i dyn Fn() -> bool) -> Self {
        self.interrupt = Some(over);
        self
    }

    /// What the evaluations so far have cost.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// Whether the evaluations so far have cost more than there was.
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
            apart: 0,
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

/// What one evaluation has used up.
pub(crate) struct Meter<'i> {
    pub(crate) cost: u64,
    limit: u64,
    bytes: usize,
    steps: u64,
    loops: u32,
    /// How many operations stand in one another; those of a lazy variable stand in who asks for it.
    depth: u32,
    /// What lazy variables have cost, each within a limit of its own.
    apart: u64,
    interrupt: Option<&'i dyn Fn() -> bool>,
    /// The last pattern that was no constant: a loop compiles it once.
    pub(crate) pattern: Option<(String, regex::Regex)>,
}

impl Meter<'_> {
    pub(crate) fn total(&self) -> u64 {
        self.cost.saturating_add(self.apart)
    }

    /// An evaluation with a limit of its own; memory and steps are those of all.
    pub(crate) fn apart<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::take(&mut self.cost);
        let result = run(self);
        self.apart = self.apart.saturating_add(std::mem::replace(&mut self.cost, outer));
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

    /// Work that costs nothing by upstream's count.
    pub(crate) fn step(&mut self, count: usize) -> Result<(), EvalError> {
        self.steps = self.steps.checked_sub(count as u64).ok_or_else(EvalError::cost_limit)?;
        Ok(())
    }

    /// Memory that a new value takes.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(EvalError::cost_limit)?;
        Ok(())
    }

    /// A turn of a loop.
    pub(crate) fn turn(&mut self) -> Result<(), EvalError> {
        self.step(1)?;
        self.loops = self.loops.wrapping_add(1);
        let ask = self.loops.is_multiple_of(limits::INTERRUPT_EVERY);
        if ask && self.interrupt.is_some_and(|over| over()) { Err(EvalError::interrupted()) } else { Ok(()) }
    }
}
