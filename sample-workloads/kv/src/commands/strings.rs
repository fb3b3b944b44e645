//! Commands of strings.
use super::{Call, Outcome, deadlines, range};
use crate::failure::Failure;
use crate::number;
use crate::protocol::WORD_BYTES_MAX;
use crate::store::{Text, Value};

pub(super) fn get(call: &mut Call<'_>) -> Outcome {
    let value = call.store.read::<Text>(&call.args[1])?;
    call.reply.bulk_or_null(value.map(Text::as_slice));
    Ok(())
}

pub(super) fn strlen(call: &mut Call<'_>) -> Outcome {
    let length = call.store.read::<Text>(&call.args[1])?.map_or(0, Text::len);
    call.reply.count(length);
    Ok(())
}

pub(super) fn getrange(call: &mut Call<'_>) -> Outcome {
    let (first, last) = (call.integer(2)?, call.integer(3)?);
    let text = call.store.read::<Text>(&call.args[1])?.map_or(&[][..], Text::as_slice);
    // Unlike LRANGE, an end before the begin is the first byte; but not if both count from the end in the wrong order.
    let length = text.len() as i64;
    let last = if last < 0 && !(first < 0 && first > last) { (length + last).max(0) } else { last };
    call.reply.bulk(&text[range(first, last, text.len())]);
    Ok(())
}

pub(super) fn mget(call: &mut Call<'_>) -> Outcome {
    call.reply.array(call.args.len() - 1);
    for key in &call.args[1..] {
        let value = call.store.read::<Text>(key).unwrap_or_default();
        call.reply.bulk_or_null(value.map(Text::as_slice));
    }
    Ok(())
}

pub(super) fn mset(call: &mut Call<'_>) -> Outcome {
    let (pairs, rest) = call.args[1..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err("ERR wrong number of arguments for 'mset' command".into());
    }
    for [key, value] in pairs {
        call.store.insert(key, Value::Text(value.to_vec()), None);
    }
    call.effect();
    call.reply.ok();
    Ok(())
}

/// Sets a string, and records the effect.
fn put(call: &mut Call<'_>, value: &[u8], deadline_ms: Option<u64>) {
    let key = &call.args[1];
    call.store.insert(key, Value::Text(value.to_vec()), deadline_ms);
    match deadline_ms {
        Some(deadline_ms) => {
            call.effect_of(&[b"SET", key, value, b"PXAT", &number::text(deadline_ms as i64)]);
        }
        None => call.effect_of(&[b"SET", key, value]),
    }
}

/// The options of `SET`.
#[derive(Default)]
struct Options {
    if_new: bool,
    if_old: bool,
    keeps_deadline: bool,
    returns_old: bool,
    deadline_ms: Option<u64>,
}

fn options(call: &Call<'_>) -> Result<Options, Failure> {
    let mut options = Options::default();
    let mut at = 3;
    while at < call.args.len() {
        let unit = ["EX", "PX", "EXAT", "PXAT"].into_iter().find(|unit| call.is(at, unit));
        if call.is(at, "NX") && !options.if_old {
            options.if_new = true;
        } else if call.is(at, "XX") && !options.if_new {
            options.if_old = true;
        } else if call.is(at, "GET") {
            options.returns_old = true;
        } else if call.is(at, "KEEPTTL") && options.deadline_ms.is_none() {
            options.keeps_deadline = true;
        } else if let Some(unit) = unit
            && at + 1 < call.args.len()
            && options.deadline_ms.is_none()
            && !options.keeps_deadline
        {
            at += 1;
            options.deadline_ms = Some(deadline(call, at, unit, "set")?);
        } else {
            return Err(Failure::SYNTAX);
        }
        at += 1;
    }
    Ok(options)
}

/// The deadline of a command that sets a string with one: it must be after 0.
fn deadline(call: &Call<'_>, at: usize, unit: &str, command: &str) -> Result<u64, Failure> {
    let count = call.integer(at)?;
    deadlines::deadline_ms(call.now_ms, count, unit).filter(|_| count > 0).ok_or_else(|| deadlines::invalid(command))
}

pub(super) fn set(call: &mut Call<'_>) -> Outcome {
    let options = options(call)?;
    let key = &call.args[1];
    let old = if options.returns_old { call.store.read::<Text>(key)?.cloned() } else { None };
    let slot = call.store.get(key);
    let (exists, old_deadline_ms) = (slot.is_some(), slot.and_then(|slot| slot.deadline_ms));
    let sets = !(options.if_new && exists || options.if_old && !exists);
    if sets {
        let deadline_ms = if options.keeps_deadline { old_deadline_ms } else { options.deadline_ms };
        put(call, &call.args[2], deadline_ms);
    }
    match (options.returns_old, sets) {
        (true, _) => call.reply.bulk_or_null(old.as_deref()),
        (false, true) => call.reply.ok(),
        (false, false) => call.reply.null(),
    }
    Ok(())
}

pub(super) fn setnx(call: &mut Call<'_>) -> Outcome {
    let is_new = call.store.get(&call.args[1]).is_none();
    if is_new {
        put(call, &call.args[2], None);
    }
    call.reply.count(is_new.into());
    Ok(())
}

pub(super) fn setex(call: &mut Call<'_>) -> Outcome {
    let deadline_ms = deadline(call, 2, "EX", "setex")?;
    put(call, &call.args[3], Some(deadline_ms));
    call.reply.ok();
    Ok(())
}

pub(super) fn psetex(call: &mut Call<'_>) -> Outcome {
    let deadline_ms = deadline(call, 2, "PX", "psetex")?;
    put(call, &call.args[3], Some(deadline_ms));
    call.reply.ok();
    Ok(())
}

pub(super) fn getset(call: &mut Call<'_>) -> Outcome {
    let old = call.store.read::<Text>(&call.args[1])?.cloned();
    put(call, &call.args[2], None);
    call.reply.bulk_or_null(old.as_deref());
    Ok(())
}

pub(super) fn getdel(call: &mut Call<'_>) -> Outcome {
    let key = &call.args[1];
    let old = call.store.read::<Text>(key)?.cloned();
    if call.store.remove(key) {
        call.effect_of(&[b"DEL", key]);
    }
    call.reply.bulk_or_null(old.as_deref());
    Ok(())
}

pub(super) fn append(call: &mut Call<'_>) -> Outcome {
    let (key, more) = (&call.args[1], &call.args[2]);
    let length = call.store.read::<Text>(key)?.map_or(0, Text::len) + more.len();
    if length > WORD_BYTES_MAX {
        return Err("ERR string exceeds maximum allowed size (proto-max-bulk-len)".into());
    }
    call.store.edit(key, |text: &mut Text| text.extend_from_slice(more))?;
    call.effect();
    call.reply.count(length);
    Ok(())
}

/// The deadline of the key stays.
fn add(call: &mut Call<'_>, by: i64) -> Outcome {
    let key = &call.args[1];
    let old = match call.store.read::<Text>(key)? {
        Some(text) => number::parse(text).ok_or(Failure::NOT_INTEGER)?,
        None => 0,
    };
    let new = old.checked_add(by).ok_or("ERR increment or decrement would overflow")?;
    call.store.edit(key, |text: &mut Text| *text = number::text(new))?;
    call.effect();
    call.reply.integer(new);
    Ok(())
}

pub(super) fn incr(call: &mut Call<'_>) -> Outcome {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_>) -> Outcome {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_>) -> Outcome {
    add(call, call.integer(2)?)
}

pub(super) fn decrby(call: &mut Call<'_>) -> Outcome {
    let by = call.integer(2)?.checked_neg().ok_or("ERR decrement would overflow")?;
    add(call, by)
}
