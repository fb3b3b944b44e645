//! Records panics in a run's thread: the program catches some (a decision's driver, a request's task) and hides them from the
//! test, so a hook counts them. A run has one thread, and a thread one run at a time.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Starts recording panics of this thread, and drops those of earlier runs.
pub(crate) fn watch() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Unavailable in a thread that ends, and within `watch` and `seen`, which don't panic.
            let _ = SEEN.try_with(|seen| seen.try_borrow_mut().map(|mut seen| seen.push(panic.to_string())));
            before(panic);
        }));
    });
    SEEN.with(|seen| seen.borrow_mut().clear());
}

/// The panics of this thread since [`watch`].
pub(crate) fn seen() -> Vec<String> {
    SEEN.with(|seen| seen.borrow().clone())
}

#[test]
fn a_panic_that_is_caught_is_a_violation() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = crate::world::World::new(0, crate::sabotage::Sabotage::None);
        assert_eq!(world.violations(), Vec::<String>::new());
        std::panic::catch_unwind(|| panic!("it was meant to")).unwrap_err();
        let violations = world.violations();
        assert!(violations.len() == 1 && violations[0].contains("it was meant to"), "{violations:?}");
        let world = crate::world::World::new(0, crate::sabotage::Sabotage::None);
        assert_eq!(world.violations(), Vec::<String>::new(), "another run's");
    });
}
