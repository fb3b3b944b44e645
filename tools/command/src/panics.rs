//! Counts this process's panics, caught ones included: the demo fails if there was one.

use std::sync::atomic::{AtomicU64, Ordering};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts counting panics; they are written to stderr as before.
pub fn count() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
}

/// Fails if there was a panic.
///
/// # Errors
/// The number of panics, and where to find them.
pub fn check_none() -> anyhow::Result<()> {
    match PANICS.load(Ordering::Relaxed) {
        0 => Ok(()),
        1 => anyhow::bail!("something panicked: see the line with \"panicked at\" above, and report it"),
        count => anyhow::bail!("{count} things panicked: see the lines with \"panicked at\" above, and report them"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_that_is_caught_is_counted() {
        assert!(super::check_none().is_ok());
        super::count();
        std::panic::catch_unwind(|| panic!("it was meant to")).unwrap_err();
        let reported = super::check_none().unwrap_err().to_string();
        assert!(reported.contains("panicked: see the line"), "{reported}");
    }
}
