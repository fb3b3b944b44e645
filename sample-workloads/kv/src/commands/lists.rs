//! Commands of lists.
use super::{Call, Outcome, range};
use crate::number;
use crate::store::List;
use alloc::vec::Vec;

fn push(call: &mut Call<'_>, at_front: bool) -> Outcome {
    let items = &call.args[2..];
    let length = call.store.edit(&call.args[1], |list: &mut List| {
        items.iter().for_each(|item| list.push(item.to_vec(), at_front));
        list.items.len()
    })?;
    call.effect();
    call.reply.count(length);
    Ok(())
}

pub(super) fn lpush(call: &mut Call<'_>) -> Outcome {
    push(call, true)
}

pub(super) fn rpush(call: &mut Call<'_>) -> Outcome {
    push(call, false)
}

/// With a count the reply is an array.
fn pop(call: &mut Call<'_>, at_front: bool) -> Outcome {
    let count = match call.args.get(2) {
        _ if call.args.len() > 3 => {
            return Err(alloc::format!("ERR wrong number of arguments for '{}' command", call.name()).into());
        }
        Some(count) => {
            let count = number::parse(count).and_then(|count| usize::try_from(count).ok());
            Some(count.ok_or("ERR value is out of range, must be positive")?)
        }
        None => None,
    };
    let key = &call.args[1];
    if call.store.read::<List>(key)?.is_none() {
        if count.is_some() {
            call.reply.null_array()
        } else {
            call.reply.null()
        }
        return Ok(());
    }
    let items: Vec<Vec<u8>> =
        call.store.edit(key, |list: &mut List| (0..count.unwrap_or(1)).map_while(|_| list.pop(at_front)).collect())?;
    if !items.is_empty() {
        call.effect();
    }
    match (count, items.first()) {
        (None, item) => call.reply.bulk_or_null(item.map(Vec::as_slice)),
        (Some(_), _) => {
            call.reply.array(items.len());
            items.iter().for_each(|item| call.reply.bulk(item));
        }
    }
    Ok(())
}

pub(super) fn lpop(call: &mut Call<'_>) -> Outcome {
    pop(call, true)
}

pub(super) fn rpop(call: &mut Call<'_>) -> Outcome {
    pop(call, false)
}

pub(super) fn llen(call: &mut Call<'_>) -> Outcome {
    let length = call.store.read::<List>(&call.args[1])?.map_or(0, |list| list.items.len());
    call.reply.count(length);
    Ok(())
}

pub(super) fn lindex(call: &mut Call<'_>) -> Outcome {
    let at = call.integer(2)?;
    let list = call.store.read::<List>(&call.args[1])?;
    let item = list.and_then(|list| {
        let at = if at < 0 { list.items.len() as i64 + at } else { at };
        list.items.get(usize::try_from(at).ok()?)
    });
    call.reply.bulk_or_null(item.map(Vec::as_slice));
    Ok(())
}

pub(super) fn lrange(call: &mut Call<'_>) -> Outcome {
    let (first, last) = (call.integer(2)?, call.integer(3)?);
    let Some(list) = call.store.read::<List>(&call.args[1])? else {
        call.reply.array(0);
        return Ok(());
    };
    let range = range(first, last, list.items.len());
    call.reply.array(range.len());
    for item in list.items.range(range) {
        call.reply.bulk(item);
    }
    Ok(())
}
