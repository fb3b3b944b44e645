//! Placement predicates: which taints a toleration covers and which values a requirement admits. The scheduler
//! (placing) and the controllers (evicting) share them: a difference would schedule and evict a pod in a loop.

/// A toleration's relevant fields; absent ones are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Toleration<'a> {
    /// The taint's key; empty for any.
    pub key: &'a str,
    /// `Equal` (or empty), `Exists`, `Lt`, `Gt`.
    pub operator: &'a str,
    /// The value compared with the taint's.
    pub value: &'a str,
    /// The taint's effect; empty for any.
    pub effect: &'a str,
}

/// A taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taint<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a str,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`.
    pub effect: &'a str,
}

/// Whether the toleration covers the taint. An unknown operator covers nothing.
#[must_use]
pub fn tolerates(toleration: Toleration<'_>, taint: Taint<'_>) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    if !toleration.key.is_empty() && toleration.key != taint.key {
        return false;
    }
    match toleration.operator {
        "" | "Equal" => toleration.value == taint.value,
        "Exists" => true,
        "Lt" => numbers(taint.value, toleration.value).is_some_and(|(taint, bound)| taint < bound),
        "Gt" => numbers(taint.value, toleration.value).is_some_and(|(taint, bound)| taint > bound),
        _ => false,
    }
}

/// Whether a requirement of a node selector term matches a value; `None` for a missing label.
#[must_use]
pub fn requirement_matches(operator: &str, values: &[String], value: Option<&str>) -> bool {
    let among = |value: &str| values.iter().any(|known| known == value);
    let compared = || numbers(value?, values.first()?);
    match operator {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, bound)| value > bound),
        "Lt" => compared().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn numbers(value: &str, bound: &str) -> Option<(i64, i64)> {
    Some((value.parse().ok()?, bound.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_of_tolerations() {
        let taint = Taint { key: "k", value: "5", effect: "NoExecute" };
        let cases = [
            (("k", "", "5", ""), true),
            (("k", "Equal", "6", ""), false),
            (("k", "Exists", "", "NoExecute"), true),
            (("", "Exists", "", ""), true),
            (("k", "Exists", "", "NoSchedule"), false),
            (("other", "Exists", "", ""), false),
            (("k", "Lt", "6", ""), true),
            (("k", "Lt", "5", ""), false),
            (("k", "Gt", "4", ""), true),
            (("k", "Gt", "four", ""), false),
            (("k", "In", "5", ""), false),
        ];
        for ((key, operator, value, effect), covered) in cases {
            let toleration = Toleration { key, operator, value, effect };
            assert_eq!(tolerates(toleration, taint), covered, "{toleration:?}");
        }
    }

    #[test]
    fn every_operator_of_requirements() {
        let values = ["5".to_owned(), "x".to_owned()];
        let holds =
            |operator| [None, Some("5"), Some("6"), Some("y")].map(|v| requirement_matches(operator, &values, v));
        assert_eq!(holds("In"), [false, true, false, false]);
        assert_eq!(holds("NotIn"), [true, false, true, true]);
        assert_eq!(holds("Exists"), [false, true, true, true]);
        assert_eq!(holds("DoesNotExist"), [true, false, false, false]);
        assert_eq!(holds("Gt"), [false, false, true, false]);
        assert_eq!(holds("Lt"), [false; 4]);
        assert_eq!(holds("Unknown"), [false; 4]);
    }
}
