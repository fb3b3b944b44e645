//! WIT maps, `map<K, V>`: lists of pairs for the guest, with unique keys.

use std::cmp::Ordering;

use wasmtime::component::Val;

/// The first duplicate key, if any. Takes an integer per pair, and no copy of a key.
pub(crate) fn first_duplicate(pairs: &[(Val, Val)]) -> Option<&Val> {
    let mut order: Vec<u32> = (0..pairs.len() as u32).collect();
    order.sort_unstable_by(|a, b| compare(&pairs[*a as usize].0, &pairs[*b as usize].0));
    let both = order.windows(2).find(|both| {
        let key = |at: usize| &pairs[both[at] as usize].0;
        compare(key(0), key(1)).is_eq()
    })?;
    Some(&pairs[both[0] as usize].0)
}

/// Compares two keys of one type.
fn compare(a: &Val, b: &Val) -> Ordering {
    match (a, b) {
        (Val::String(a), Val::String(b)) => a.cmp(b),
        (Val::Char(a), Val::Char(b)) => a.cmp(b),
        _ => number(a).cmp(&number(b)),
    }
}

fn number(key: &Val) -> i128 {
    match key {
        Val::Bool(key) => i128::from(*key),
        Val::S8(key) => i128::from(*key),
        Val::U8(key) => i128::from(*key),
        Val::S16(key) => i128::from(*key),
        Val::U16(key) => i128::from(*key),
        Val::S32(key) => i128::from(*key),
        Val::U32(key) => i128::from(*key),
        Val::S64(key) => i128::from(*key),
        Val::U64(key) => i128::from(*key),
        _ => 0,
    }
}

/// A key as shown in a message.
pub(crate) fn display_key(key: &Val) -> String {
    match key {
        Val::String(key) => key.clone(),
        Val::Char(key) => key.to_string(),
        Val::Bool(key) => key.to_string(),
        key => number(key).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_type_have_a_total_order() {
        for keys in [
            [i64::MIN, -1, 0, 7, i64::MAX].map(Val::S64).to_vec(),
            [0, 1, u64::MAX].map(Val::U64).to_vec(),
            [true, false].map(Val::Bool).to_vec(),
            ['a', '\u{10ffff}', '\0'].map(Val::Char).to_vec(),
            ["", "a", "b"].map(|text| Val::String(text.into())).to_vec(),
        ] {
            assert_eq!(machinery_api::order::total_order_fault(&keys, compare), None);
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_found() {
        let map = |keys: Vec<Val>| keys.into_iter().map(|key| (key, Val::Bool(true))).collect::<Vec<_>>();
        let texts = |texts: &[&str]| map(texts.iter().map(|text| Val::String((*text).into())).collect());
        assert_eq!(first_duplicate(&texts(&["b", "a", "", "c"])), None);
        assert_eq!(first_duplicate(&texts(&["b", "a", "c", "a"])), Some(&Val::String("a".into())));
        assert_eq!(first_duplicate(&map([-1, 5, i64::MIN, 5].map(Val::S64).to_vec())), Some(&Val::S64(5)));
        assert_eq!(first_duplicate(&map(vec![Val::Bool(true), Val::Bool(false)])), None);
        assert_eq!(first_duplicate(&[]), None);
    }
}
