//! Whether the machine's clock is synchronised with others, as its kernel reports it. Here because only this crate calls the
//! system directly.

/// Whether a time service keeps the clock; `None` if the system doesn't report it (adjtimex(2)).
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_synchronized() -> Option<bool> {
    read_state().map(|state| state != libc::TIME_ERROR)
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn is_synchronized() -> Option<bool> {
    None
}

/// The state of the kernel's clock; `None` if the call is refused, as in a sandbox.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no state of the clock")]
fn read_state() -> Option<libc::c_int> {
    let mut clock = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all zeros are a valid `timex`: it has integers only. Its `modes` is 0, so that the call changes nothing of the
    // clock and only writes to `clock`, which outlives it.
    let state = unsafe { libc::adjtimex(clock.as_mut_ptr()) };
    (state >= 0).then_some(state)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_one_of_the_systems() {
        let known = [libc::TIME_OK, libc::TIME_INS, libc::TIME_DEL, libc::TIME_OOP, libc::TIME_WAIT, libc::TIME_ERROR];
        let state = read_state();
        assert!(state.is_none_or(|state| known.contains(&state)), "{state:?}");
        assert_eq!(is_synchronized(), state.map(|state| state != libc::TIME_ERROR));
    }
}
