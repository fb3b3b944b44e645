//! The error enum of the whole API, mapped to `metav1.Status` in one function (Kubernetes API conventions, "Response
//! Status Kind"; reasons and codes as k8s.io/apimachinery `api/errors`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::selector::go_quoted;

/// One entry of `Status.details.causes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Human-readable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The field's path, such as `spec.containers[0].name`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `metav1.StatusDetails`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// The object's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource (plural) or the kind, as upstream does for each reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The object's uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The individual errors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// The time after which to retry, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if hands in a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// `metav1.Status`: the response to a failed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Always `Status`.
    pub kind: String,
    /// Always `v1`.
    pub api_version: String,
    /// Always empty here.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// `Success` or `Failure`.
    pub status: String,
    /// Human-readable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Machine-readable reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Machine-readable details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The HTTP status code.
    pub code: u16,
}

/// Names a resource in an error: group and plural (`apps`, `deployments`) or group and kind (`apps`, `Deployment`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupResource {
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource's plural, or its kind where upstream's message has the kind.
    pub kind: String,
}

impl GroupResource {
    /// Group and plural or kind.
    pub fn new(group: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { group: group.into(), kind: kind.into() }
    }

    /// `deployments.apps`, `pods`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
}

/// The failures of a request, by status code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// 400
    BadRequest(String),
    /// 400 with details (for instance the expected kind of a body).
    BadRequestOn(GroupResource, String, String),
    /// 401
    Unauthorized,
    /// 403: resource, name, the sentence after `is forbidden: `.
    Forbidden(GroupResource, String, String),
    /// 403 in a terminating namespace: resource, name, the sentence, the namespace.
    NamespaceTerminating(GroupResource, String, String, String),
    /// 404: resource, name.
    NotFound(GroupResource, String),
    /// 404 with upstream's sentence for a path without a resource.
    NoSuchResource,
    /// 404 with the message of the node.
    NotFoundByNode(String),
    /// 405
    MethodNotAllowed(GroupResource, String),
    /// 406: the supported media types.
    NotAcceptable(Vec<String>),
    /// 406 from the routing layer, before a handler is found.
    NotAcceptableRoute(Vec<String>),
    /// 406 for an object that can't be converted to the requested form: the sentence.
    NotTransformable(String),
    /// 408: the sentence.
    RequestTimeout(String),
    /// 409 `AlreadyExists`: resource, name.
    AlreadyExists(GroupResource, String),
    /// 409 `AlreadyExists` with an object that is being deleted (`deleting`), or for a generated name (`generated`).
    AlreadyExistsNow {
        /// Resource.
        of: GroupResource,
        /// Name.
        name: String,
        /// Whether the existing object is being deleted.
        deleting: bool,
        /// Whether the request had a `generateName`.
        generated: bool,
    },
    /// 409 `Conflict`: resource, name, the sentence.
    Conflict(GroupResource, String, String),
    /// 409 `Conflict` of an apply with other field managers: the causes, the sentence.
    ApplyConflict(Vec<Cause>, String),
    /// 410 `Expired`: the sentence.
    Expired(String),
    /// 410 for a page of an expired list: the token that continues at the newest version.
    ExpiredPage(String),
    /// 413
    TooLarge(String),
    /// 415: the supported media types.
    UnsupportedMediaType(Vec<String>),
    /// 415 for an unsupported patch type.
    UnsupportedPatchType,
    /// 422: group and KIND, name, causes.
    Invalid(GroupResource, String, Vec<Cause>),
    /// 422 without details.
    Unprocessable,
    /// 429: sentence, retry delay in seconds.
    TooManyRequests(String, u32),
    /// 429: sentence, retry delay in seconds, causes.
    TooManyRequestsBecause(String, u32, Vec<Cause>),
    /// 500: the sentence; for internal errors only.
    Internal(String),
    /// 500 without a reason, upstream's response if its store has no space: the store's message.
    StoreFull(String),
    /// 503: the sentence.
    ServiceUnavailable(String),
    /// 504 `Timeout`: sentence, retry delay in seconds, causes.
    Timeout(String, u32, Vec<Cause>),
    /// A status from elsewhere (a webhook, a policy), passed on.
    ForwardedStatus(Box<Status>),
}

impl Status {
    /// A failure with no details.
    #[must_use]
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: serde_json::Map::new(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    /// A success without a message.
    #[must_use]
    pub fn success(code: u16, details: Option<Details>) -> Self {
        Self { status: "Success".into(), details, ..Self::failure(code, "", "") }
    }

    /// Adds details.
    fn with(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }
}

impl ApiError {
    /// 504 of a request that exceeded its own timeout.
    #[must_use]
    pub fn request_timed_out() -> Self {
        Self::Timeout("Timeout: request did not complete within the allotted timeout".into(), 0, Vec::new())
    }

    /// The only conversion of an error to its wire form.
    #[must_use]
    pub fn status(&self) -> Status {
        let on = |named: &GroupResource, name: &str| Details {
            name: name.into(),
            group: named.group.clone(),
            kind: named.kind.clone(),
            ..Details::default()
        };
        match self {
            Self::ForwardedStatus(status) => (**status).clone(),
            Self::BadRequest(message) => Status::failure(400, "BadRequest", message),
            Self::BadRequestOn(named, name, message) => {
                Status::failure(400, "BadRequest", message).with(on(named, name))
            }
            Self::Unauthorized => Status::failure(401, "Unauthorized", "Unauthorized"),
            Self::Forbidden(named, name, why) => {
                let what = if named.kind.is_empty() {
                    format!("forbidden: {why}")
                } else {
                    format!("{} {} is forbidden: {why}", named.qualified(), go_quoted(name))
                };
                let what = if name.is_empty() { what.replacen(" \"\"", "", 1) } else { what };
                Status::failure(403, "Forbidden", what).with(on(named, name))
            }
            Self::NamespaceTerminating(named, name, why, namespace) => {
                let mut status = Self::Forbidden(named.clone(), name.clone(), why.clone()).status();
                status.details.get_or_insert_default().causes.push(Cause {
                    reason: "NamespaceTerminating".into(),
                    message: format!("namespace {namespace} is being terminated"),
                    field: "metadata.namespace".into(),
                });
                status
            }
            Self::NotFound(named, name) => {
                Status::failure(404, "NotFound", format!("{} {} not found", named.qualified(), go_quoted(name)))
                    .with(on(named, name))
            }
            Self::NoSuchResource => {
                Status::failure(404, "NotFound", "the server could not find the requested resource")
                    .with(Details::default())
            }
            Self::NotFoundByNode(message) => Status::failure(404, "NotFound", message),
            Self::MethodNotAllowed(named, message) => {
                Status::failure(405, "MethodNotAllowed", message).with(on(named, ""))
            }
            Self::NotAcceptable(types) => Status::failure(
                406,
                "NotAcceptable",
                format!("only the following media types are accepted: {}", types.join(", ")),
            ),
            Self::NotAcceptableRoute(types) => {
                let message = format!("406: Not Acceptable\n\nAvailable representations: {}", types.join(", "));
                Status::failure(406, "NotAcceptable", message).with(Details::default())
            }
            Self::NotTransformable(message) => Status::failure(406, "NotAcceptable", message),
            Self::RequestTimeout(message) => Status::failure(408, "Timeout", message),
            Self::AlreadyExistsNow { of, name, deleting, generated } => {
                already_exists_now(of, name, *deleting, *generated)
            }
            Self::AlreadyExists(named, name) => Status::failure(
                409,
                "AlreadyExists",
                format!("{} {} already exists", named.qualified(), go_quoted(name)),
            )
            .with(on(named, name)),
            Self::Conflict(named, name, why) => Status::failure(
                409,
                "Conflict",
                format!("Operation cannot be fulfilled on {} {}: {why}", named.qualified(), go_quoted(name)),
            )
            .with(on(named, name)),
            Self::ApplyConflict(causes, message) => {
                Status::failure(409, "Conflict", message).with(Details { causes: causes.clone(), ..Details::default() })
            }
            Self::Expired(message) => Status::failure(410, "Expired", message),
            Self::ExpiredPage(token) => {
                let mut status = Status::failure(410, "Expired", EXPIRED_PAGE);
                status.metadata.insert("continue".into(), token.clone().into());
                status
            }
            Self::TooLarge(message) => Status::failure(413, "RequestEntityTooLarge", message),
            Self::UnsupportedMediaType(types) => Status::failure(
                415,
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format - accepted media types include: {}",
                    types.join(", ")
                ),
            ),
            Self::UnsupportedPatchType => {
                Status::failure(415, "UnsupportedMediaType", "415: Unsupported Media Type").with(Details::default())
            }
            Self::Unprocessable => {
                let message = "the server rejected our request due to an error in our request";
                Status::failure(422, "Invalid", message).with(Details::default())
            }
            Self::Invalid(named, name, causes) => {
                let what = format!("{} {}", named.qualified(), go_quoted(name));
                let what = match causes.as_slice() {
                    [] => format!("{what} is invalid"),
                    [one] => format!("{what} is invalid: {}: {}", one.field, one.message),
                    many => {
                        // As upstream's error list: equal sentences once, in order.
                        let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
                        let new = many.iter().filter(|cause| seen.insert((&cause.field, &cause.message)));
                        let sentences: Vec<String> = new
                            .map(|cause| match (&*cause.reason, &*cause.field) {
                                // The number of omitted causes.
                                ("", "") => cause.message.clone(),
                                (_, field) => format!("{field}: {}", cause.message),
                            })
                            .collect();
                        let list = sentences.join(", ");
                        let list = if sentences.len() == 1 { list } else { format!("[{list}]") };
                        format!("{what} is invalid: {list}")
                    }
                };
                let details = Details { causes: causes.clone(), ..on(named, name) };
                Status::failure(422, "Invalid", what).with(details)
            }
            Self::TooManyRequestsBecause(message, seconds, causes) => Status::failure(429, "TooManyRequests", message)
                .with(Details { retry_after_seconds: *seconds, causes: causes.clone(), ..Details::default() }),
            Self::TooManyRequests(message, seconds) => Status::failure(429, "TooManyRequests", message)
                .with(Details { retry_after_seconds: *seconds, ..Details::default() }),
            Self::Internal(message) => {
                Status::failure(500, "InternalError", format!("Internal error occurred: {message}")).with(Details {
                    causes: vec![Cause { message: message.clone(), ..Cause::default() }],
                    ..Details::default()
                })
            }
            Self::StoreFull(message) => Status::failure(500, "", message),
            Self::ServiceUnavailable(message) => Status::failure(503, "ServiceUnavailable", message),
            Self::Timeout(message, seconds, causes) => Status::failure(504, "Timeout", message).with(Details {
                retry_after_seconds: *seconds,
                causes: causes.clone(),
                ..Details::default()
            }),
        }
    }
}

fn already_exists_now(of: &GroupResource, name: &str, deleting: bool, generated: bool) -> Status {
    let mut status = ApiError::AlreadyExists(of.clone(), name.to_owned()).status();
    if generated {
        status.message.push_str(", the server was not able to generate a unique name for the object");
        status.details.get_or_insert_default().retry_after_seconds = 1;
    }
    if deleting {
        status.message.insert_str(0, "object is being deleted: ");
    }
    status
}

/// Upstream's message for a page that can't be continued.
const EXPIRED_PAGE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a \
    new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
    results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
    deleted between the time the first chunk was returned and now may show up in the list.";

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.status().message)
    }
}

impl std::error::Error for ApiError {}

/// The result of a request.
pub type ApiResult<T> = Result<T, ApiError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_lists_its_causes() {
        let cause = |field: &str, message: &str| Cause {
            reason: "FieldValueRequired".into(),
            message: message.into(),
            field: field.into(),
        };
        let error = ApiError::Invalid(
            GroupResource::new("apps", "Deployment"),
            "web".into(),
            vec![cause("a", "Required value"), cause("b", "Required value")],
        );
        assert_eq!(
            error.status().message,
            "Deployment.apps \"web\" is invalid: [a: Required value, b: Required value]"
        );
        assert_eq!(error.status().code, 422);
    }
}
