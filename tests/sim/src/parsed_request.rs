//! Parses requests for the checkers, from path and query, independent of the server's parser.

use apiserver_resources::RESOURCES;
use http::{Method, Uri};

/// A parsed request.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParsedRequest {
    pub(crate) method: String,
    /// Key prefix of its objects: `/registry/pods/`. `None` if it is for no stored kind.
    pub(crate) prefix: Option<String>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    pub(crate) watch: bool,
    query: Vec<(String, String)>,
}

impl ParsedRequest {
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        let query: Vec<(String, String)> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect();
        let mut parsed = Self { method: method.to_string(), query, ..Self::default() };
        parsed.watch = parsed.query("watch") == "true";
        let mut rest: Vec<&str> = uri.path().split('/').skip(1).collect();
        let group = match rest.first() {
            Some(&"api") if rest.len() > 2 => "",
            Some(&"apis") if rest.len() > 3 => rest.remove(1),
            _ => return parsed,
        };
        rest.drain(..2);
        if rest.len() > 2 && rest[0] == "namespaces" && !matches!(rest[2], "status" | "finalize") {
            parsed.namespace = rest[1].to_owned();
            rest.drain(..2);
        }
        let mut rest = rest.into_iter();
        let plural = rest.next().unwrap_or_default();
        parsed.name = rest.next().unwrap_or_default().to_owned();
        parsed.subresource = rest.next().unwrap_or_default().to_owned();
        let row = RESOURCES.iter().find(|row| row.group == group && row.plural == plural);
        parsed.prefix = row.and_then(|row| row.storage.prefix()).map(|prefix| format!("/registry/{prefix}/"));
        parsed
    }

    /// A query parameter; empty if absent.
    pub(crate) fn query(&self, name: &str) -> &str {
        self.query.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The storage prefix of its objects, including the namespace, if any.
    pub(crate) fn below(&self) -> Option<String> {
        let prefix = self.prefix.as_ref()?;
        Some(if self.namespace.is_empty() { prefix.clone() } else { format!("{prefix}{}/", self.namespace) })
    }

    /// The key of the object in its path.
    pub(crate) fn key(&self) -> Option<String> {
        Some(format!("{}{}", self.below()?, self.name)).filter(|_| !self.name.is_empty())
    }

    pub(crate) fn writes(&self) -> bool {
        self.method != "GET"
    }
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = [bytes.next().unwrap_or_default(), bytes.next().unwrap_or_default()];
                let hex = std::str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                out.extend(hex);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
