//! Checks that a comparison is a total order, for tests of every crate: sorting by any other panics. Input: values that
//! are compared pairwise.

use std::cmp::Ordering;
use std::fmt::Debug;

/// The first rule of a total (pre)order that `compare` violates among `values`; `None` if it is one.
///
/// Cubic in the number of values: tests pass a few, often.
pub fn total_order_fault<T: Debug>(values: &[T], compare: impl Fn(&T, &T) -> Ordering) -> Option<String> {
    for a in values {
        if compare(a, a).is_ne() {
            return Some(format!("not reflexive: {a:?}"));
        }
        for b in values {
            let order = compare(a, b);
            if compare(b, a) != order.reverse() {
                return Some(format!("not antisymmetric: {a:?} and {b:?}"));
            }
            for c in values {
                // Equal values compare alike with a third; a value before a second is before all that follow it.
                let (second, third) = (compare(b, c), compare(a, c));
                let kept = match (order, second) {
                    (Ordering::Equal, second) => third == second,
                    (order, Ordering::Equal) => third == order,
                    (order, second) => order != second || third == order,
                };
                if !kept {
                    return Some(format!("not transitive: {a:?}, {b:?} and {c:?}"));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_is_found_broken() {
        assert_eq!(total_order_fault(&[3, 1, 2, 1], Ord::cmp), None);
        let fault = |values: &[u32], compare: fn(&u32, &u32) -> Ordering| {
            total_order_fault(values, compare).unwrap_or_default()
        };
        assert_eq!(fault(&[1], |_, _| Ordering::Less), "not reflexive: 1");
        assert_eq!(
            fault(&[1, 2], |a, b| if a == b { Ordering::Equal } else { Ordering::Less }),
            "not antisymmetric: 1 and 2"
        );
        // Stone, paper, scissors; and neighbours that count as equal.
        assert!(fault(&[0, 1, 2], |a, b| ((a + 3 - b) % 3 + 1).rem_euclid(3).cmp(&1)).starts_with("not transitive: "));
        let near = |a: &u32, b: &u32| if a.abs_diff(*b) < 2 { Ordering::Equal } else { a.cmp(b) };
        assert!(fault(&[0, 1, 2], near).starts_with("not transitive: "));
    }
}
