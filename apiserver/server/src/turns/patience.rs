//! Expressions of definitions and policies may cost far more than their object's bytes tell: up to a second, by upstream's
//! limits. A write begins where it arrived, and as soon as its loops turn often it is given up there, and done again, whole, in
//! its user's turn elsewhere, where it may take what the limits allow. Nothing is stored meanwhile.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::Turns;

/// How often loops may ask where others wait: each time stands for a hundred turns, so for some 5 ms at most.
const ASKED_MAX: u32 = 50;

tokio::task_local! {
    static PATIENCE: Patience;
}

/// What a write may take where others wait, and where it goes then.
struct Patience {
    turns: Arc<Turns>,
    user: String,
    time_max: Duration,
    /// How often loops may still ask; nothing: as often as they like, as what they find is not asked for again.
    left: Cell<Option<u32>>,
}

/// Does something small of a user's: what of it takes long may go elsewhere.
pub(crate) async fn small<T>(turns: &Arc<Turns>, user: &str, time_max: Duration, work: impl Future<Output = T>) -> T {
    let left = Cell::new(None);
    PATIENCE.scope(Patience { turns: turns.clone(), user: user.to_owned(), time_max, left }, work).await
}

/// Whether an evaluation is to end; loops ask it.
pub(crate) fn is_over() -> bool {
    let ask = |patience: &Patience| {
        let left = patience.left.get();
        patience.left.set(left.map(|left| left.saturating_sub(1)));
        left == Some(0)
    };
    PATIENCE.try_with(ask).unwrap_or(false)
}

/// Does it here, as far as those who wait have patience for; and whether they had too little, so that what came of it means
/// nothing.
pub(crate) async fn here<T>(work: impl Future<Output = T>) -> (T, bool) {
    let set = |left| PATIENCE.try_with(|patience| patience.left.replace(left)).ok().flatten();
    set(Some(ASKED_MAX));
    let done = work.await;
    (done, set(None) == Some(0))
}

/// Does in its turn what was given up, with all the time of its request; none: it had too little.
pub(crate) async fn elsewhere<T>(work: impl Future<Output = T>) -> Option<T> {
    let taken = PATIENCE.try_with(|patience| (patience.turns.clone(), patience.user.clone(), patience.time_max));
    let Ok((turns, user, time_max)) = taken else { return Some(work.await) };
    turns.turn(&user).await?.run(time_max, work).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_long_is_done_elsewhere() {
        let turns = Arc::new(Turns::new());
        let asked = |most: usize| (0..most).take_while(|_| !is_over()).count();
        assert_eq!(here(async { asked(1000) }).await, (1000, false), "nobody waits for what the server does by itself");
        let done = small(&turns, "u", Duration::from_secs(60), async {
            assert_eq!(asked(1000), 1000, "nobody would do it again");
            assert_eq!(here(async { asked(10) }).await, (10, false));
            assert_eq!(here(async { asked(1000) }).await, (ASKED_MAX as usize, true));
            elsewhere(async { asked(1000) }).await
        });
        assert_eq!(done.await, Some(1000));
    }
}
