//! The media type of a body, parsed as Go's `mime.ParseMediaType`.

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// Supported media types of bodies, in upstream's order, for a 415.
pub const MEDIA_TYPES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl Media {
    /// From a `Content-Type` header; absent or empty is JSON. `None`: 415 with [`MEDIA_TYPES`].
    #[must_use]
    pub fn of(content_type: &str) -> Option<Self> {
        if content_type.is_empty() {
            return Some(Self::Json);
        }
        let (essence, parameters) = content_type.split_at(content_type.find(';').unwrap_or(content_type.len()));
        let media = match essence.trim().to_ascii_lowercase().as_str() {
            "application/json" => Self::Json,
            "application/yaml" => Self::Yaml,
            "application/vnd.kubernetes.protobuf" => Self::Protobuf,
            _ => return None,
        };
        are_parameters(parameters).then_some(media)
    }
}

/// Whether the rest after a media type consists of parameters; a trailing semicolon is allowed.
fn are_parameters(text: &str) -> bool {
    let mut rest = text.trim_start();
    let mut seen: Vec<(String, String)> = Vec::new();
    while !rest.is_empty() {
        let Some((name, value, more)) = parameter(rest) else { return rest.trim() == ";" };
        // A repeated name is allowed only with the same value.
        if seen.iter().any(|(n, v)| *n == name && *v != value) {
            return false;
        }
        seen.push((name, value));
        rest = more.trim_start();
    }
    true
}

/// Splits `;name=value` off the beginning of `text`.
fn parameter(text: &str) -> Option<(String, String, &str)> {
    let (name, rest) = token(text.strip_prefix(';')?.trim_start())?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let (value, rest) = match rest.strip_prefix('"') {
        Some(inside) => quoted(inside)?,
        None => token(rest).map(|(value, rest)| (value.to_owned(), rest))?,
    };
    Some((name.to_ascii_lowercase(), value, rest))
}

fn token(text: &str) -> Option<(&str, &str)> {
    let ends = |c: char| !c.is_ascii_graphic() || is_special(c);
    let (token, rest) = text.split_at(text.find(ends).unwrap_or(text.len()));
    (!token.is_empty()).then_some((token, rest))
}

/// Splits a quoted string at its closing quote. A backslash escapes only characters that need it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next_if(|(_, next)| is_special(*next)).map_or(c, |(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    None
}

/// Characters that are not allowed in a token (RFC 2045's `tspecials`).
fn is_special(c: char) -> bool {
    r#"()<>@,;:\"/[]?="#.contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the results of `mime.ParseMediaType` of Go 1.26.
    #[test]
    fn parameters_are_parameters() {
        for taken in [
            "",
            "application/json",
            "APPLICATION/JSON ; Charset=utf-8",
            "application/json;",
            "application/json; ",
            "application/json;a=b;",
            "application/json;a=b;A=b",
            "application/json;a=\"b;\\\"c\"",
            "application/json;a=\"\\b\" ; c = d",
            "application/json;a=\"\"",
            "application/json;a*=utf-8''b",
        ] {
            assert_eq!(Media::of(taken), Some(Media::Json), "{taken}");
        }
        for refused in [
            ";",
            ";charset=utf-8",
            "text/plain",
            "application/json;a",
            "application/json;=b",
            "application/json;a=",
            "application/json;a=b c",
            "application/json;a=\"b",
            "application/json;a=b;a=c",
            "application/json;;",
            "application/json;a=b, application/yaml",
        ] {
            assert_eq!(Media::of(refused), None, "{refused}");
        }
        assert_eq!(Media::of("application/vnd.kubernetes.protobuf;type=x"), Some(Media::Protobuf));
    }
}
