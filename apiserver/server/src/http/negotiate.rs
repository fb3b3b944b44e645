//! Content negotiation: media type, pretty printing, and Table or PartialObjectMetadata instead of the object.

use machinery_api::ApiError;

use apiserver_resources::query::Query;
use apiserver_schema as schema;

/// The media types of resources, in the order of upstream's messages.
const RESOURCE_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
/// The media types of discovery and errors.
const PLAIN_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The media types of logs.
const TEXT_TYPES: &[&str] =
    &["text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// A media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`: only for clients that accept nothing else. Stored objects are JSON, which
    /// is sent without conversion.
    Protobuf,
}

impl Media {
    /// The `Content-Type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// `meta.k8s.io/v1` or `v1beta1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaVersion {
    /// `v1`
    V1,
    /// `v1beta1`
    V1Beta1,
}

impl MetaVersion {
    /// The `apiVersion`.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// What is sent instead of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// `as=Table`
    Table(MetaVersion),
    /// `as=PartialObjectMetadata`
    Metadata(MetaVersion),
    /// `as=PartialObjectMetadataList`
    MetadataList(MetaVersion),
}

/// The negotiated form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The media type.
    pub media: Media,
    /// Whether JSON is indented.
    pub pretty: bool,
    /// What is sent instead of the object.
    pub transform: Option<Transform>,
}

impl Form {
    /// Compact JSON.
    pub const JSON: Self = Self { media: Media::Json, pretty: false, transform: None };
    /// Indented JSON: upstream's form when negotiation fails.
    pub const PRETTY: Self = Self { media: Media::Json, pretty: true, transform: None };
}

/// One clause of an Accept header.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Clause<'a> {
    pub(super) kind: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

/// The clauses by descending quality, in header order where it is equal.
pub(super) fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut found: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|clause| {
            let mut pieces = clause.split(';').map(str::trim);
            let kind = pieces.next().filter(|k| !k.is_empty())?;
            let params: Vec<(&str, &str)> =
                pieces.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            Some(Clause { kind, params, quality })
        })
        .collect();
    found.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    found
}

/// The set of media types that a route produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Produces {
    /// Objects, and discovery documents.
    Objects,
    /// Lists and watches.
    Lists,
    /// Logs.
    Text,
    /// JSON alone.
    Json,
    /// The JSON Web Key Set.
    KeySet,
}

impl Produces {
    fn types(self) -> &'static [&'static str] {
        match self {
            Self::Objects => PLAIN_TYPES,
            Self::Lists => RESOURCE_TYPES,
            Self::Text => TEXT_TYPES,
            Self::Json => &["application/json"],
            Self::KeySet => &["application/jwk-set+json"],
        }
    }
}

/// The check of Accept in upstream's routing layer (go-restful): a clause must name a produced type or be `*/*`;
/// parameters are ignored.
pub fn route_accepts(accept: Option<&str>, produces: Produces) -> Result<(), ApiError> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return Ok(()) };
    let types = produces.types();
    let known = accept.split(',').any(|clause| {
        let kind = clause.split(';').next().unwrap_or("").trim();
        kind == "*/*" || types.iter().any(|t| t.split(';').next() == Some(kind))
    });
    if known {
        return Ok(());
    }
    Err(ApiError::NotAcceptableRoute(types.iter().map(|kind| (*kind).to_owned()).collect()))
}

/// The forms that a handler offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// PartialObjectMetadata(List) instead of the object.
    pub metadata: bool,
    /// Tables instead of the object.
    pub tables: bool,
    /// A stream of watch events, which is never YAML.
    pub streams: bool,
    /// The object itself in protobuf.
    pub protobuf: bool,
}

impl Offers {
    /// Objects and lists.
    pub const OBJECTS: Self = Self { metadata: true, tables: true, streams: false, protobuf: true };
    /// Virtual objects that have no table.
    pub const NO_TABLES: Self = Self { tables: false, ..Self::OBJECTS };
    /// Errors and discovery: no transformation.
    pub const PLAIN: Self = Self { metadata: false, tables: false, streams: false, protobuf: true };
    /// Watches.
    pub const WATCH: Self = Self { streams: true, ..Self::OBJECTS };
}

/// Negotiates a form.
pub fn negotiate(accept: Option<&str>, query: &Query, agent: &str, offers: Offers) -> Result<Form, ApiError> {
    let accept = accept.map(str::trim).filter(|a| !a.is_empty()).unwrap_or("*/*");
    let mut yaml_refused = false;
    // Protobuf is used only if no clause accepts JSON in the same form.
    let mut last: Option<Form> = None;
    for clause in clauses(accept) {
        let media = match clause.kind {
            "application/json" | "*/*" | "application/*" => Media::Json,
            "application/vnd.kubernetes.protobuf" => Media::Protobuf,
            "application/yaml" if offers.streams => {
                yaml_refused = true;
                continue;
            }
            "application/yaml" => Media::Yaml,
            _ => continue,
        };
        let streams = clause.param("stream").filter(|s| !s.is_empty());
        if streams.is_some_and(|s| s != "watch" || media == Media::Yaml)
            || clause.param("sv").is_some_and(|v| !v.is_empty())
        {
            continue;
        }
        // A group or version without `as` requests a form, too, and no such form exists.
        let transforms = ["as", "g", "v"].iter().any(|name| clause.param(name).is_some());
        let transform = match clause.param("as").or(transforms.then_some("")) {
            None => None,
            Some(_) if !offers.metadata => continue,
            Some(target) => {
                let version = match (clause.param("g"), clause.param("v")) {
                    (Some("meta.k8s.io"), Some("v1")) => MetaVersion::V1,
                    (Some("meta.k8s.io"), Some("v1beta1")) => MetaVersion::V1Beta1,
                    _ => continue,
                };
                match target {
                    "Table" if !offers.tables || media == Media::Protobuf => continue,
                    "Table" => Some(Transform::Table(version)),
                    "PartialObjectMetadata" => Some(Transform::Metadata(version)),
                    "PartialObjectMetadataList" => Some(Transform::MetadataList(version)),
                    _ => continue,
                }
            }
        };
        let pretty = match (query.flag("pretty"), clause.param("pretty")) {
            (Some(given), _) => given,
            (None, Some(given)) => given == "1",
            (None, None) => ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| agent.starts_with(a)),
        };
        let form = Form { media, pretty: pretty && !offers.streams && media != Media::Protobuf, transform };
        if media == Media::Protobuf {
            if offers.protobuf || transform.is_some() {
                last.get_or_insert(form);
            }
        } else if last.is_none_or(|last| last.transform == transform) {
            return Ok(form);
        }
    }
    if let Some(form) = last {
        return Ok(form);
    }
    let types: &[&str] = if yaml_refused { &[RESOURCE_TYPES[3], RESOURCE_TYPES[4]] } else { PLAIN_TYPES };
    Err(ApiError::NotAcceptable(types.iter().map(|t| (*t).to_owned()).collect()))
}

/// Parses the media type of a body (not of a patch).
pub fn body_type(content_type: Option<&str>) -> Result<schema::Media, ApiError> {
    schema::Media::of(content_type.unwrap_or(""))
        .ok_or_else(|| ApiError::UnsupportedMediaType(PLAIN_TYPES.iter().map(|t| (*t).to_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> Result<Form, ApiError> {
        negotiate(Some(accept), &Query::default(), "", Offers::OBJECTS)
    }

    #[test]
    fn tables_and_fallbacks() {
        let table = Some(Transform::Table(MetaVersion::V1));
        assert_eq!(form("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").unwrap().transform, table);
        assert_eq!(form("application/json;as=Nope;v=v1;g=meta.k8s.io,application/json").unwrap(), Form::JSON);
        assert!(form("application/json;as=Table;v=v2;g=meta.k8s.io").is_err());
        assert_eq!(form("application/yaml;q=0.5, application/json;q=0.9").unwrap().media, Media::Json);
        assert_eq!(form("application/vnd.kubernetes.protobuf, */*").unwrap(), Form::JSON);
        let protobuf = Form { media: Media::Protobuf, ..Form::JSON };
        assert_eq!(form("application/vnd.kubernetes.protobuf").unwrap(), protobuf);
        assert_eq!(form("application/vnd.kubernetes.protobuf, application/json;q=0.1").unwrap(), Form::JSON);
        let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let metadata = Some(Transform::Metadata(MetaVersion::V1));
        let partially = Form { transform: metadata, ..protobuf };
        assert_eq!(form(&format!("{partial},application/json")).unwrap(), partially);
        let either = format!("{partial},{},application/json", partial.replace("vnd.kubernetes.protobuf", "json"));
        assert_eq!(form(&either).unwrap(), Form { transform: metadata, ..Form::JSON });
        assert!(form("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1").is_err());
        let custom = Offers { protobuf: false, ..Offers::OBJECTS };
        let of_custom = |accept: &str| negotiate(Some(accept), &Query::default(), "", custom);
        assert!(of_custom("application/vnd.kubernetes.protobuf").is_err());
        assert_eq!(of_custom(partial).unwrap(), partially);
        assert_eq!(of_custom("application/vnd.kubernetes.protobuf,application/json").unwrap(), Form::JSON);
        assert!(form("application/json;v=v1").is_err());
        assert!(form("application/json;AS=Table;v=v1;g=meta.k8s.io").is_err());
        assert!(form("application/json;stream=nope").is_err());
        assert!(form("application/json;stream=watch").is_ok());
        assert!(route_accepts(Some("application/*"), Produces::Objects).is_err());
        assert!(route_accepts(Some("text/html, */*"), Produces::Json).is_ok());
        assert!(route_accepts(Some("application/json"), Produces::KeySet).is_err());
    }

    #[test]
    fn bodies() {
        assert_eq!(body_type(Some("APPLICATION/JSON; charset=utf-8")).unwrap(), schema::Media::Json);
        assert_eq!(body_type(None).unwrap(), schema::Media::Json);
        for refused in ["text/plain", "application/json;a", "application/json;a=b;a=c"] {
            assert_eq!(body_type(Some(refused)).unwrap_err().status().code, 415, "{refused}");
        }
    }
}
