//! APIServices: a group and version, and the Service of the API server that serves it; none for this server's own.

use crate::ResetFields;
use crate::choices::choice;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, Path};
use crate::metadata::reset_for_status;
use crate::read::{at, default_to, fields, flag, get, has, int, items, put, text};
use crate::rules::NameRule;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default, rules};

pub(crate) static ROW: Row = Row {
    group: "apiregistration.k8s.io",
    kind: "APIService",
    plural: "apiservices",
    singular: "apiservice",
    categories: &["api-extensions"],
    schema: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
    subresources: &[STATUS],
    storage: Storage::Stored("apiregistration.k8s.io/apiservices"),
    inert: Some("requests are not proxied to other API servers yet: the group and version is not served"),
    strategy: &ApiService,
    example: r#"apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.example.com}
spec: {group: example.com, version: v1, groupPriorityMinimum: 1000, versionPriority: 100}
"#,
    ..Row::CLUSTER
};

struct ApiService;

const COLUMNS: &[Column] = &[NAME, column("Service", "string"), column("Available", "string"), AGE];
const SPEC: Path<'static> = Path::root("spec");
const PORT: i64 = 443;
const GROUP_PRIORITY_MAX: i64 = 20_000;
const VERSION_PRIORITY_MAX: i64 = 1000;

fn local(errors: &mut ErrorList, spec: &Value) {
    let bundle = text(spec, "caBundle");
    if !bundle.is_empty() {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default().len();
        let why = "local APIServices may not have a caBundle";
        errors.invalid(&SPEC.child("caBundle"), format!("{bytes} bytes"), why);
    }
    if flag(spec, "insecureSkipTLSVerify") {
        let why = "local APIServices may not have insecureSkipTLSVerify";
        errors.invalid(&SPEC.child("insecureSkipTLSVerify"), true, why);
    }
}

fn remote(errors: &mut ErrorList, spec: &Value, service: &Value) {
    let path = SPEC.child("service");
    for key in ["namespace", "name"] {
        if text(service, key).is_empty() {
            errors.required(&path.child(key), "");
        }
    }
    let port = int(service, "port").unwrap_or(0);
    let wrong = rules::port_number(port);
    if !wrong.is_empty() {
        errors.invalid(&path.child("port"), port, &format!("port is not valid: {}", wrong.join(", ")));
    }
    if flag(spec, "insecureSkipTLSVerify") && !text(spec, "caBundle").is_empty() {
        errors.invalid(&SPEC.child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present");
    }
}

fn name_mismatch(wanted: &str) -> String {
    format!("must be `spec.version+\".\"+spec.group`: {}", crate::field::quoted(wanted))
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    let (group, version, named) = (text(spec, "group"), text(spec, "version"), crate::read::name(object));
    let wanted = format!("{version}.{group}");
    let prefix = text(get(object, "metadata"), "generateName");
    // Errors of the name as a prefix have been reported already.
    if !prefix.is_empty() && prefix != wanted && rules::path_segment(prefix, true).is_empty() {
        let mut wrong = rules::path_segment(prefix, false);
        if wrong.is_empty() {
            wrong.push(name_mismatch(&wanted));
        }
        errors.invalid_each(&Path::root("metadata.generateName"), prefix, wrong);
    }
    // Upstream reports a missing name once.
    if !named.is_empty() && named != wanted && rules::path_segment(named, false).is_empty() {
        errors.invalid(&Path::root("metadata.name"), named, &name_mismatch(&wanted));
    }
    let group_at = SPEC.child("group");
    if !group.is_empty() {
        errors.invalid_each(&group_at, group, rules::dns_subdomain(group));
    } else if version != "v1" {
        errors.required(&group_at, "only v1 may have an empty group and it better be legacy kube");
    }
    errors.invalid_each(&SPEC.child("version"), version, rules::dns_1035_label(version));
    for (key, most) in [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)] {
        let value = int(spec, key).unwrap_or(0);
        if !(1..=most).contains(&value) {
            errors.invalid(&SPEC.child(key), value, &format!("must be positive and less than {most}"));
        }
    }
    match get(spec, "service") {
        Value::Null => local(errors, spec),
        service => remote(errors, spec, service),
    }
}

fn validate_status(errors: &mut ErrorList, object: &Value) {
    const KNOWN: &[&str] = &["True", "False", "Unknown"];
    let list_at = Path::root("status.conditions");
    for (i, condition) in items(get(object, "status"), "conditions").iter().enumerate() {
        choice(errors, condition, "status", KNOWN, &list_at.index(i));
    }
}

impl Strategy for ApiService {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        if let Some(service) = object.pointer_mut("/spec/service").filter(|service| service.is_object()) {
            default_to(service, "port", PORT);
        }
        // Go's encoder always writes it.
        fields(object).entry("status").or_insert_with(|| json!({}));
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        let mut status = json!({});
        if !has(get(object, "spec"), "service") {
            status["conditions"] = json!([{
                "type": "Available", "status": "True", "reason": "Local",
                "message": "Local APIServices are always available",
                "lastTransitionTime": context.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]);
        }
        put(object, "status", status);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource.is_empty() {
            validate(errors, object);
        } else {
            validate_status(errors, object);
        }
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let service = at(object, &["spec", "service"]);
        let shown = match service {
            Value::Null => "Local".to_owned(),
            service => machinery_api::ObjectName::new(text(service, "namespace"), text(service, "name")).to_string(),
        };
        let mut conditions = items(get(object, "status"), "conditions").iter();
        let available = conditions.find(|c| text(c, "type") == "Available");
        let shown_available = match available {
            Some(condition) if text(condition, "status") == "True" || text(condition, "reason").is_empty() => {
                text(condition, "status").to_owned()
            }
            Some(condition) => format!("{} ({})", text(condition, "status"), text(condition, "reason")),
            None => "Unknown".to_owned(),
        };
        vec![name(object), json!(shown), json!(shown_available), age(object, now)]
    }
}
