//! Decodes request bodies: media type, kind and version, field validation, upstream's messages. Results of patches are
//! checked by the same code ([`value`]).

use machinery_api::error::{ApiError, ApiResult};
use machinery_api::key::GroupVersion;
use machinery_api::selector::go_quoted;
use serde_json::{Map, Value};

use super::budget::Budget;
use super::built_in;
use super::internal_group;
use super::media::{MEDIA_TYPES, Media};
use super::raw::{self, Raw};
use super::typed::{self, Form};
use super::types::{KindFact, TypeRef, Types};
use super::{protobuf, unstructured, yaml};

/// The `fieldValidation` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Unknown and duplicate fields are dropped.
    Ignore,
    /// … and reported in `Warning` headers.
    #[default]
    Warn,
    /// … and rejected.
    Strict,
}

impl FieldValidation {
    /// The parameter's value; absent or empty is `Warn`. `None`: not one of upstream's.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        Some(match value {
            "" | "Warn" => Self::Warn,
            "Ignore" => Self::Ignore,
            "Strict" => Self::Strict,
            _ => return None,
        })
    }
}

/// The expected type of a body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target<'a> {
    /// Empty for core.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Its type.
    pub schema: TypeRef<'a>,
}

impl<'a> Target<'a> {
    /// A built-in kind by name (`autoscaling`, `v1`, `Scale`).
    #[must_use]
    pub fn kind(group: &'a str, version: &'a str, kind: &'a str) -> Option<Self> {
        built_in().of_kind(group, version, kind).map(|schema| Self { group, version, kind, schema })
    }

    /// Group and version.
    #[must_use]
    pub fn group_version(&self) -> GroupVersion<'a> {
        GroupVersion { group: self.group, version: self.version }
    }

    fn api_version(&self) -> String {
        self.group_version().to_string()
    }
}

/// A decoded object: sparse (the given fields, and `{}` for non-pointer objects; [`super::normalise`] fills in the rest
/// after defaulting), with apiVersion and kind set. managedFields are as sent: callers remove them.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object.
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Decodes a body.
pub fn body(bytes: &[u8], media: Media, target: &Target<'_>, validation: FieldValidation) -> ApiResult<Decoded> {
    let unrecognized = |error: &str| {
        ApiError::BadRequest(format!(
            "the object provided is unrecognized (must be of type {}): {error} ({})",
            target.kind,
            summary(bytes)
        ))
    };
    if media == Media::Protobuf && target.schema.of.message.is_empty() {
        return Err(no_message());
    }
    let mut budget = Budget::of_body(bytes.len());
    let opened = parse_envelope(bytes, media, &mut budget).map_err(|e| unrecognized(&e));
    budget.check()?;
    let opened = opened?;
    if let (Some(schema), Content::Raw(_)) = (&target.schema.of.unstructured, &opened.content) {
        return free_body(bytes, opened, &**schema, target, validation);
    }
    let (kind, version) = (pick(&opened.kind, target.kind), defaulted_version(&opened, target));
    let refused = |error: &str| {
        let version = GroupVersion::parse(&version).version;
        ApiError::BadRequest(format!(
            "{kind} in version {} cannot be handled as a {}: {error}",
            go_quoted(version),
            target.kind
        ))
    };
    GroupVersion::parse_checked(&version).map_err(|why| unrecognized(&why))?;
    if kind != target.kind || version != target.api_version() {
        return Err(kind_mismatch_error(kind, &version, opened.content, bytes.len(), target, refused));
    }
    let binary = matches!(opened.content, Content::Protobuf(_));
    let raw = match opened.content {
        Content::Raw(raw) => raw,
        Content::Protobuf(inner) => {
            let parsed = protobuf::parse(target.schema, inner, &mut budget).map_err(|e| refused(&e));
            budget.check()?;
            parsed?
        }
    };
    // The input shrinks as the output grows: each has the whole budget.
    let mut budget = Budget::of_body(bytes.len());
    let converted = typed::convert(target.schema, raw, Form::Sparse, &mut budget).map_err(|e| refused(&e));
    budget.check()?;
    let mut converted = converted?;
    if binary {
        converted.findings.clear(); // protobuf knows neither unknown nor doubled fields
    }
    let mut findings = opened.doubled;
    if validation == FieldValidation::Strict && !findings.is_empty() {
        findings = vec![format!("yaml: unmarshal errors:\n  {}", findings.join("\n  "))];
    }
    findings.extend(converted.findings);
    let warnings = report_findings(findings, validation)
        .map_err(|findings| refused(&format!("strict decoding error: {}", findings.join(", "))))?;
    Ok(Decoded { object: finish(converted.object, target), warnings })
}

/// Decodes a body of a kind without a Go struct: it must have kind and version.
fn free_body(
    bytes: &[u8],
    opened: ParsedEnvelope<'_>,
    schema: &dyn unstructured::Unstructured,
    target: &Target<'_>,
    validation: FieldValidation,
) -> ApiResult<Decoded> {
    for (field, given) in [("Kind", &opened.kind), ("apiVersion", &opened.api_version)] {
        if given.is_empty() {
            return Err(ApiError::BadRequest(format!(
                "the object provided is unrecognized (must be of type {}): Object '{field}' is missing in '{}' ({})",
                target.kind,
                String::from_utf8_lossy(&bytes[..bytes.len().min(MISSING_SHOWN)]),
                summary(bytes)
            )));
        }
    }
    let Content::Raw(raw) = opened.content else { return Err(no_message()) };
    let names = (opened.kind.as_str(), opened.api_version.as_str());
    let mut budget = Budget::of_body(bytes.len());
    let (object, findings) = unstructured::body(raw, opened.doubled, names, schema, target, &mut budget)?;
    let warnings = report_findings(findings, validation).map_err(|findings| {
        ApiError::BadRequest(format!(
            "{kind} in version {} cannot be handled as a {kind}: strict decoding error: {}",
            go_quoted(target.version),
            findings.join(", "),
            kind = target.kind
        ))
    })?;
    Ok(Decoded { object, warnings })
}

/// Maximum bytes of a body without kind and version in the error.
const MISSING_SHOWN: usize = 1024;

/// The error for a well-formed body of another kind or version than its path, in upstream's order of checks.
fn kind_mismatch_error(
    kind: &str,
    version: &str,
    content: Content<'_>,
    body_bytes: usize,
    target: &Target<'_>,
    refused: impl Fn(&str) -> ApiError,
) -> ApiError {
    let GroupVersion { group, version: plain } = GroupVersion::parse(version);
    let types = target.schema.types;
    if !registered(types, group, plain, kind) {
        return refused(&not_registered(kind, version));
    }
    // Upstream first decodes the body as the kind that it names.
    let same = |k: &&KindFact| k.kind == kind && (k.group == group || group == "extensions");
    let found = types.of_kind(group, plain, kind);
    let found = found.or_else(|| types.kinds().find(same).map(|fact| types.refer(fact.id)));
    if let (Some(found), Content::Raw(raw)) = (found, content)
        && let Err(error) = typed::convert(found, raw, Form::Sparse, &mut Budget::of_body(body_bytes))
    {
        return refused(&error);
    }
    if kind != target.kind {
        let hub = internal_group(target.group);
        return refused(&format!("converting ({plain}.{kind}) to ({hub}.{}): unknown conversion", target.kind));
    }
    let expected = target.api_version();
    ApiError::BadRequest(format!(
        "the API version in the data ({version}) does not match the expected API version ({expected})"
    ))
}

/// Decodes options (`DeleteOptions` and the like) of any apiVersion; a wrong kind is rejected.
pub fn options(bytes: &[u8], media: Media, kind: &str, type_name: &str) -> ApiResult<Value> {
    let refused = |error: String| ApiError::BadRequest(error);
    let found = built_in().by_name(type_name).ok_or_else(|| ApiError::Internal(format!("no type {type_name}")))?;
    let mut budget = Budget::of_body(bytes.len());
    let opened = parse_envelope(bytes, media, &mut budget).map_err(refused);
    budget.check()?;
    let opened = opened?;
    let version = pick(&opened.api_version, "meta.k8s.io/v1");
    GroupVersion::parse_checked(version).map_err(refused)?;
    if !opened.kind.is_empty() && opened.kind != kind {
        return Err(refused(match opened.kind.as_str() {
            "Status" | "WatchEvent" => format!("converting (v1.{}) to (v1.{kind}): unknown conversion", opened.kind),
            other => not_registered(other, version),
        }));
    }
    let raw = match opened.content {
        Content::Raw(raw) => raw,
        Content::Protobuf(inner) => {
            let parsed = protobuf::parse(found, inner, &mut budget).map_err(refused);
            budget.check()?;
            parsed?
        }
    };
    let mut budget = Budget::of_body(bytes.len());
    let converted = typed::convert(found, raw, Form::Sparse, &mut budget).map(|c| c.object).map_err(refused);
    budget.check()?;
    converted
}

/// Decodes the result of a patch; `Err` is Go's message, for the patch's own error. `of_map`: of a strategic patch.
/// Values over the budget are omitted; the caller must check the budget.
pub(crate) fn value(
    object: Value,
    target: &Target<'_>,
    validation: FieldValidation,
    of_map: bool,
    budget: &mut Budget,
) -> Result<Decoded, String> {
    if let Some(schema) = &target.schema.of.unstructured {
        return unstructured::value(object, (&**schema, unstructured::Nulls::Drop), target, validation, budget);
    }
    let convert = if of_map { typed::convert_map } else { typed::convert };
    let converted = convert(target.schema, Raw::from(object), Form::Sparse, budget)?;
    let warnings = report_findings(converted.findings, validation)
        .map_err(|findings| format!("strict decoding error: {}", findings.join(", ")))?;
    Ok(Decoded { object: finish(converted.object, target), warnings })
}

/// Upstream's message for a kind that its scheme doesn't have.
pub(crate) fn not_registered(kind: &str, version: &str) -> String {
    format!(
        "no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
        go_quoted(kind),
        go_quoted(version)
    )
}

/// Converts findings to warnings or to a rejection.
fn report_findings(findings: Vec<String>, validation: FieldValidation) -> Result<Vec<String>, Vec<String>> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(findings),
        FieldValidation::Strict if findings.is_empty() => Ok(findings),
        FieldValidation::Strict => Err(findings),
    }
}

/// 415: upstream accepts no protobuf of types without a message.
fn no_message() -> ApiError {
    let taken = [Media::Json, Media::Yaml].map(|media| MEDIA_TYPES[media as usize].to_owned());
    ApiError::UnsupportedMediaType(taken.into())
}

fn finish(mut object: Value, target: &Target<'_>) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), target.api_version().into());
        map.insert("kind".into(), target.kind.into());
    }
    object
}

enum Content<'a> {
    Raw(Raw),
    Protobuf(&'a [u8]),
}

struct ParsedEnvelope<'a> {
    api_version: String,
    kind: String,
    content: Content<'a>,
    doubled: Vec<String>,
}

/// Reads the body's kind and version.
fn parse_envelope<'a>(bytes: &'a [u8], media: Media, budget: &mut Budget) -> Result<ParsedEnvelope<'a>, String> {
    let (raw, doubled) = match media {
        Media::Protobuf => {
            let envelope = protobuf::envelope(bytes)?;
            let content = Content::Protobuf(envelope.raw);
            return Ok(ParsedEnvelope {
                api_version: envelope.api_version,
                kind: envelope.kind,
                content,
                doubled: Vec::new(),
            });
        }
        Media::Json => {
            (raw::parse(bytes).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))?, Vec::new())
        }
        Media::Yaml => {
            let document = yaml::parse(bytes, budget)?;
            (document.raw, document.doubled)
        }
    };
    let text = |key: &str| match raw.get(key) {
        None | Some(Raw::Null) => Ok(String::new()),
        Some(Raw::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{key} of type string",
            other.go_name()
        )),
    };
    if !matches!(raw, Raw::Map(_) | Raw::Null) {
        return Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct {{ \
             APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            raw.go_name()
        ));
    }
    Ok(ParsedEnvelope { api_version: text("apiVersion")?, kind: text("kind")?, content: Content::Raw(raw), doubled })
}

fn pick<'a>(given: &'a str, otherwise: &'a str) -> &'a str {
    if given.is_empty() { otherwise } else { given }
}

fn defaulted_version(opened: &ParsedEnvelope<'_>, target: &Target<'_>) -> String {
    if opened.api_version.is_empty() || opened.api_version == "/" {
        target.api_version()
    } else {
        opened.api_version.clone()
    }
}

/// Whether upstream's scheme has the kind, also in versions that are no longer served.
fn registered(types: &Types, group: &str, version: &str, kind: &str) -> bool {
    types.of_kind(group, version, kind).is_some()
        || (group, version, kind) == ("", "v1", "List")
        || NO_LONGER_SERVED.iter().any(|(g, v, kinds)| *g == group && *v == version && kinds.contains(&kind))
}

/// Kinds in unserved versions of upstream's scheme.
const NO_LONGER_SERVED: &[(&str, &str, &[&str])] = &[
    ("apps", "v1beta1", &["ControllerRevision", "Deployment", "DeploymentRollback", "Scale", "StatefulSet"]),
    ("apps", "v1beta2", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "Scale", "StatefulSet"]),
    ("authentication.k8s.io", "v1alpha1", &["SelfSubjectReview"]),
    ("authentication.k8s.io", "v1beta1", &["SelfSubjectReview", "TokenReview"]),
    ("authorization.k8s.io", "v1beta1", ACCESS_REVIEWS),
    ("batch", "v1beta1", &["CronJob"]),
    ("coordination.k8s.io", "v1alpha2", &["LeaseCandidate"]),
    ("coordination.k8s.io", "v1beta1", &["Lease", "LeaseCandidate"]),
    ("discovery.k8s.io", "v1beta1", &["EndpointSlice"]),
    ("events.k8s.io", "v1beta1", &["Event"]),
    ("extensions", "v1beta1", EXTENSIONS),
    ("networking.k8s.io", "v1beta1", &["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"]),
    ("node.k8s.io", "v1alpha1", &["RuntimeClass"]),
    ("node.k8s.io", "v1beta1", &["RuntimeClass"]),
    ("policy", "v1beta1", &["Eviction", "PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io", "v1alpha1", RBAC),
    ("rbac.authorization.k8s.io", "v1beta1", RBAC),
    ("scheduling.k8s.io", "v1beta1", &["PriorityClass"]),
];
const ACCESS_REVIEWS: &[&str] =
    &["LocalSubjectAccessReview", "SelfSubjectAccessReview", "SelfSubjectRulesReview", "SubjectAccessReview"];
const EXTENSIONS: &[&str] =
    &["DaemonSet", "Deployment", "DeploymentRollback", "Ingress", "NetworkPolicy", "ReplicaSet", "Scale"];
const RBAC: &[&str] = &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];

/// The head of a body as upstream prints it.
fn summary(bytes: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &bytes[..bytes.len().min(SHOWN)];
    let shown = match bytes.first() {
        None => return "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => hex::encode(head),
    };
    if bytes.len() > SHOWN { format!("{shown} ...") } else { shown }
}

/// An empty JSON object.
#[must_use]
pub fn empty() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    static MAP: LazyLock<Target<'static>> = LazyLock::new(|| Target::kind("", "v1", "ConfigMap").unwrap());
    static DEPLOYMENT: LazyLock<Target<'static>> = LazyLock::new(|| Target::kind("apps", "v1", "Deployment").unwrap());

    fn json_body(text: &str, target: &Target<'_>, validation: FieldValidation) -> Result<Decoded, String> {
        body(text.as_bytes(), Media::Json, target, validation).map_err(|e| e.to_string())
    }

    #[test]
    fn messages_are_upstreams() {
        for (text, target, message) in [
            (
                r#"{"apiVersion": "apps/v1beta2", "kind": "Deployment"}"#,
                *DEPLOYMENT,
                "the API version in the data (apps/v1beta2) does not match the expected API version (apps/v1)",
            ),
            (
                r#"{"apiVersion": "extensions/v1beta1", "kind": "Deployment"}"#,
                *DEPLOYMENT,
                "the API version in the data (extensions/v1beta1) does not match the expected API version (apps/v1)",
            ),
            (
                r#"{"metadata": {"name": 3}}"#,
                *MAP,
                r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string"#,
            ),
            (
                r#"{"metadata": {"name": "a"}"#,
                *MAP,
                r#"the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({"metadata": {"name": "a"})"#,
            ),
            (
                r#"{"metadata": {"nope": 1}, "nope": 2}"#,
                *MAP,
                r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "metadata.nope", unknown field "nope""#,
            ),
        ] {
            assert_eq!(json_body(text, &target, FieldValidation::Strict).unwrap_err(), message);
        }
        let warned = json_body(r#"{"nope": 1}"#, &MAP, FieldValidation::Warn).unwrap();
        assert_eq!(warned.warnings, [r#"unknown field "nope""#]);
        assert_eq!(warned.object, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}));
        assert!(json_body(r#"{"nope": 1}"#, &MAP, FieldValidation::Ignore).unwrap().warnings.is_empty());
    }

    #[test]
    fn kubectls_protobuf_is_read() {
        // metadata {name: "web", labels {app: web}}, spec {replicas: 2, selector, template with one container and a
        // port}
        fn varint(mut n: usize) -> Vec<u8> {
            let mut out = Vec::new();
            while n > 127 {
                out.push(n as u8 | 128);
                n >>= 7;
            }
            out.push(n as u8);
            out
        }
        fn field(number: usize, bytes: &[u8]) -> Vec<u8> {
            [varint(number << 3 | 2), varint(bytes.len()), bytes.to_vec()].concat()
        }
        let labels = field(11, &[field(1, b"app"), field(2, b"web")].concat());
        let metadata = field(1, &[field(1, b"web"), labels.clone()].concat());
        let port = field(6, &[&[3 << 3, 80][..], &field(4, b"TCP")].concat());
        let memory = field(1, &[field(1, b"memory"), field(2, &field(1, b"64Mi"))].concat());
        let config = field(19, &field(1, &field(1, b"cm")));
        let volume = field(1, &[field(1, b"v"), field(2, &config)].concat());
        let container = field(2, &[field(1, b"c"), port, field(8, &memory)].concat());
        let template = field(3, &[field(1, &labels), field(2, &[volume, container].concat())].concat());
        let deployment = [metadata, field(2, &[&[1 << 3, 2][..], &template].concat()), field(3, b"")].concat();
        let envelope = [
            b"k8s\0".to_vec(),
            field(1, &[field(1, b"apps/v1"), field(2, b"Deployment")].concat()),
            field(2, &deployment),
        ]
        .concat();
        let decoded = body(&envelope, Media::Protobuf, &DEPLOYMENT, FieldValidation::Strict).unwrap();
        assert_eq!(
            decoded.object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}}, "status": {},
                "spec": {"replicas": 2, "strategy": {}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                    "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
                    "containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"memory": "64Mi"}}}]}}}})
        );
        for length in 0..envelope.len() {
            let _ = body(&envelope[..length], Media::Protobuf, &DEPLOYMENT, FieldValidation::Strict);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            for media in [Media::Json, Media::Yaml, Media::Protobuf] {
                let _ = body(&bytes, media, &DEPLOYMENT, FieldValidation::Strict);
            }
            let envelope = [&b"k8s\0\x12"[..], &[bytes.len() as u8], &bytes].concat();
            let _ = body(&envelope, Media::Protobuf, &DEPLOYMENT, FieldValidation::Warn);
        }
    }
}
