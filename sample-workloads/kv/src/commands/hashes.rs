//! Commands of hashes.
use super::{Call, Outcome};
use crate::failure::Failure;
use crate::number;
use crate::store::Hash;
use alloc::vec::Vec;

fn value<'a>(call: &'a Call<'_>, field: &[u8]) -> Result<Option<&'a Vec<u8>>, Failure> {
    Ok(call.store.read::<Hash>(&call.args[1])?.and_then(|hash| hash.items.get(field)))
}

pub(super) fn hset(call: &mut Call<'_>) -> Outcome {
    let (pairs, rest) = call.args[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err("ERR wrong number of arguments for 'hset' command".into());
    }
    let added = call.store.edit(&call.args[1], |hash: &mut Hash| {
        pairs.iter().filter(|[field, value]| hash.insert(field.to_vec(), value.to_vec())).count()
    })?;
    call.effect();
    call.reply.count(added);
    Ok(())
}

pub(super) fn hincrby(call: &mut Call<'_>) -> Outcome {
    let by = call.integer(3)?;
    let old = match value(call, &call.args[2])? {
        Some(text) => number::parse(text).ok_or("ERR hash value is not an integer")?,
        None => 0,
    };
    let new = old.checked_add(by).ok_or("ERR increment or decrement would overflow")?;
    let field = call.args[2].to_vec();
    call.store.edit(&call.args[1], |hash: &mut Hash| hash.insert(field, number::text(new)))?;
    call.effect();
    call.reply.integer(new);
    Ok(())
}

pub(super) fn hdel(call: &mut Call<'_>) -> Outcome {
    let (key, fields) = (&call.args[1], &call.args[2..]);
    let removed = match call.store.read::<Hash>(key)? {
        None => 0,
        Some(_) => call.store.edit(key, |hash: &mut Hash| fields.iter().filter(|field| hash.remove(field)).count())?,
    };
    if removed > 0 {
        call.effect();
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn hget(call: &mut Call<'_>) -> Outcome {
    let hash = call.store.read::<Hash>(&call.args[1])?;
    let value = hash.and_then(|hash| hash.items.get(&*call.args[2]));
    call.reply.bulk_or_null(value.map(Vec::as_slice));
    Ok(())
}

pub(super) fn hmget(call: &mut Call<'_>) -> Outcome {
    let hash = call.store.read::<Hash>(&call.args[1])?;
    call.reply.array(call.args.len() - 2);
    for field in &call.args[2..] {
        let value = hash.and_then(|hash| hash.items.get(&**field));
        call.reply.bulk_or_null(value.map(Vec::as_slice));
    }
    Ok(())
}

pub(super) fn hexists(call: &mut Call<'_>) -> Outcome {
    let exists = value(call, &call.args[2])?.is_some();
    call.reply.count(exists.into());
    Ok(())
}

pub(super) fn hlen(call: &mut Call<'_>) -> Outcome {
    let length = call.store.read::<Hash>(&call.args[1])?.map_or(0, |hash| hash.items.len());
    call.reply.count(length);
    Ok(())
}

pub(super) fn hgetall(call: &mut Call<'_>) -> Outcome {
    let hash = call.store.read::<Hash>(&call.args[1])?;
    call.reply.map(hash.map_or(0, |hash| hash.items.len()));
    for (field, value) in hash.iter().flat_map(|hash| &hash.items) {
        call.reply.bulk(field);
        call.reply.bulk(value);
    }
    Ok(())
}

pub(super) fn hkeys(call: &mut Call<'_>) -> Outcome {
    let hash = call.store.read::<Hash>(&call.args[1])?;
    call.reply.array(hash.map_or(0, |hash| hash.items.len()));
    for field in hash.iter().flat_map(|hash| hash.items.keys()) {
        call.reply.bulk(field);
    }
    Ok(())
}

pub(super) fn hvals(call: &mut Call<'_>) -> Outcome {
    let hash = call.store.read::<Hash>(&call.args[1])?;
    call.reply.array(hash.map_or(0, |hash| hash.items.len()));
    for value in hash.iter().flat_map(|hash| hash.items.values()) {
        call.reply.bulk(value);
    }
    Ok(())
}
