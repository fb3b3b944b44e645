//! The query of a request, parsed like Go's `net/url`: invalid pairs are dropped, `+` is a blank.
//!
//! Each request parses one, so the functions are compiled where they are used, with that crate's optimization.

use machinery_api::selector::go_quoted;
use percent_encoding::percent_decode_str;

/// The pairs of a query in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=b&c`.
    #[must_use]
    #[inline]
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')).filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        });
        Self(pairs.collect())
    }

    /// The first value of a key.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of a key.
    #[inline]
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value as text; empty if absent.
    #[must_use]
    #[inline]
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or("")
    }

    /// Converts like upstream: every value but `false` and `0` is true.
    #[must_use]
    #[inline]
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|v| !(v.eq_ignore_ascii_case("false") || v == "0"))
    }

    /// An integer, or upstream's error message.
    #[inline]
    pub fn integer(&self, key: &str) -> Result<Option<i64>, String> {
        self.get(key).map(parse_integer).transpose()
    }
}

/// Parses like Go's `strconv.ParseInt(text, 10, 64)`.
#[inline]
pub fn parse_integer(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("strconv.ParseInt: parsing {}: invalid syntax", go_quoted(text)));
    }
    text.parse().map_err(|_| format!("strconv.ParseInt: parsing {}: value out of range", go_quoted(text)))
}

#[inline]
fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let broken = bytes.iter().enumerate().any(|(i, b)| {
        *b == b'%' && !(i + 2 < bytes.len() && bytes[i + 1].is_ascii_hexdigit() && bytes[i + 2].is_ascii_hexdigit())
    });
    if broken {
        return None;
    }
    let blanks = text.replace('+', " ");
    Some(percent_decode_str(&blanks).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_go_does() {
        let query = Query::parse("a=1&b=x+y%2Cz&a=2&broken=%2&watch&semi;colon=1&last=%41");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.text("b"), "x y,z");
        assert_eq!(query.get("broken"), None);
        assert_eq!(query.flag("watch"), Some(true));
        assert_eq!(query.text("last"), "A");
        assert_eq!(
            Query::parse("limit=abc").integer("limit").unwrap_err(),
            "strconv.ParseInt: parsing \"abc\": invalid syntax"
        );
    }
}
