//! Commands of keys of all types.
use super::{Call, Outcome};
use crate::failure::Failure;
use crate::pattern::matches;
use crate::{number, protocol::write_request};
use alloc::vec::Vec;

/// `SCAN` without `COUNT`.
const SCAN_COUNT: usize = 10;

pub(super) fn dbsize(call: &mut Call<'_>) -> Outcome {
    call.reply.count(call.store.len());
    Ok(())
}

pub(super) fn del(call: &mut Call<'_>) -> Outcome {
    let mut removed = 0;
    for key in &call.args[1..] {
        if call.store.remove(key) {
            removed += 1;
            write_request(call.effects, &[b"DEL", key]);
        }
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn exists(call: &mut Call<'_>) -> Outcome {
    let count = call.args[1..].iter().filter(|key| call.store.get(key).is_some()).count();
    call.reply.count(count);
    Ok(())
}

pub(super) fn kind(call: &mut Call<'_>) -> Outcome {
    call.reply.simple(call.store.get(&call.args[1]).map_or("none", |slot| slot.value.name()));
    Ok(())
}

pub(super) fn flush(call: &mut Call<'_>) -> Outcome {
    let known = match call.args.len() {
        1 => true,
        2 => call.is(1, "SYNC") || call.is(1, "ASYNC"),
        _ => false,
    };
    if !known {
        return Err(Failure::SYNTAX);
    }
    call.store.clear();
    call.effect_of(&[b"FLUSHALL"]);
    call.reply.ok();
    Ok(())
}

pub(super) fn keys(call: &mut Call<'_>) -> Outcome {
    let found: Vec<&[u8]> =
        call.store.iter().map(|slot| &*slot.key).filter(|key| matches(&call.args[1], key)).collect();
    call.reply.array(found.len());
    for key in found {
        call.reply.bulk(key);
    }
    Ok(())
}

pub(super) fn scan(call: &mut Call<'_>) -> Outcome {
    let cursor = number::parse(&call.args[1]).and_then(|cursor| u64::try_from(cursor).ok());
    let cursor = cursor.ok_or("ERR invalid cursor")?;
    let (mut count, mut pattern, mut kind) = (SCAN_COUNT, None, None);
    let (options, rest) = call.args[2..].as_chunks::<2>();
    for (index, [_, value]) in options.iter().enumerate() {
        let at = 2 + 2 * index;
        if call.is(at, "COUNT") {
            count = usize::try_from(call.integer(at + 1)?).ok().filter(|count| *count > 0).ok_or(Failure::SYNTAX)?;
        } else if call.is(at, "MATCH") {
            pattern = Some(value);
        } else if call.is(at, "TYPE") {
            kind = Some(value);
        } else {
            return Err(Failure::SYNTAX);
        }
    }
    if !rest.is_empty() {
        return Err(Failure::SYNTAX);
    }
    let (mut slots, next) = call.store.scan(cursor, count);
    slots.retain(|slot| {
        pattern.is_none_or(|pattern| matches(pattern, &slot.key))
            && kind.is_none_or(|kind| kind.eq_ignore_ascii_case(slot.value.name().as_bytes()))
    });
    call.reply.array(2);
    call.reply.bulk(&number::text(next as i64));
    call.reply.array(slots.len());
    for slot in slots {
        call.reply.bulk(&slot.key);
    }
    Ok(())
}
