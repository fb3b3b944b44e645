//! Device selector expressions over a device's driver, attributes and capacity.

use std::sync::LazyLock;

use apiserver_cel::Env;
use apiserver_cel::types::{DeclType, Type};
use serde_json::Value;

use super::bounded;
use crate::field::{ErrorList, Path};
use crate::read::{get, has, text};

const SELECTORS_MAX: usize = 32;
const EXPRESSION_BYTES_MAX: usize = 10 << 10;
const COST_MAX: u64 = 1_000_000;
const ATTRIBUTES_MAX: i64 = 32;
const VALUE_BYTES_MAX: i64 = 64;
const DRIVER_BYTES_MAX: i64 = 63;

/// The type of `device`, with sizes for the cost estimate.
static DEVICE: LazyLock<Env> = LazyLock::new(|| {
    let sized = |ty: Type, most: i64| DeclType { max_elements: most, ..DeclType::scalar(ty, 0) };
    let by_domain = |value: DeclType| DeclType::map(DeclType::map(value, ATTRIBUTES_MAX), ATTRIBUTES_MAX);
    let quantity = DeclType::scalar(Type::object("kubernetes.Quantity"), 0);
    let device = DeclType::object(
        "kubernetes.DRADevice",
        [
            ("driver", sized(Type::String, DRIVER_BYTES_MAX)),
            ("allowMultipleAllocations", sized(Type::Bool, 1)),
            ("attributes", by_domain(sized(Type::Dyn, VALUE_BYTES_MAX))),
            ("capacity", by_domain(quantity)),
        ],
    );
    Env::new().declare("device", device).bindings()
});

pub(super) fn validate(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    let path = path.child("selectors");
    for (i, selector) in bounded(errors, of, "selectors", SELECTORS_MAX, &path).iter().enumerate() {
        let at = path.index(i);
        let cel = at.child("cel");
        if has(selector, "cel") {
            expression(errors, text(get(selector, "cel"), "expression"), &cel.child("expression"));
        } else {
            errors.required(&cel, "");
        }
    }
}

fn expression(errors: &mut ErrorList, expression: &str, path: &Path<'_>) {
    if expression.len() > EXPRESSION_BYTES_MAX {
        return errors.too_long(path, EXPRESSION_BYTES_MAX);
    }
    let program = match DEVICE.compile(expression) {
        Ok(program) => program,
        Err(error) => return errors.invalid(path, expression, &error.detail()),
    };
    if !matches!(program.output_type(), Type::Bool | Type::Dyn) {
        let why = format!("must evaluate to bool or the unknown type, not {}", program.output_type());
        errors.invalid(path, expression, &why);
    } else if program.estimate().max > COST_MAX {
        errors.forbidden(path, "too complex, exceeds cost limit");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(text: &str) -> Vec<String> {
        let mut errors = ErrorList::new();
        expression(&mut errors, text, &Path::root("e"));
        errors.shown().iter().map(|error| error.message.clone()).collect()
    }

    #[test]
    fn expressions_are_about_a_device() {
        for good in [
            "device.driver == 'd.example.com'",
            "device.attributes['d.example.com'].model == 'm'",
            "device.attributes['d.example.com'].shared",
            "device.capacity['d.example.com'].memory.compareTo(quantity('1Gi')) >= 0",
            "device.allowMultipleAllocations",
            "cel.bind(own, device.attributes['d.example.com'], own.model == 'm' && own.shared)",
        ] {
            assert_eq!(errors_of(good), Vec::<String>::new(), "{good}");
        }
        for (bad, why) in [
            ("nothing ==", "compilation failed: "),
            ("device.other", "undefined field 'other'"),
            ("cel.bind(a.b, 1, true)", "cel.bind() variable names must be simple identifiers"),
            ("device.driver", "must evaluate to bool or the unknown type, not string"),
        ] {
            assert!(errors_of(bad).iter().any(|message| message.contains(why)), "{bad}: {:?}", errors_of(bad));
        }
        let long = format!("device.driver == '{}'", "x".repeat(EXPRESSION_BYTES_MAX));
        assert_eq!(errors_of(&long), ["Too long: may not be more than 10240 bytes"]);
    }
}
