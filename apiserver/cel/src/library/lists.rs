//! Functions on lists: order, aggregation, index, slices and sets.

use std::cmp::Ordering;

use super::{Call, Implementation, add};
use crate::error::EvalError;
use crate::value::{List, Res, Value, equal, order};

pub(super) fn find(function: &str, id: &str) -> Option<Implementation> {
    Some(match function {
        "isSorted" => sorted,
        "min" => |call| best_item(call, Ordering::Greater),
        "max" => |call| best_item(call, Ordering::Less),
        "sum" => match id {
            "list_uint_sum_uint" => |call| sum(call, Value::Uint(0)),
            "list_double_sum_double" => |call| sum(call, Value::Double(0.0)),
            "list_duration_sum_duration" => |call| sum(call, Value::Duration(0)),
            _ => |call| {
                // The type of a dynamic list is that of its first item.
                let zero = match list(call, 0)?.get(0).transpose()? {
                    Some(Value::Uint(_)) => Value::Uint(0),
                    Some(Value::Double(_)) => Value::Double(0.0),
                    Some(Value::Duration(_)) => Value::Duration(0),
                    _ => Value::Int(0),
                };
                sum(call, zero)
            },
        },
        "indexOf" if id.starts_with("list") => |call| position_of(call, false),
        "lastIndexOf" if id.starts_with("list") => |call| position_of(call, true),
        "slice" => slice,
        "flatten" => flatten,
        "sort" => |call| sort_by(call, 0),
        "@sortByAssociatedKeys" => |call| sort_by(call, 1),
        "lists.range" => range,
        "reverse" => |call| {
            let items: Vec<_> = list(call, 0)?.iter().collect::<Res<_>>()?;
            call.new_list(items.into_iter().rev().collect())
        },
        "distinct" => distinct,
        "sets.contains" => |call| Ok(Value::Bool(contains_all(call, 0, 1)?)),
        "sets.equivalent" => |call| Ok(Value::Bool(contains_all(call, 0, 1)? && contains_all(call, 1, 0)?)),
        "sets.intersects" => |call| {
            let (a, b) = (list(call, 0)?.clone(), list(call, 1)?.clone());
            for item in a.iter() {
                if contains(&b, &item?, call)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        },
        _ => return None,
    })
}

fn list<'c, 'd>(call: &'c Call<'_, 'd, '_>, at: usize) -> Res<&'c List<'d>> {
    match call.arg(at)? {
        Value::List(list) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn sorted<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let mut before: Option<Value<'d>> = None;
    for item in list(call, 0)?.iter() {
        let item = item?;
        if let Some(before) = &before
            && order(before, &item)? == Ordering::Greater
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

/// The first item that has no better one.
fn best_item<'d>(call: &mut Call<'_, 'd, '_>, worse: Ordering) -> Res<Value<'d>> {
    let mut best: Option<Value<'d>> = None;
    for item in list(call, 0)?.iter() {
        let item = item?;
        let better = match &best {
            Some(best) => order(best, &item)? == worse,
            None => true,
        };
        if better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| EvalError::new(format!("{} called on empty list", call.function)))
}

fn sum<'d>(call: &mut Call<'_, 'd, '_>, zero: Value<'d>) -> Res<Value<'d>> {
    let items = list(call, 0)?.clone();
    items.iter().try_fold(zero, |total, item| add(&total, &item?, call.meter))
}

fn position_of<'d>(call: &mut Call<'_, 'd, '_>, last: bool) -> Res<Value<'d>> {
    let items = list(call, 0)?.clone();
    let wanted = call.arg(1)?.clone();
    let mut found = -1;
    for (at, item) in items.iter().enumerate() {
        if equal(&item?, &wanted, call.meter)? {
            found = at as i64;
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

fn slice<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let (start, end, length) = (call.int(1)?, call.int(2)?, list(call, 0)?.len() as i64);
    let wrong = |why: String| Err(EvalError::new(format!("cannot slice({start}, {end}), {why}")));
    if start < 0 || end < 0 {
        return wrong("negative indexes not supported".to_owned());
    }
    if start > end {
        return wrong("start index must be less than or equal to end index".to_owned());
    }
    if length < end {
        return wrong(format!("list is length {length}"));
    }
    let part = list(call, 0)?.iter().skip(start as usize).take((end - start) as usize).collect::<Res<_>>()?;
    call.new_list(part)
}

fn flatten<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let depth = if call.args.len() > 1 { call.int(1)? } else { 1 };
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    // Values can't nest deeper than the limit, so a greater depth has no effect.
    let depth = depth.min(crate::limits::VALUE_DEPTH as i64) as usize;
    let mut flat = Vec::new();
    let items = list(call, 0)?.clone();
    flatten_into(&items, depth, &mut flat, call)?;
    call.new_list(flat)
}

fn flatten_into<'d>(items: &List<'d>, depth: usize, flat: &mut Vec<Value<'d>>, call: &mut Call<'_, 'd, '_>) -> Res<()> {
    for item in items.iter() {
        call.meter.step(1)?;
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, flat, call)?,
            item => {
                call.meter.allocate(std::mem::size_of::<Value<'_>>())?;
                flat.push(item);
            }
        }
    }
    Ok(())
}

/// The list sorted by a list of keys, which may be the list itself.
fn sort_by<'d>(call: &mut Call<'_, 'd, '_>, keys: usize) -> Res<Value<'d>> {
    let items: Vec<Value<'d>> = list(call, 0)?.iter().collect::<Res<_>>()?;
    let keys: Vec<Value<'d>> = list(call, keys)?.iter().collect::<Res<_>>()?;
    if items.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            items.len(),
            keys.len()
        )));
    }
    let Some(first) = keys.first() else { return call.new_list(items) };
    if !is_nan(first) {
        order(first, first).map_err(|_| EvalError::new("list elements must be comparable"))?;
    }
    if keys.iter().any(|key| key.type_name() != first.type_name()) {
        return Err(EvalError::new("list elements must have the same type"));
    }
    let mut places: Vec<usize> = (0..items.len()).collect();
    call.meter.step(items.len() * (items.len().max(1).ilog2() as usize + 1))?;
    places.sort_by(|a, b| compare_keys(&keys[*a], &keys[*b]));
    call.new_list(places.into_iter().map(|at| items[at].clone()).collect())
}

fn is_nan(value: &Value<'_>) -> bool {
    matches!(value, Value::Double(number) if number.is_nan())
}

/// Orders two keys of one comparable type. NaN comes last; cel-go leaves its place undefined.
fn compare_keys(a: &Value<'_>, b: &Value<'_>) -> Ordering {
    match (is_nan(a), is_nan(b)) {
        (false, false) => order(a, b).unwrap_or(Ordering::Equal),
        (a, b) => a.cmp(&b),
    }
}

fn range<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let count = call.int(0)?.max(0);
    let bytes = (count as usize).saturating_mul(std::mem::size_of::<Value<'_>>());
    call.meter.allocate(bytes)?;
    call.meter.step(count as usize)?;
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

fn distinct<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let mut kept: Vec<Value<'d>> = Vec::new();
    let items = list(call, 0)?.clone();
    'items: for item in items.iter() {
        let item = item?;
        for other in &kept {
            if equal(other, &item, call.meter)? {
                continue 'items;
            }
        }
        kept.push(item);
    }
    call.new_list(kept)
}

fn contains<'d>(items: &List<'d>, wanted: &Value<'d>, call: &mut Call<'_, 'd, '_>) -> Res<bool> {
    for item in items.iter() {
        if equal(&item?, wanted, call.meter)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains_all(call: &mut Call<'_, '_, '_>, whole: usize, part: usize) -> Res<bool> {
    let (whole, part) = (list(call, whole)?.clone(), list(call, part)?.clone());
    for item in part.iter() {
        if !contains(&whole, &item?, call)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use machinery_api::order::total_order_fault;

    use super::*;

    #[test]
    fn keys_of_a_sort_have_a_total_order() {
        let doubles = [f64::NAN, 1.0, -f64::NAN, 0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, 9_007_199_254_740_992.0];
        let (ints, texts) = ([3, i64::MIN, i64::MAX, 3], ["b", "", "a", "b"]);
        for keys in [
            doubles.map(Value::Double).to_vec(),
            ints.map(Value::Int).to_vec(),
            [3, u64::MAX, 0].map(Value::Uint).to_vec(),
            [true, false, true].map(Value::Bool).to_vec(),
            texts.map(|text| Value::String(crate::value::Text::Ref(text))).to_vec(),
        ] {
            assert_eq!(total_order_fault(&keys, compare_keys), None);
        }
    }
}
