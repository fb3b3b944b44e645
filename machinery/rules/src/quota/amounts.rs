//! Amounts by resource name, with sum, maximum and difference. Invalid quantities are skipped.

use std::collections::BTreeMap;

use serde_json::Value;

use machinery_api::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads the amounts of an object's map; invalid quantities are skipped.
pub(super) fn read(list: &Value) -> Amounts {
    let amount = |value: &Value| match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    };
    list.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// Adds amounts to a sum.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let now = sum.get(name).map_or_else(|| amount.clone(), |held| held.add(amount));
        sum.insert(name.clone(), now);
    }
}

/// Raises each amount to the larger one.
pub(super) fn raise(top: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if top.get(name).is_none_or(|held| held < amount) {
            top.insert(name.clone(), amount.clone());
        }
    }
}

/// The amounts by which the first exceeds the second.
pub(super) fn more(new: &Amounts, old: &Amounts) -> Amounts {
    let difference = |(name, amount): (&String, &Quantity)| {
        let more = old.get(name).map_or_else(|| amount.clone(), |held| amount.sub(held));
        (more.sign() > 0).then(|| (name.clone(), more))
    };
    new.iter().filter_map(difference).collect()
}

/// `pods=1,requests.cpu=100m`
#[must_use]
pub fn pretty(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}
