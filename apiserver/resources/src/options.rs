//! The options of each verb: parsed from the query (or a DeleteOptions body) and validated with upstream's errors
//! (k8s.io/apimachinery `meta/v1/validation`, `meta/internalversion/validation`).

use machinery_api::error::GroupResource;
use machinery_api::{ApiError, Cause};
use serde_json::Value;

use super::field::{go_json, quoted};
use super::query::Query;
use apiserver_schema::FieldValidation;
use machinery_api::selector::{FieldSelector, LabelSelector};

/// The maximum length of `fieldManager` (upstream's).
const FIELD_MANAGER_BYTES_MAX: usize = 128;

fn cause(reason: &str, field: &str, message: String) -> Cause {
    Cause { reason: reason.into(), message, field: field.into() }
}

fn forbidden(field: &str, detail: &str) -> Cause {
    cause("FieldValueForbidden", field, format!("Forbidden: {detail}"))
}

fn not_supported(field: &str, shown: &str, supported: &[&str]) -> Cause {
    let list: Vec<String> = supported.iter().map(|s| quoted(s)).collect();
    cause("FieldValueNotSupported", field, format!("Unsupported value: {shown}: supported values: {}", list.join(", ")))
}

fn into_result(kind: &str, causes: Vec<Cause>) -> Result<(), ApiError> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid(GroupResource::new("meta.k8s.io", kind), String::new(), causes))
}

/// Options of create, update and patch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Whether nothing is stored.
    pub dry_run: bool,
    /// The validation of unknown fields.
    pub field_validation: FieldValidation,
    /// The client's `fieldManager`; may be empty.
    pub field_manager: String,
    /// Whether the request names a field validation that warns: the mark of a client that shows warnings to people.
    pub shows_warnings: bool,
    /// Whether an apply takes over fields of other managers.
    pub force: bool,
    /// The field manager from the user agent, if the client names none.
    pub agent: String,
}

impl WriteOptions {
    /// Parses and validates; `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    #[inline]
    pub fn read(query: &Query, kind: &str) -> Result<Self, ApiError> {
        let mut causes = Vec::new();
        if kind == "PatchOptions" && query.get("force").is_some() {
            causes.push(forbidden("force", "may not be specified for non-apply patch"));
        }
        Self::checked(query, kind, causes)
    }

    /// The same for an apply patch.
    pub fn read_apply(query: &Query) -> Result<Self, ApiError> {
        let mut causes = Vec::new();
        if query.text("fieldManager").is_empty() {
            let message = "Required value: is required for apply patch".into();
            causes.push(cause("FieldValueRequired", "fieldManager", message));
        }
        let force = query.flag("force") == Some(true);
        Ok(Self { force, ..Self::checked(query, "PatchOptions", causes)? })
    }

    /// The client's `fieldValidation`.
    #[must_use]
    pub fn requested_validation(&self) -> Option<&'static str> {
        match (self.field_validation, self.shows_warnings) {
            (FieldValidation::Ignore, _) => Some("Ignore"),
            (FieldValidation::Strict, _) => Some("Strict"),
            (FieldValidation::Warn, true) => Some("Warn"),
            (FieldValidation::Warn, false) => None,
        }
    }

    /// Sets the default field manager: the first part of the user agent.
    #[must_use]
    pub fn with_agent(self, agent: &str) -> Self {
        let agent = if self.field_manager.is_empty() { default_manager(agent) } else { String::new() };
        Self { agent, ..self }
    }

    #[inline]
    fn checked(query: &Query, kind: &str, mut causes: Vec<Cause>) -> Result<Self, ApiError> {
        let manager = query.text("fieldManager");
        let dry_run: Vec<&str> = query.all("dryRun").collect();
        let validation = query.text("fieldValidation");
        causes.extend(field_manager(manager));
        causes.extend(dry_run_cause(&dry_run));
        let field_validation = FieldValidation::parse(validation).unwrap_or_else(|| {
            causes.push(not_supported("fieldValidation", &quoted(validation), &["", "Ignore", "Strict", "Warn"]));
            FieldValidation::Warn
        });
        into_result(kind, causes)?;
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            field_validation,
            field_manager: manager.to_owned(),
            shows_warnings: matches!(validation, "Warn" | "Strict"),
            ..Self::default()
        })
    }
}

/// The default field manager: the user agent up to the slash.
fn default_manager(agent: &str) -> String {
    let mut manager = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()) {
        if manager.len() + c.len_utf8() > FIELD_MANAGER_BYTES_MAX {
            break;
        }
        manager.push(c);
    }
    manager
}

fn field_manager(manager: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if manager.len() > FIELD_MANAGER_BYTES_MAX {
        let message = format!("Too long: may not be more than {FIELD_MANAGER_BYTES_MAX} bytes");
        causes.push(cause("FieldValueTooLong", "fieldManager", message));
    }
    for (i, c) in manager.char_indices() {
        if c.is_control() || (c.is_whitespace() && c != ' ') {
            let message =
                format!("Invalid value: {}: invalid character U+{:04X} (at position {i})", quoted(manager), c as u32);
            causes.push(cause("FieldValueInvalid", "fieldManager", message));
        }
    }
    causes
}

fn dry_run_cause(values: &[&str]) -> Option<Cause> {
    values.iter().any(|v| *v != "All").then(|| {
        let shown = go_json(&Value::from(values.to_vec()));
        not_supported("dryRun", &shown, &["All"])
    })
}

/// `resourceVersionMatch`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// The state at exactly that version.
    Exact,
    /// That version or a newer one.
    NotOlderThan,
}

/// Options of list, watch and deletecollection.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// The label selector.
    pub labels: LabelSelector,
    /// The field selector, with field labels of the requested version.
    pub fields: FieldSelector,
    /// Whether the request is a watch.
    pub watch: bool,
    /// Whether the watch may send bookmarks.
    pub bookmarks: bool,
    /// The requested resourceVersion; may be empty.
    pub resource_version: String,
    /// The meaning of that version.
    pub version_match: Option<VersionMatch>,
    /// The duration of a watch in seconds.
    pub timeout_seconds: Option<i64>,
    /// The maximum number of items of a page; 0 or less is no limit.
    pub limit: i64,
    /// The token of the next page.
    pub continue_token: String,
    /// Whether a watch begins with the current state; `None` selects upstream's default by the version.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Parses and validates.
    #[inline]
    pub fn read(query: &Query) -> Result<Self, ApiError> {
        let bad = ApiError::BadRequest;
        // Numbers are parsed before selectors.
        let timeout_seconds = query.integer("timeoutSeconds").map_err(bad)?;
        let limit = query.integer("limit").map_err(bad)?.unwrap_or(0);
        let mut options = Self {
            labels: LabelSelector::parse(query.text("labelSelector")).map_err(|e| bad(e.to_string()))?,
            fields: FieldSelector::parse(query.text("fieldSelector")).map_err(|e| bad(e.to_string()))?,
            watch: query.flag("watch") == Some(true),
            bookmarks: query.flag("allowWatchBookmarks") == Some(true),
            resource_version: query.text("resourceVersion").to_owned(),
            version_match: None,
            timeout_seconds,
            limit,
            continue_token: query.text("continue").to_owned(),
            send_initial_events: query.flag("sendInitialEvents"),
        };
        let mut requested_match = query.text("resourceVersionMatch");
        if options.watch
            && options.send_initial_events.is_none()
            && requested_match.is_empty()
            && matches!(options.resource_version.as_str(), "" | "0")
        {
            options.send_initial_events = Some(true);
            requested_match = "NotOlderThan";
        }
        options.version_match = match requested_match {
            "Exact" => Some(VersionMatch::Exact),
            "NotOlderThan" => Some(VersionMatch::NotOlderThan),
            _ => None,
        };
        into_result(
            "ListOptions",
            if options.watch { options.watch_causes(requested_match) } else { options.list_causes(requested_match) },
        )?;
        Ok(options)
    }

    fn list_causes(&self, requested_match: &str) -> Vec<Cause> {
        let field = "resourceVersionMatch";
        let mut causes = Vec::new();
        if !requested_match.is_empty() {
            if self.resource_version.is_empty() {
                causes.push(forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if !self.continue_token.is_empty() {
                causes.push(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if self.version_match.is_none() {
                causes.push(not_supported(field, &quoted(requested_match), &["Exact", "NotOlderThan", ""]));
            }
            if requested_match == "Exact" && self.resource_version == "0" {
                let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                causes.push(forbidden(field, detail));
            }
        }
        if self.send_initial_events.is_some() {
            causes.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        causes
    }

    fn watch_causes(&self, requested_match: &str) -> Vec<Cause> {
        let field = "resourceVersionMatch";
        let mut causes = Vec::new();
        let newer = requested_match == "NotOlderThan";
        if self.send_initial_events.is_some() && !newer {
            let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            causes.push(forbidden(field, detail));
        }
        if !requested_match.is_empty() {
            if self.send_initial_events.is_none() {
                let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                causes.push(forbidden(field, detail));
            }
            if !newer {
                causes.push(not_supported(field, &quoted(requested_match), &["NotOlderThan"]));
            }
            if !self.continue_token.is_empty() {
                causes.push(forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
            }
        }
        causes
    }
}

/// `propagationPolicy`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are kept without their owner reference.
    Orphan,
    /// The garbage collector deletes dependents afterwards.
    Background,
    /// Dependents are deleted first.
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Whether nothing is stored.
    pub dry_run: bool,
    /// The grace period in seconds; negative values mean 1.
    pub grace_seconds: Option<i64>,
    /// The handling of dependents.
    pub propagation: Option<Propagation>,
    /// The older form of the propagation policy.
    pub orphan_dependents: Option<bool>,
    /// The uid precondition.
    pub uid: Option<String>,
    /// The resourceVersion precondition.
    pub resource_version: Option<String>,
    /// Whether this is the delete of an admitted eviction.
    pub of_eviction: bool,
}

impl DeleteOptions {
    /// Parses the query; used for a request without a body.
    pub fn read(query: &Query) -> Result<Self, ApiError> {
        let dry_run: Vec<&str> = query.all("dryRun").collect();
        let grace = query.integer("gracePeriodSeconds").map_err(ApiError::BadRequest)?;
        let given = |key: &str| Some(query.text(key).to_owned()).filter(|text| !text.is_empty());
        let (orphan, policy) = (query.flag("orphanDependents"), query.get("propagationPolicy"));
        Self::check(grace, orphan, policy, &dry_run, given("uid"), given("resourceVersion"))
    }

    /// Parses a decoded DeleteOptions.
    pub fn from_body(body: &Value) -> Result<Self, ApiError> {
        let wrong = |field: &str, value: &Value, wanted: &str| {
            let found = match value {
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::Array(_) => "array",
                Value::Object(_) | Value::Null => "object",
            };
            ApiError::BadRequest(format!(
                "json: cannot unmarshal {found} into Go struct field DeleteOptions.{field} of type {wanted}"
            ))
        };
        fn given<'a>(body: &'a Value, field: &str) -> Option<&'a Value> {
            body.get(field).filter(|v| !v.is_null())
        }
        let text = |at: &Value, field: &str, path: &str| match given(at, field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong(path, other, "string")),
        };
        let grace = given(body, "gracePeriodSeconds")
            .map(|v| v.as_i64().ok_or_else(|| wrong("gracePeriodSeconds", v, "int64")))
            .transpose()?;
        let orphan = given(body, "orphanDependents")
            .map(|v| v.as_bool().ok_or_else(|| wrong("orphanDependents", v, "bool")))
            .transpose()?;
        let policy = text(body, "propagationPolicy", "propagationPolicy")?;
        let dry_run: Vec<&str> = match given(body, "dryRun") {
            None => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .map(|v| v.as_str().ok_or_else(|| wrong("dryRun", v, "string")))
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(wrong("dryRun", other, "[]string")),
        };
        let (mut uid, mut version) = (None, None);
        match given(body, "preconditions") {
            None => {}
            Some(preconditions @ Value::Object(_)) => {
                uid = text(preconditions, "uid", "preconditions.uid")?;
                version = text(preconditions, "resourceVersion", "preconditions.resourceVersion")?;
            }
            Some(other) => return Err(wrong("preconditions", other, "v1.Preconditions")),
        }
        Self::check(grace, orphan, policy.as_deref(), &dry_run, uid, version)
    }

    fn check(
        grace_seconds: Option<i64>,
        orphan_dependents: Option<bool>,
        policy: Option<&str>,
        dry_run: &[&str],
        uid: Option<String>,
        resource_version: Option<String>,
    ) -> Result<Self, ApiError> {
        let field = "propagationPolicy";
        let mut causes = Vec::new();
        if let (Some(policy), Some(_)) = (policy, orphan_dependents) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            causes.push(cause(
                "FieldValueInvalid",
                field,
                format!("Invalid value: {}: {detail}", go_json(&policy.into())),
            ));
        }
        let propagation = match policy {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                causes.push(not_supported(
                    field,
                    &go_json(&other.into()),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        causes.extend(dry_run_cause(dry_run));
        into_result("DeleteOptions", causes)?;
        let grace_seconds = grace_seconds.map(|s| if s < 0 { 1 } else { s });
        let dry_run = !dry_run.is_empty();
        Ok(Self { dry_run, grace_seconds, propagation, orphan_dependents, uid, resource_version, of_eviction: false })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(result: Result<impl Sized, ApiError>) -> String {
        result.map(|_| ()).unwrap_err().status().message
    }

    #[test]
    fn write_options() {
        let read = |q: &str| WriteOptions::read(&Query::parse(q), "CreateOptions");
        assert!(read("dryRun=All&dryRun=All").unwrap().dry_run);
        assert_eq!(
            message(read("dryRun=all")),
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"all\"]: supported values: \"All\""
        );
        assert_eq!(
            message(read("fieldManager=a%07b")),
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\ab\": invalid character U+0007 (at position 1)"
        );
    }

    #[test]
    fn list_options() {
        let read = |q: &str| ListOptions::read(&Query::parse(q));
        assert!(read("watch").unwrap().send_initial_events == Some(true));
        assert!(read("watch=1&resourceVersion=5").unwrap().send_initial_events.is_none());
        assert_eq!(
            message(read("watch=1&continue=abc")),
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided"
        );
        assert!(
            message(read("resourceVersionMatch=Nope")).contains("supported values: \"Exact\", \"NotOlderThan\", \"\"")
        );
    }

    #[test]
    fn delete_options() {
        let options = DeleteOptions::from_body(&json!({"gracePeriodSeconds": -1, "dryRun": ["All"]})).unwrap();
        assert_eq!(options.grace_seconds, Some(1));
        assert!(options.dry_run);
        assert_eq!(
            message(DeleteOptions::from_body(&json!({"gracePeriodSeconds": "x"}))),
            "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64"
        );
        assert!(message(DeleteOptions::read(&Query::parse("propagationPolicy=Nope"))).contains("\"nil\""));
        // Go's named types are printed as JSON.
        assert!(
            message(DeleteOptions::read(&Query::parse("propagationPolicy=a%3E1"))).contains(r#"value: "a\u003e1":"#)
        );
        assert!(message(DeleteOptions::read(&Query::parse("dryRun=a%3E1"))).contains(r#"value: ["a\u003e1"]:"#));
        let conditions = DeleteOptions::read(&Query::parse("uid=u&resourceVersion=0&dryRun=")).unwrap_err();
        assert_eq!(conditions.status().code, 422);
        let conditions = DeleteOptions::read(&Query::parse("uid=u&resourceVersion=0")).unwrap();
        assert_eq!((conditions.uid.as_deref(), conditions.resource_version.as_deref()), (Some("u"), Some("0")));
    }
}
