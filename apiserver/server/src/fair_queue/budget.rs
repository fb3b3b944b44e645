//! The evaluation budget of a write. Expressions of definitions and policies may cost far more than their object's size
//! suggests: up to a second, by upstream's limits. A write starts inline; if its loops exceed the budget, it is
//! abandoned and run again as a whole on the blocking pool with a fair-queue permit, up to the limits. Nothing is
//! stored before.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::FairQueue;

/// The maximum number of checks inline: each stands for a hundred loop iterations, so in all for some 5 ms at most.
const CHECKS_MAX: u32 = 50;

tokio::task_local! {
    static BUDGET: EvaluationBudget;
}

/// The budget of a write, and what its run in the fair queue needs.
struct EvaluationBudget {
    queue: Arc<FairQueue>,
    user: String,
    time_max: Duration,
    /// The remaining checks; `None` is unlimited, outside of a part that can run again.
    left: Cell<Option<u32>>,
}

/// Runs a user's small request, whose expensive parts may move to the fair queue.
pub(crate) async fn scope<T>(
    queue: &Arc<FairQueue>,
    user: &str,
    time_max: Duration,
    work: impl Future<Output = T>,
) -> T {
    let left = Cell::new(None);
    BUDGET.scope(EvaluationBudget { queue: queue.clone(), user: user.to_owned(), time_max, left }, work).await
}

/// Whether an evaluation must end; called by loops.
pub(crate) fn is_exhausted() -> bool {
    let check = |budget: &EvaluationBudget| {
        let left = budget.left.get();
        budget.left.set(left.map(|left| left.saturating_sub(1)));
        left == Some(0)
    };
    BUDGET.try_with(check).unwrap_or(false)
}

/// Runs work inline within the budget. Also returns whether it exceeded the budget, so that its result is invalid.
pub(crate) async fn run_inline<T>(work: impl Future<Output = T>) -> (T, bool) {
    let set = |left| BUDGET.try_with(|budget| budget.left.replace(left)).ok().flatten();
    set(Some(CHECKS_MAX));
    let done = work.await;
    (done, set(None) == Some(0))
}

/// Runs abandoned work again with a fair-queue permit and the time of its request; `None` if it timed out.
pub(crate) async fn run_blocking<T>(work: impl Future<Output = T>) -> Option<T> {
    let context = BUDGET.try_with(|budget| (budget.queue.clone(), budget.user.clone(), budget.time_max));
    let Ok((queue, user, time_max)) = context else { return Some(work.await) };
    queue.acquire(&user).await?.run(time_max, work).await.ok()
}

#[cfg(test)]
mod tests {
    use machinery_env::Env;

    use super::*;

    #[tokio::test]
    async fn work_beyond_the_budget_runs_on_the_blocking_pool() {
        let queue = Arc::new(FairQueue::new(Env::real()));
        let checks = |most: usize| (0..most).take_while(|_| !is_exhausted()).count();
        assert_eq!(run_inline(async { checks(1000) }).await, (1000, false), "unlimited outside of a request");
        let done = scope(&queue, "u", Duration::from_secs(60), async {
            assert_eq!(checks(1000), 1000, "unlimited outside of run_inline");
            assert_eq!(run_inline(async { checks(10) }).await, (10, false));
            assert_eq!(run_inline(async { checks(1000) }).await, (CHECKS_MAX as usize, true));
            run_blocking(async { checks(1000) }).await
        });
        assert_eq!(done.await, Some(1000));
    }
}
