//! Rules of a definition's schemas: they compile, they are cheap enough, and what was there before can be found for them.

use apiserver_cel::limits;
use serde_json::Value;

use super::options::Options;
use super::shown;
use crate::apiextensions::schema::rules::{self, Rule};
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{flag, get, items, text};

/// How many of the most expensive rules are named.
const NAMED_MAX: usize = 4;

/// What is known on the way to a schema.
#[derive(Clone, Copy)]
struct Above<'a> {
    /// How often the value is there at most; `None`: nobody says.
    count: Option<u64>,
    /// Below which schema it can't be told what was there before.
    apart: Option<&'a str>,
}

/// What is the same, or nearly, for all schemas of one.
#[derive(Clone, Copy)]
struct Of<'a> {
    root: bool,
    options: &'a Options,
    wrong: &'a [String],
}

/// What all rules of a schema come to.
struct Total {
    cost: u64,
    expensive: Vec<(String, u64)>,
}

/// What is wrong with the rules of a structural schema. `wrong`: where schemas are that something is wrong with; at these and above them no rule is
/// looked at, for it could not be told what it is about.
pub(super) fn validate(errors: &mut ErrorList, schema: &Value, (options, wrong): (&Options, &[String]), at: &Path<'_>) {
    let mut total = Total { cost: 0, expensive: Vec::new() };
    let of = Of { root: true, options, wrong };
    walk(errors, schema, of, Above { count: Some(1), apart: None }, at, &mut total);
    if total.cost > limits::STATIC_CRD {
        let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        for (place, _) in &total.expensive {
            errors.forbidden(&Path::root(place), why);
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(at, &too_much(what, total.cost, limits::STATIC_CRD));
    }
}

/// How many elements a schema's value holds at most.
fn elements(schema: &Value) -> Option<u64> {
    let most = |key: &str| get(schema, key).as_i64().map(|most| u64::try_from(most).unwrap_or(0));
    match text(schema, "type") {
        "object" if get(schema, "additionalProperties").is_null() => Some(1),
        "object" => most("maxProperties"),
        "array" => most("maxItems"),
        _ => None,
    }
}

fn walk(errors: &mut ErrorList, schema: &Value, of: Of<'_>, above: Above<'_>, at: &Path<'_>, total: &mut Total) {
    let count = above.count.and_then(|count| Some(count.saturating_mul(elements(schema)?)));
    let own = at.to_string();
    let below = |apart: bool| Above { count, apart: above.apart.or_else(|| apart.then_some(own.as_str())) };
    let inner = Of { root: false, ..of };
    if get(schema, "additionalProperties").is_object() {
        let of_values = get(schema, "additionalProperties");
        walk(errors, of_values, inner, below(false), &at.child("additionalProperties"), total);
    }
    let properties_at = at.child("properties");
    // A kind of map that nobody knows.
    let apart = !matches!(text(schema, "x-kubernetes-map-type"), "" | "granular" | "atomic");
    for (name, property) in get(schema, "properties").as_object().into_iter().flatten() {
        walk(errors, property, inner, below(apart), &properties_at.key(name), total);
    }
    if get(schema, "items").is_object() {
        let apart = text(schema, "x-kubernetes-list-type") != "map";
        walk(errors, get(schema, "items"), inner, below(apart), &at.child("items"), total);
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
        one(errors, (rule, given), (often, of.options), above.apart, &rules_at.index(i), total);
    }
}

fn one(
    errors: &mut ErrorList,
    (rule, given): (&Rule, &Value),
    (often, options): (u64, &Options),
    apart: Option<&str>,
    at: &Path<'_>,
    total: &mut Total,
) {
    let rule_at = at.child("rule");
    match &rule.program {
        Ok(program) => {
            let cost = program.estimate().max.saturating_mul(often);
            total.observe(errors, ("estimated rule cost", cost), options, &rule_at);
        }
        Err(why) => errors.add(|| FieldError::invalid_shown(&rule_at, &shown::rule(given), why)),
    }
    let message_at = at.child("messageExpression");
    match &rule.of_message {
        None => {}
        Some(Ok(program)) => {
            let cost = program.estimate().max;
            total.observe(errors, ("estimated messageExpression cost", cost), options, &message_at);
        }
        Some(Err(why)) => errors.add(|| FieldError::invalid_shown(&message_at, &shown::rule(given), why)),
    }
    if rule.uses_old {
        if let Some(apart) = apart {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {apart}");
            errors.invalid(&rule_at, text(given, "rule"), &why);
        }
    } else if !get(given, "optionalOldSelf").is_null() {
        let value = flag(given, "optionalOldSelf");
        errors.invalid(&at.child("optionalOldSelf"), value, "may not be set if oldSelf is not used in rule");
    }
}

impl Total {
    fn observe(&mut self, errors: &mut ErrorList, (what, cost): (&str, u64), options: &Options, at: &Path<'_>) {
        if cost > limits::STATIC_RULE && !options.ignores_cost {
            errors.forbidden(at, &too_much(what, cost, limits::STATIC_RULE));
        }
        self.cost = self.cost.saturating_add(cost);
        if cost >= limits::STATIC_CRD / 100 {
            self.expensive.push((at.to_string(), cost));
            self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.expensive.truncate(NAMED_MAX);
        }
    }
}

fn too_much(what: &str, cost: u64, limit: u64) -> String {
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
