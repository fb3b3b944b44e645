//! Commands of sets.
use super::{Call, Outcome};
use crate::store::Set;

pub(super) fn sadd(call: &mut Call<'_>) -> Outcome {
    let members = &call.args[2..];
    let added = call
        .store
        .edit(&call.args[1], |set: &mut Set| members.iter().filter(|member| set.insert(member.to_vec())).count())?;
    if added > 0 {
        call.effect();
    }
    call.reply.count(added);
    Ok(())
}

pub(super) fn srem(call: &mut Call<'_>) -> Outcome {
    let (key, members) = (&call.args[1], &call.args[2..]);
    let removed = match call.store.read::<Set>(key)? {
        None => 0,
        Some(_) => call.store.edit(key, |set: &mut Set| members.iter().filter(|member| set.remove(member)).count())?,
    };
    if removed > 0 {
        call.effect();
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn smembers(call: &mut Call<'_>) -> Outcome {
    let set = call.store.read::<Set>(&call.args[1])?;
    call.reply.set(set.map_or(0, |set| set.items.len()));
    for member in set.iter().flat_map(|set| &set.items) {
        call.reply.bulk(member);
    }
    Ok(())
}

pub(super) fn sismember(call: &mut Call<'_>) -> Outcome {
    let is_member = call.store.read::<Set>(&call.args[1])?.is_some_and(|set| set.items.contains(&*call.args[2]));
    call.reply.count(is_member.into());
    Ok(())
}

pub(super) fn scard(call: &mut Call<'_>) -> Outcome {
    let length = call.store.read::<Set>(&call.args[1])?.map_or(0, |set| set.items.len());
    call.reply.count(length);
    Ok(())
}
