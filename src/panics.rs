//! Counts the panics of this process, those that something catches among them: a demonstration that hid one would be none.

use std::sync::atomic::{AtomicU64, Ordering};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics from now on; they are written to stderr as before.
pub(crate) fn count() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
}

/// Fails where something panicked.
///
/// # Errors
/// How often, and where to look.
pub(crate) fn none() -> anyhow::Result<()> {
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
        assert!(super::none().is_ok());
        super::count();
        std::panic::catch_unwind(|| panic!("it was meant to")).unwrap_err();
        let told = super::none().unwrap_err().to_string();
        assert!(told.contains("panicked: see the line"), "{told}");
    }
}
