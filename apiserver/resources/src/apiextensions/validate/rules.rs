//! Validates the rules of a definition's schemas: they compile, cost within limits, and can correlate `oldSelf`.

use apiserver_cel::limits;
use serde_json::Value;

use super::go_format;
use super::options::Options;
use crate::apiextensions::schema::rules::{self, Rule};
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{flag, get, items, text};

/// Maximum number of expensive rules that an error lists.
const NAMED_MAX: usize = 4;

/// Context from the schemas above.
#[derive(Clone, Copy)]
struct AncestorContext<'a> {
    /// Maximum number of occurrences of the value; `None` if unbounded.
    count: Option<u64>,
    /// The uncorrelatable schema above, if any.
    uncorrelatable: Option<&'a str>,
}

/// Context that all schemas of a version share.
#[derive(Clone, Copy)]
struct SharedContext<'a> {
    root: bool,
    options: &'a Options,
    wrong: &'a [String],
}

/// Accumulated cost of all rules of a schema.
struct CostTotal {
    cost: u64,
    expensive: Vec<(String, u64)>,
}

/// Validates the rules of a structural schema. `wrong`: paths of invalid schemas. Rules of these and of their
/// ancestors are skipped, since their type is unknown.
pub(super) fn validate(errors: &mut ErrorList, schema: &Value, (options, wrong): (&Options, &[String]), at: &Path<'_>) {
    let mut total = CostTotal { cost: 0, expensive: Vec::new() };
    let of = SharedContext { root: true, options, wrong };
    walk(errors, schema, of, AncestorContext { count: Some(1), uncorrelatable: None }, at, &mut total);
    if total.cost > limits::STATIC_CRD {
        let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        for (place, _) in &total.expensive {
            errors.forbidden(&Path::root(place), why);
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(at, &budget_exceeded(what, total.cost, limits::STATIC_CRD));
    }
}

/// Maximum number of elements of a schema's value.
fn elements(schema: &Value) -> Option<u64> {
    let most = |key: &str| get(schema, key).as_i64().map(|most| u64::try_from(most).unwrap_or(0));
    match text(schema, "type") {
        "object" if get(schema, "additionalProperties").is_null() => Some(1),
        "object" => most("maxProperties"),
        "array" => most("maxItems"),
        _ => None,
    }
}

fn walk(
    errors: &mut ErrorList,
    schema: &Value,
    of: SharedContext<'_>,
    above: AncestorContext<'_>,
    at: &Path<'_>,
    total: &mut CostTotal,
) {
    let count = above.count.and_then(|count| Some(count.saturating_mul(elements(schema)?)));
    let own = at.to_string();
    let below = |uncorrelatable: bool| AncestorContext {
        count,
        uncorrelatable: above.uncorrelatable.or_else(|| uncorrelatable.then_some(own.as_str())),
    };
    let inner = SharedContext { root: false, ..of };
    if get(schema, "additionalProperties").is_object() {
        let of_values = get(schema, "additionalProperties");
        walk(errors, of_values, inner, below(false), &at.child("additionalProperties"), total);
    }
    let properties_at = at.child("properties");
    // An unknown map type.
    let uncorrelatable = !matches!(text(schema, "x-kubernetes-map-type"), "" | "granular" | "atomic");
    for (name, property) in get(schema, "properties").as_object().into_iter().flatten() {
        walk(errors, property, inner, below(uncorrelatable), &properties_at.key(name), total);
    }
    if get(schema, "items").is_object() {
        let uncorrelatable = text(schema, "x-kubernetes-list-type") != "map";
        walk(errors, get(schema, "items"), inner, below(uncorrelatable), &at.child("items"), total);
    }
    let is_within = |field: &String| {
        field.strip_prefix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    if of.wrong.iter().any(is_within) {
        return;
    }
    let Some(compiled) = rules::compile(schema, of.root) else { return };
    let often = above.count.unwrap_or_else(|| limits::REQUEST_BYTES.unsigned_abs() / (rules::min_size(&compiled) + 1));
    let rules_at = at.child("x-kubernetes-validations");
    for (i, rule) in compiled.rules.iter().enumerate() {
        let given = &items(schema, "x-kubernetes-validations")[i];
        validate_rule(errors, (rule, given), (often, of.options), above.uncorrelatable, &rules_at.index(i), total);
    }
}

fn validate_rule(
    errors: &mut ErrorList,
    (rule, given): (&Rule, &Value),
    (often, options): (u64, &Options),
    uncorrelatable: Option<&str>,
    at: &Path<'_>,
    total: &mut CostTotal,
) {
    let rule_at = at.child("rule");
    match &rule.program {
        Ok(program) => {
            let cost = program.estimate().max.saturating_mul(often);
            total.observe(errors, ("estimated rule cost", cost), options, &rule_at);
        }
        Err(why) => errors.add(|| FieldError::invalid_shown(&rule_at, &go_format::rule(given), why)),
    }
    let message_at = at.child("messageExpression");
    match &rule.message_program {
        None => {}
        Some(Ok(program)) => {
            let cost = program.estimate().max;
            total.observe(errors, ("estimated messageExpression cost", cost), options, &message_at);
        }
        Some(Err(why)) => errors.add(|| FieldError::invalid_shown(&message_at, &go_format::rule(given), why)),
    }
    if rule.uses_old {
        if let Some(uncorrelatable) = uncorrelatable {
            let why =
                format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelatable}");
            errors.invalid(&rule_at, text(given, "rule"), &why);
        }
    } else if !get(given, "optionalOldSelf").is_null() {
        let value = flag(given, "optionalOldSelf");
        errors.invalid(&at.child("optionalOldSelf"), value, "may not be set if oldSelf is not used in rule");
    }
}

impl CostTotal {
    fn observe(&mut self, errors: &mut ErrorList, (what, cost): (&str, u64), options: &Options, at: &Path<'_>) {
        if cost > limits::STATIC_RULE && !options.ignores_cost {
            errors.forbidden(at, &budget_exceeded(what, cost, limits::STATIC_RULE));
        }
        self.cost = self.cost.saturating_add(cost);
        if cost >= limits::STATIC_CRD / 100 {
            self.expensive.push((at.to_string(), cost));
            self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.expensive.truncate(NAMED_MAX);
        }
    }
}

fn budget_exceeded(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = match times {
        times if times > 100.0 => "more than 100x".to_owned(),
        times if times < 1.5 => format!("{times:.6}x"),
        times => format!("{times:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength \
         where arrays, maps, and strings are declared)"
    )
}
