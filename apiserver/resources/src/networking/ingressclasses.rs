//! IngressClasses: the controller of Ingresses, and its parameters.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::typed_reference;
use crate::cells::{AGE, NAME, age, column};
use crate::field::{ErrorList, Path};
use crate::read::{at, default_to, get, has, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "networking.k8s.io",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    schema: "io.k8s.api.networking.v1.IngressClass",
    storage: Storage::Stored("ingressclasses"),
    inert: Some("nothing serves Ingresses here yet"),
    strategy: &IngressClass,
    example: r#"apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: example}
spec: {controller: example.com/ingress}
"#,
    ..Row::CLUSTER
};

struct IngressClass;

const COLUMNS: &[Column] = &[NAME, column("Controller", "string"), column("Parameters", "string"), AGE];
const SPEC: Path<'static> = Path::root("spec");
const CONTROLLER_BYTES_MAX: usize = 250;
const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

fn parameters(errors: &mut ErrorList, parameters: &Value, path: &Path<'_>) {
    if parameters.is_null() {
        return;
    }
    typed_reference(errors, parameters, path);
    let given = has(parameters, "namespace");
    let at = path.child("namespace");
    if !has(parameters, "scope") {
        return errors.required(&path.child("scope"), "");
    }
    match text(parameters, "scope") {
        "Namespace" if !given => errors.required(&at, "`parameters.scope` is set to 'Namespace'"),
        "Namespace" => {
            let namespace = text(parameters, "namespace");
            errors.invalid_each(&at, namespace, rules::dns_label(namespace));
        }
        "Cluster" if given => errors.forbidden(&at, "`parameters.scope` is set to 'Cluster'"),
        "Cluster" => {}
        other => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
    }
}

/// A domain, a slash and the path of a URL.
fn domain_prefixed_path(errors: &mut ErrorList, value: &str, path: &Path<'_>) {
    const PATH: &str = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";
    if value.is_empty() {
        return errors.required(path, "");
    }
    let Some((host, rest)) = value.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty()) else {
        return errors.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    errors.invalid_each(path, host, rules::dns_subdomain(host));
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        errors.invalid(path, rest, &rules::regex_sentence("Invalid path", PATH, &[]));
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    let (controller, controller_at) = (text(spec, "controller"), SPEC.child("controller"));
    if controller.len() > CONTROLLER_BYTES_MAX {
        errors.too_long(&controller_at, CONTROLLER_BYTES_MAX);
    }
    domain_prefixed_path(errors, controller, &controller_at);
    parameters(errors, get(spec, "parameters"), &SPEC.child("parameters"));
}

impl Strategy for IngressClass {
    fn default(&self, object: &mut Value) {
        if let Some(parameters) = object.pointer_mut("/spec/parameters") {
            default_to(parameters, "scope", "Cluster");
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if let Some(old) = old {
            let controller = |object| json!(text(get(object, "spec"), "controller"));
            errors.immutable(&SPEC.child("controller"), &controller(object), &controller(old));
        }
        validate(errors, object);
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let is_default = text(at(object, &["metadata", "annotations"]), DEFAULT_ANNOTATION) == "true";
        let named = crate::read::name(object);
        let parameters = get(spec, "parameters");
        let shown = if parameters.is_null() {
            "<none>".to_owned()
        } else {
            let kind = text(parameters, "kind");
            let group = get(parameters, "apiGroup").as_str().map(|group| format!(".{group}")).unwrap_or_default();
            format!("{kind}{group}/{}", text(parameters, "name"))
        };
        let named = if is_default { format!("{named} (default)") } else { named.to_owned() };
        vec![json!(named), json!(text(spec, "controller")), json!(shown), age(object, now)]
    }
}
