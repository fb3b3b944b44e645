//! Type checking of a policy's expressions against the types in its rules. The resulting warnings are written to the
//! policy's status and have no other effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use apiserver_cel::types::{DeclType, Shape, Type as CelType, escape, from_schema_at};
use apiserver_schema::{Field, Kind, Type, TypeRef, Types, built_in};
use serde_json::Value;

use super::expressions::Compiler;
use crate::info::ResourceInfo;

/// Maximum number of types that one policy is checked against.
const TYPES_MAX: usize = 10;
/// Maximum size of all warnings together, in bytes: a larger status would be rejected.
const WARNINGS_BYTES_MAX: usize = 256 << 10;

/// The type errors of one expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The expression's field path.
    pub field_ref: String,
    /// The errors, by type.
    pub warning: String,
}

/// Checks a ValidatingAdmissionPolicy against the served resources.
#[must_use]
pub fn type_check(policy: &Value, served: &[Arc<ResourceInfo>]) -> Vec<Warning> {
    let spec = &policy["spec"];
    let checkers: Vec<(String, Compiler)> = kinds(spec, served)
        .into_values()
        .filter_map(|resource| Some((format_gvk(resource), compiler(spec, declared_type(resource)?, served))))
        .collect();
    let mut warnings = Vec::new();
    let mut bytes = 0;
    for (at, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = validation[field].as_str().unwrap_or_default();
            if text.is_empty() && field == "messageExpression" {
                continue;
            }
            let wrong =
                checkers.iter().filter_map(|(kind, compiler)| Some(format!("{kind}: {}\n", compiler.check(text)?)));
            let warning = wrong.collect::<Vec<_>>().join("\n");
            bytes += warning.len();
            if !warning.is_empty() && bytes <= WARNINGS_BYTES_MAX {
                warnings.push(Warning { field_ref: format!("spec.validations[{at}].{field}"), warning });
            }
        }
    }
    warnings
}

/// A kind in the format of Go's `%v`.
fn format_gvk(resource: &ResourceInfo) -> String {
    format!("{}/{}, Kind={}", resource.group, resource.version, resource.kind)
}

fn compiler(spec: &Value, object: DeclType, served: &[Arc<ResourceInfo>]) -> Compiler {
    let kind = &spec["paramKind"];
    let params = kind.is_object().then(|| {
        let named = |resource: &&Arc<ResourceInfo>| {
            kind["apiVersion"] == *resource.api_version && kind["kind"] == *resource.kind
        };
        served.iter().find(named).and_then(|resource| declared_type(resource))
    });
    let mut compiler = Compiler::typed(object, params);
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let text = |field: &str| variable[field].as_str().unwrap_or_default();
        // An invalid variable has the type `dyn` in the expressions that use it.
        let _ = compiler.variable(text("name"), text("expression"));
    }
    compiler
}

/// The kinds in the rules that have no wildcards, in order.
fn kinds<'a>(spec: &Value, served: &'a [Arc<ResourceInfo>]) -> BTreeMap<(&'a str, &'a str, &'a str), &'a ResourceInfo> {
    let mut kinds = BTreeMap::new();
    for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let Some((groups, versions)) =
            names_without_wildcard(&rule["apiGroups"]).zip(names_without_wildcard(&rule["apiVersions"]))
        else {
            continue;
        };
        let resources: BTreeSet<&str> = texts(&rule["resources"]).filter(|name| !name.contains(['*', '/'])).collect();
        let mut count = 0;
        for group in &groups {
            for version in &versions {
                for name in &resources {
                    // An empty group matches any group, as in upstream's REST mapper.
                    let named = served.iter().filter(|resource| {
                        (group.is_empty() || *resource.group == **group)
                            && *resource.version == **version
                            && (*resource.plural == **name || *resource.singular == **name)
                    });
                    for resource in named {
                        kinds.insert((&*resource.group, &*resource.version, &*resource.kind), &**resource);
                        count += 1;
                        if count == TYPES_MAX {
                            return kinds;
                        }
                    }
                }
            }
        }
    }
    kinds
}

fn texts(of: &Value) -> impl Iterator<Item = &str> {
    of.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The names, sorted; `None` if one of them has a wildcard.
fn names_without_wildcard(of: &Value) -> Option<BTreeSet<&str>> {
    texts(of).map(|name| (!name.contains('*')).then_some(name)).collect()
}

/// The declared type of a resource's objects.
fn declared_type(resource: &ResourceInfo) -> Option<DeclType> {
    let Some(schema) = &resource.openapi else {
        return Some(of_type(resource.schema.hold().get())?.named(&resource.kind));
    };
    let declared = from_schema_at(&schema.value(), true, &resource.kind)?;
    let mut declared = Arc::unwrap_or_clone(declared.decl);
    // Every resource has the standard metadata, whatever its definition's schema declares.
    let metadata = built_in().by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").and_then(of_type);
    if let (Shape::Object(fields), Some(metadata)) = (&mut declared.shape, metadata) {
        fields.insert("metadata".into(), Arc::new(metadata.named(&format!("{}.metadata", resource.kind))));
    }
    Some(declared)
}

fn of_type(of: TypeRef<'_>) -> Option<DeclType> {
    object(of.types, of.of, &mut Vec::new())
}

fn object<'a>(types: &'a Types, of: &'a Type, above: &mut Vec<&'a str>) -> Option<DeclType> {
    match &of.scalar {
        Some(Kind::Any) | None if is_json(&of.name) => return None,
        Some(Kind::Any) => return Some(DeclType::object("object", [])),
        Some(kind) => return scalar_type(kind),
        None => {}
    }
    if above.contains(&&*of.name) {
        // A recursive type is not expanded again.
        return Some(DeclType::object("object", []));
    }
    above.push(&of.name);
    let field = |field: &'a Field| Some((escape(&field.name)?, declare(types, &field.kind, Some(field), above)?));
    let fields: Vec<(String, DeclType)> = of.fields.iter().filter_map(field).collect();
    above.pop();
    Some(DeclType::object("object", fields.iter().map(|(name, ty)| (name.as_str(), ty.clone()))))
}

/// Whether the type is arbitrary JSON, which has no declared type.
fn is_json(name: &str) -> bool {
    name.ends_with(".JSON") || name.contains(".JSONSchemaPropsOr")
}

fn declare<'a>(types: &'a Types, kind: &'a Kind, field: Option<&Field>, above: &mut Vec<&'a str>) -> Option<DeclType> {
    match kind {
        Kind::Object(id) => object(types, types.get(*id), above),
        Kind::List(item) => Some(DeclType::list(declare(types, item, field, above)?, -1)),
        Kind::Map(value) => Some(DeclType::map(declare(types, value, field, above)?, -1)),
        Kind::Any => {
            let wire = field.and_then(|field| field.wire.as_deref())?;
            let message = wire.strip_prefix("map<string,").and_then(|wire| wire.strip_suffix('>')).unwrap_or(wire);
            let message = message.strip_prefix("repeated ").unwrap_or(message);
            let known = types.by_message(message).is_some_and(|found| is_json(&found.name));
            (!known).then(|| DeclType::object("object", []))
        }
        other => scalar_type(other),
    }
}

/// The type of a scalar; `None` for a quantity, which is a text or a number.
fn scalar_type(kind: &Kind) -> Option<DeclType> {
    let ty = match kind {
        Kind::String => CelType::String,
        Kind::Bool => CelType::Bool,
        Kind::Int32 | Kind::Int64 => CelType::Int,
        Kind::Double => CelType::Double,
        Kind::Bytes => CelType::Bytes,
        Kind::Time | Kind::MicroTime => CelType::Timestamp,
        Kind::IntOrString => CelType::Dyn,
        Kind::Quantity | Kind::Amount | Kind::Any | Kind::Object(_) | Kind::List(_) | Kind::Map(_) => return None,
    };
    Some(DeclType { max_elements: -1, ..DeclType::scalar(ty, 0) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::RESOURCES;

    fn served() -> Vec<Arc<ResourceInfo>> {
        RESOURCES.iter().map(|row| Arc::new(ResourceInfo::of(row))).collect()
    }

    fn rule(groups: &[&str], versions: &[&str], resources: &[&str]) -> Value {
        json!({"apiGroups": groups, "apiVersions": versions, "operations": ["*"], "resources": resources})
    }

    fn policy(rules: &[Value], expressions: &[&str]) -> Value {
        let validations: Vec<Value> = expressions.iter().map(|text| json!({"expression": text})).collect();
        json!({"spec": {"matchConstraints": {"resourceRules": rules}, "validations": validations}})
    }

    fn warnings_of(policy: &Value) -> Vec<(String, String)> {
        type_check(policy, &served()).into_iter().map(|w| (w.field_ref, w.warning)).collect()
    }

    #[test]
    fn fields_that_no_object_has_are_reported_for_each_kind() {
        let rules = [rule(&["apps"], &["v1"], &["deployments", "replicasets", "deployments/scale"])];
        let warnings = warnings_of(&policy(&rules, &["object.spec.replicas > 1", "object.spec.nothing == 1"]));
        let one = |kind: &str| {
            format!(
                "apps/v1, Kind={kind}: ERROR: <input>:1:12: undefined field 'nothing'\n | object.spec.nothing == 1\n | ...........^\n"
            )
        };
        let wanted = format!("{}\n{}", one("Deployment"), one("ReplicaSet"));
        assert_eq!(warnings, [("spec.validations[1].expression".to_owned(), wanted)]);
    }

    #[test]
    fn possibly_valid_expressions_have_no_warning() {
        let rules = [rule(&[""], &["v1"], &["pods"])];
        let right = [
            "object.metadata.labels['a'] == 'b'",
            "object.spec.containers.all(c, c.image.startsWith('x') && has(c.resources))",
            "object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z')",
            "object.spec.containers.all(c, c.livenessProbe.httpGet.port == 80 || c.livenessProbe.httpGet.port == 'x')",
            "oldObject == null || request.operation == 'UPDATE' && namespaceObject.metadata.name != ''",
            "authorizer.group('').resource('pods').check('get').allowed()",
            "has(object.__namespace__) || true",
        ];
        let warnings = warnings_of(&policy(&rules, &right));
        let found: Vec<&str> = warnings.iter().map(|(at, _)| at.as_str()).collect();
        assert_eq!(found, ["spec.validations[6].expression"], "{warnings:?}");
    }

    #[test]
    fn types_of_variables_and_parameters_are_known() {
        let mut policy =
            policy(&[rule(&["apps"], &["v1"], &["deployments"])], &["variables.n == 'x'", "params.data['x'] == 1"]);
        policy["spec"]["variables"] = json!([{"name": "n", "expression": "object.spec.replicas"}]);
        policy["spec"]["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        policy["spec"]["validations"][0]["messageExpression"] = json!("params.nothing");
        let warnings = warnings_of(&policy);
        let found: Vec<&str> = warnings.iter().map(|(at, _)| at.as_str()).collect();
        let wanted = [
            "spec.validations[0].expression",
            "spec.validations[0].messageExpression",
            "spec.validations[1].expression",
        ];
        assert_eq!(found, wanted, "{warnings:?}");
        assert!(
            warnings[0].1.contains("found no matching overload for '_==_' applied to '(int, string)'"),
            "{warnings:?}"
        );
    }

    #[test]
    fn wildcards_and_unserved_kinds_are_not_checked() {
        for rules in [
            vec![],
            vec![rule(&["*"], &["v1"], &["pods"])],
            vec![rule(&[""], &["*"], &["pods"])],
            vec![rule(&[""], &["v1"], &["*", "*/*", "pods/status"])],
            vec![rule(&["none.example"], &["v1"], &["things"])],
        ] {
            assert_eq!(warnings_of(&policy(&rules, &["object.nothing"])), [], "{rules:?}");
        }
        let all: Vec<&str> = RESOURCES.iter().filter(|row| row.version == "v1").map(|row| row.plural).collect();
        let many = type_check(&policy(&[rule(&[""], &["v1"], &all)], &["object.nothing"]), &served());
        assert_eq!(many[0].warning.matches("Kind=").count(), TYPES_MAX);
    }

    #[test]
    fn every_served_kind_can_be_declared() {
        for resource in served() {
            assert!(declared_type(&resource).is_some(), "{}", resource.kind);
        }
    }
}
