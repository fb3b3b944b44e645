//! Commands of keys' deadlines.
use super::{Call, Outcome};
use crate::failure::Failure;
use crate::number;
use alloc::format;

/// A deadline from a number of seconds (`EX`, `EXAT`) or milliseconds (`PX`, `PXAT`), from now on or since 1970; one before 1970 is 0.
/// `None` beyond the range of the protocol's numbers.
pub(super) fn deadline_ms(now_ms: u64, count: i64, unit: &str) -> Option<u64> {
    let ms = if unit.starts_with('E') { count.checked_mul(1000)? } else { count };
    let ms = if unit.ends_with("AT") { ms } else { ms.checked_add(now_ms as i64)? };
    Some(ms.max(0) as u64)
}

pub(super) fn invalid(command: &str) -> Failure {
    format!("ERR invalid expire time in '{command}' command").into()
}

/// The conditions `NX`, `XX`, `GT` and `LT` on the deadline that a key has. A key without one is never `LT`-limited.
fn permits(call: &Call<'_>, old: Option<u64>, new: u64) -> Result<bool, Failure> {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for at in 3..call.args.len() {
        let flag = [("NX", &mut nx), ("XX", &mut xx), ("GT", &mut gt), ("LT", &mut lt)];
        match flag.into_iter().find(|(option, _)| call.is(at, option)) {
            Some((_, flag)) => *flag = true,
            None => {
                let option = alloc::string::String::from_utf8_lossy(&call.args[at]).into_owned();
                return Err(format!("ERR Unsupported option {option}").into());
            }
        }
    }
    if nx && (xx || gt || lt) {
        return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
    }
    if gt && lt {
        return Err("ERR GT and LT options at the same time are not compatible".into());
    }
    Ok(!(nx && old.is_some()
        || xx && old.is_none()
        || gt && old.is_none_or(|old| new <= old)
        || lt && old.is_some_and(|old| new >= old)))
}

fn set(call: &mut Call<'_>, unit: &str) -> Outcome {
    let deadline_ms = deadline_ms(call.now_ms, call.integer(2)?, unit).ok_or_else(|| invalid(&call.name()))?;
    let key = &call.args[1];
    let old = call.store.get(key).map(|slot| slot.deadline_ms);
    let permitted = permits(call, old.flatten(), deadline_ms)?;
    let sets = old.is_some() && permitted;
    if sets {
        // One that has passed removes the key before the next command.
        call.store.set_deadline(key, Some(deadline_ms));
        call.effect_of(&[b"PEXPIREAT", key, &number::text(deadline_ms as i64)]);
    }
    call.reply.count(sets.into());
    Ok(())
}

pub(super) fn expire(call: &mut Call<'_>) -> Outcome {
    set(call, "EX")
}

pub(super) fn pexpire(call: &mut Call<'_>) -> Outcome {
    set(call, "PX")
}

pub(super) fn expireat(call: &mut Call<'_>) -> Outcome {
    set(call, "EXAT")
}

pub(super) fn pexpireat(call: &mut Call<'_>) -> Outcome {
    set(call, "PXAT")
}

pub(super) fn persist(call: &mut Call<'_>) -> Outcome {
    let key = &call.args[1];
    let had = call.store.get(key).is_some_and(|slot| slot.deadline_ms.is_some());
    if had {
        call.store.set_deadline(key, None);
        call.effect();
    }
    call.reply.count(had.into());
    Ok(())
}

/// -2 without the key, -1 without a deadline.
fn show(call: &mut Call<'_>, shown: impl Fn(u64) -> u64) -> Outcome {
    let number = match call.store.get(&call.args[1]) {
        None => -2,
        Some(slot) => slot.deadline_ms.map_or(-1, |deadline_ms| shown(deadline_ms) as i64),
    };
    call.reply.integer(number);
    Ok(())
}

pub(super) fn ttl(call: &mut Call<'_>) -> Outcome {
    let now_ms = call.now_ms;
    show(call, |deadline_ms| (deadline_ms.saturating_sub(now_ms) + 500) / 1000)
}

pub(super) fn pttl(call: &mut Call<'_>) -> Outcome {
    let now_ms = call.now_ms;
    show(call, |deadline_ms| deadline_ms.saturating_sub(now_ms))
}

pub(super) fn expiretime(call: &mut Call<'_>) -> Outcome {
    show(call, |deadline_ms| (deadline_ms + 500) / 1000)
}

pub(super) fn pexpiretime(call: &mut Call<'_>) -> Outcome {
    show(call, |deadline_ms| deadline_ms)
}
