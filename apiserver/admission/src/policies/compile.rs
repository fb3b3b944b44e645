//! The compiled form of policies and bindings: parsed selectors, and CEL programs that are compiled on first use.

use std::sync::Arc;

use apiserver_cel::Program;
use apiserver_resources::expressions::{BOOL, Compiler, STRING, STRING_OR_NULL};
use serde_json::{Value, json};

use super::lazy::Lazy;
use super::name_of;
use crate::Context;
use crate::matching::{Matched, Matcher};
use apiserver_catalog::Catalog;
use machinery_api::error::{ApiError, ApiResult};

/// Parsed `matchConstraints` or `matchResources`.
pub(super) struct Constraints {
    /// Rules with the object names that they match. An empty list matches any name.
    rules: Vec<(Matcher, Vec<String>)>,
    excluded: Vec<(Matcher, Vec<String>)>,
    /// The selectors alone, used if there are no rules.
    selectors: Matcher,
}

fn texts(of: &Value) -> Vec<String> {
    of.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Constraints {
    fn new(matching: &Value) -> Result<Self, String> {
        let rules = |of: &Value, matching: &Value| -> Result<Vec<(Matcher, Vec<String>)>, String> {
            let rules = of.as_array().into_iter().flatten();
            let read = |rule: &Value| {
                let matcher = Matcher::parse(matching, &json!([rule])).map_err(|error| error.to_string())?;
                Ok((matcher, texts(&rule["resourceNames"])))
            };
            rules.map(read).collect()
        };
        // Exclusions apply regardless of labels.
        let unselected = json!({"matchPolicy": matching["matchPolicy"]});
        let anything =
            json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*", "*/*"]}]);
        Ok(Self {
            rules: rules(&matching["resourceRules"], matching)?,
            excluded: rules(&matching["excludeResourceRules"], &unselected)?,
            selectors: Matcher::parse(matching, &anything).map_err(|error| error.to_string())?,
        })
    }

    pub(super) fn matches(
        &self,
        context: &Context<'_>,
        object: &Value,
        catalog: &Catalog,
    ) -> ApiResult<Option<Matched>> {
        let name = if context.request.name.is_empty() { name_of(object) } else { context.request.name };
        let named = |names: &[String]| names.is_empty() || names.iter().any(|one| one == name);
        for (matcher, names) in &self.excluded {
            if named(names) && matcher.matches(context, object, catalog)?.is_some() {
                return Ok(None);
            }
        }
        if self.rules.is_empty() {
            return self.selectors.matches(context, object, catalog);
        }
        for (matcher, _) in self.rules.iter().filter(|(_, names)| named(names)) {
            if let Some(matched) = matcher.matches(context, object, catalog)? {
                return Ok(Some(matched));
            }
        }
        Ok(None)
    }
}

/// A program, or its compile error: the stored expression may have been valid for another server version.
pub(super) type Compiled = Result<Program, String>;

/// The `matchConditions` of a policy or a webhook.
#[derive(Default)]
pub(crate) struct Conditions {
    /// Whether the policy or webhook is skipped if a condition fails to evaluate. Otherwise that is an error.
    pub(super) ignores_errors: bool,
    pub(super) expressions: Vec<(String, Compiled)>,
}

impl Conditions {
    /// Compiles the conditions of a policy's spec or of a webhook.
    pub(crate) fn new(of: &Value) -> Self {
        let compiler = Compiler::new(of["paramKind"].is_object(), false);
        let condition = |condition: &Value| {
            let expression = text(condition, "expression").trim().to_owned();
            let program = compiler.compile(&expression, true, BOOL);
            (expression, program)
        };
        Self {
            ignores_errors: of["failurePolicy"] == "Ignore",
            expressions: items(of, "matchConditions").map(condition).collect(),
        }
    }
}

pub(super) struct Validation {
    pub(super) expression: String,
    pub(super) program: Compiled,
    pub(super) message: String,
    pub(super) message_program: Option<Compiled>,
    pub(super) reason: String,
}

pub(super) struct Annotation {
    pub(super) key: String,
    pub(super) expression: String,
    pub(super) program: Compiled,
}

pub(super) struct Mutation {
    pub(super) expression: String,
    pub(super) program: Compiled,
    pub(super) is_json_patch: bool,
}

/// A policy. Its constraints are parsed immediately; its expressions are compiled on first use.
pub(super) struct Policy {
    pub(super) name: String,
    /// Whether errors of expressions are ignored.
    pub(super) ignores_errors: bool,
    pub(super) constraints: Constraints,
    /// The error that makes the policy unusable.
    pub(super) error: Option<String>,
    /// API version and kind of the parameters.
    pub(super) param_kind: Option<(String, String)>,
    pub(super) is_reinvoked: bool,
    /// Whether the expressions may read managed fields. Only then the fields are supplied.
    pub(super) reads_managed_fields: bool,
    programs: Arc<Lazy<Programs>>,
}

/// The compiled expressions of a policy.
pub(super) struct Programs {
    pub(super) conditions: Conditions,
    pub(super) variables: Vec<(String, Compiled)>,
    pub(super) validations: Vec<Validation>,
    pub(super) annotations: Vec<Annotation>,
    pub(super) mutations: Vec<Mutation>,
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn items<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of[key].as_array().into_iter().flatten()
}

/// Whether a text occurs anywhere in a value.
fn mentions(value: &Value, text: &str) -> bool {
    match value {
        Value::String(own) => own.contains(text),
        Value::Array(items) => items.iter().any(|item| mentions(item, text)),
        Value::Object(map) => map.values().any(|item| mentions(item, text)),
        _ => false,
    }
}

/// Constraints that match nothing, in place of invalid ones.
fn match_nothing() -> Constraints {
    let nothing = Matcher::parse(&json!({}), &json!([])).expect("absent selectors are valid");
    Constraints { rules: Vec::new(), excluded: Vec::new(), selectors: nothing }
}

impl Policy {
    pub(super) fn new(object: &Arc<Value>, mutates: bool) -> Self {
        let spec = &object["spec"];
        let kind = &spec["paramKind"];
        let (constraints, error) = match Constraints::new(&spec["matchConstraints"]) {
            Ok(constraints) => (constraints, None),
            Err(why) => (match_nothing(), Some(why)),
        };
        let make = if mutates { Programs::mutating } else { Programs::validating };
        Self {
            name: name_of(object).to_owned(),
            ignores_errors: spec["failurePolicy"] == "Ignore",
            constraints,
            error,
            param_kind: kind.is_object().then(|| (text(kind, "apiVersion").to_owned(), text(kind, "kind").to_owned())),
            is_reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
            reads_managed_fields: mentions(spec, "managedFields"),
            programs: Arc::new(Lazy::new(object.clone(), make)),
        }
    }

    /// The compiled expressions; the first call compiles them.
    pub(super) async fn programs(&self) -> ApiResult<&Programs> {
        self.programs.get().await
    }
}

impl Programs {
    fn validating(policy: &Value) -> Self {
        Self::new(&policy["spec"], false)
    }

    fn mutating(policy: &Value) -> Self {
        Self::new(&policy["spec"], true)
    }

    fn new(spec: &Value, mutates: bool) -> Self {
        let mut compiler = Compiler::new(spec["paramKind"].is_object(), mutates);
        let variable = |variable: &Value| {
            let name = text(variable, "name").to_owned();
            let program = compiler.variable(&name, text(variable, "expression"));
            (name, program)
        };
        let variables = items(spec, "variables").map(variable).collect();
        let annotation = |annotation: &Value| Annotation::new(annotation, &compiler);
        Self {
            conditions: Conditions::new(spec),
            variables,
            validations: items(spec, "validations").map(|validation| Validation::new(validation, &compiler)).collect(),
            annotations: items(spec, "auditAnnotations").map(annotation).collect(),
            mutations: items(spec, "mutations").map(|mutation| Mutation::new(mutation, &compiler)).collect(),
        }
    }
}

impl Validation {
    fn new(validation: &Value, compiler: &Compiler) -> Self {
        let expression = text(validation, "expression").to_owned();
        let message = text(validation, "messageExpression");
        Self {
            program: compiler.compile(&expression, true, BOOL),
            expression,
            message: text(validation, "message").trim().to_owned(),
            message_program: (!message.trim().is_empty()).then(|| compiler.compile(message, false, STRING)),
            reason: validation["reason"].as_str().unwrap_or("Invalid").to_owned(),
        }
    }
}

impl Annotation {
    fn new(annotation: &Value, compiler: &Compiler) -> Self {
        let expression = text(annotation, "valueExpression").trim().to_owned();
        let program = compiler.compile(&expression, true, STRING_OR_NULL);
        Self { key: text(annotation, "key").to_owned(), program, expression }
    }
}

impl Mutation {
    fn new(mutation: &Value, compiler: &Compiler) -> Self {
        let patch_type = text(mutation, "patchType");
        let is_json_patch = patch_type == "JSONPatch";
        let field = if is_json_patch { "jsonPatch" } else { "applyConfiguration" };
        let expression = text(&mutation[field], "expression").trim().to_owned();
        Self { program: compiler.mutation(patch_type, &expression), expression, is_json_patch }
    }
}

pub(super) struct Binding {
    pub(super) name: String,
    /// `None` adds no constraint.
    resources: Option<Result<Constraints, String>>,
    /// `paramRef`, or null.
    pub(super) params: Arc<Value>,
    pub(super) actions: Vec<String>,
}

impl Binding {
    pub(super) fn new(object: &Value) -> Self {
        let spec = &object["spec"];
        let resources = &spec["matchResources"];
        Self {
            name: name_of(object).to_owned(),
            resources: resources.is_object().then(|| Constraints::new(resources)),
            params: Arc::new(spec["paramRef"].clone()),
            actions: texts(&spec["validationActions"]),
        }
    }

    pub(super) fn matches(&self, context: &Context<'_>, object: &Value, catalog: &Catalog) -> ApiResult<bool> {
        match &self.resources {
            None => Ok(true),
            Some(Ok(constraints)) => Ok(constraints.matches(context, object, catalog)?.is_some()),
            Some(Err(why)) => Err(ApiError::Internal(why.clone())),
        }
    }
}
