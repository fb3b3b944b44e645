//! Syntax rules of names, labels, keys, ports and addresses, with upstream's messages.

use std::net::IpAddr;
use std::sync::LazyLock;

use machinery_api::error::{ApiError, ApiResult};
use machinery_api::selector::go_quoted;
use regex::Regex;

/// The syntax of `metadata.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: services.
    Label1035,
    /// As `Subdomain`, but `generateName` is any path segment: kinds whose names upstream validates declaratively.
    GeneratedSubdomain,
    /// Any path segment.
    PathSegment,
    /// As `PathSegment`, with `generateName` checked as a full name: RBAC kinds.
    WholeSegment,
    /// An IP address in canonical form: IPAddresses.
    IpAddress,
}

impl NameRule {
    /// The errors of `name`, which is a `generateName` if `prefix` is set.
    #[must_use]
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        match self {
            Self::PathSegment => return path_segment(name, prefix),
            Self::WholeSegment => return path_segment(name, false),
            Self::GeneratedSubdomain if prefix => return path_segment(name, true),
            Self::IpAddress => return ip_strictly(name),
            _ => {}
        }
        let masked = if prefix { mask_trailing_dash(name) } else { name.to_owned() };
        match self {
            Self::GeneratedSubdomain => subdomain_in(&masked, "bytes"),
            Self::Subdomain | Self::PathSegment | Self::WholeSegment | Self::IpAddress => dns_subdomain(&masked),
            Self::Label => dns_label(&masked),
            Self::Label1035 => dns_1035_label(&masked),
        }
    }
}

/// A prefix may end with a dash, since a suffix follows.
fn mask_trailing_dash(name: &str) -> String {
    let Some(kept) = name.strip_suffix('-') else { return name.to_owned() };
    match kept.char_indices().last().filter(|(_, c)| c.is_ascii()).map(|(at, _)| &kept[..at]) {
        Some(kept) => format!("{kept}a"),
        None => name.to_owned(),
    }
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const KEY_NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY: &str = "[-._a-zA-Z0-9]+";
const C_IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";
const HTTP_HEADER: &str = "[-A-Za-z0-9]+";
const PERCENT: &str = "[0-9]+%";
const UNDERSCORED_SUBDOMAIN: &str = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
pub(super) const LABEL_BYTES_MAX: usize = 63;
const SUBDOMAIN_BYTES_MAX: usize = 253;
const PORT_NAME_BYTES_MAX: usize = 15;

macro_rules! whole {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(&format!("^(?:{})$", $pattern)).expect("the pattern is a constant"));
    };
}
whole!(IS_LABEL, LABEL);
whole!(IS_SUBDOMAIN, SUBDOMAIN);
whole!(IS_LABEL_1035, LABEL_1035);
whole!(IS_KEY_NAME, KEY_NAME);
whole!(IS_LABEL_VALUE, LABEL_VALUE);
whole!(IS_CONFIG_KEY, CONFIG_KEY);
whole!(IS_C_IDENTIFIER, C_IDENTIFIER);
whole!(IS_HTTP_HEADER, HTTP_HEADER);
whole!(IS_PERCENT, PERCENT);
whole!(IS_UNDERSCORED_SUBDOMAIN, UNDERSCORED_SUBDOMAIN);

/// A message with the pattern and examples.
#[must_use]
pub fn regex_sentence(what: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{what} (regex used for validation is '{pattern}')");
    }
    let list: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{pattern}')", list.join(" or "))
}

fn longer(value: &str, max: usize, unit: &str, found: &mut Vec<String>) {
    if value.len() > max {
        found.push(format!("must be no more than {max} {unit}"));
    }
}

/// RFC 1123 label.
#[must_use]
pub fn dns_label(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, LABEL_BYTES_MAX, "characters", &mut found);
    if !IS_LABEL.is_match(value) {
        found.push(if IS_SUBDOMAIN.is_match(value) {
            "must not contain dots".into()
        } else {
            let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            regex_sentence(what, LABEL, &["my-name", "123-abc"])
        });
    }
    found
}

fn subdomain_in(value: &str, unit: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, SUBDOMAIN_BYTES_MAX, unit, &mut found);
    if !IS_SUBDOMAIN.is_match(value) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        found.push(regex_sentence(what, SUBDOMAIN, &["example.com"]));
    }
    found
}

/// RFC 1123 subdomain.
#[must_use]
pub fn dns_subdomain(value: &str) -> Vec<String> {
    subdomain_in(value, "characters")
}

/// A wildcard with a subdomain (`*.example.com`).
#[must_use]
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, SUBDOMAIN_BYTES_MAX, "characters", &mut found);
    if !value.strip_prefix("*.").is_some_and(|rest| IS_SUBDOMAIN.is_match(rest)) {
        let what = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        found.push(regex_sentence(what, &format!(r"\*\.{SUBDOMAIN}"), &["*.example.com"]));
    }
    found
}

/// RFC 1123 subdomain whose labels may have underscores (DNS search paths).
#[must_use]
pub fn dns_subdomain_with_underscore(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, SUBDOMAIN_BYTES_MAX, "characters", &mut found);
    if !IS_UNDERSCORED_SUBDOMAIN.is_match(value) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        found.push(regex_sentence(what, UNDERSCORED_SUBDOMAIN, &["example.com"]));
    }
    found
}

/// RFC 1035 label.
#[must_use]
pub fn dns_1035_label(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, LABEL_BYTES_MAX, "characters", &mut found);
    if !IS_LABEL_1035.is_match(value) {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        found.push(regex_sentence(what, LABEL_1035, &["my-name", "abc-123"]));
    }
    found
}

/// A path segment of a URL; a `prefix` may also be `.` or `..`.
#[must_use]
pub fn path_segment(value: &str, prefix: bool) -> Vec<String> {
    if !prefix && (value == "." || value == "..") {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"].iter().filter(|bad| value.contains(**bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

/// Rejects a name that can't be a path segment.
pub fn check_segment(name: &str) -> ApiResult<()> {
    let wrong = path_segment(name, false);
    if wrong.is_empty() {
        return Ok(());
    }
    Err(ApiError::BadRequest(format!("Name parameter invalid: {}: {}", go_quoted(name), wrong.join(";"))))
}

/// A label's key, a "qualified name" in upstream.
#[must_use]
pub fn label_key(value: &str) -> Vec<String> {
    let what = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let sentence = || regex_sentence(what, KEY_NAME, &["MyName", "my.name", "123-abc"]);
    let mut found = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                found.push("prefix part must be non-empty".into());
            } else {
                found.extend(subdomain_in(prefix, "bytes").into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {} {tail}", sentence())];
        }
    };
    if name.is_empty() {
        found.push("name part must be non-empty".into());
    } else if name.len() > LABEL_BYTES_MAX {
        found.push(format!("name part must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !IS_KEY_NAME.is_match(name) {
        found.push(format!("name part {}", sentence()));
    }
    found
}

/// A label's value.
#[must_use]
pub fn label_value(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, LABEL_BYTES_MAX, "bytes", &mut found);
    if !IS_LABEL_VALUE.is_match(value) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        found.push(regex_sentence(what, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    found
}

/// A key of a ConfigMap or Secret.
#[must_use]
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, SUBDOMAIN_BYTES_MAX, "characters", &mut found);
    if !IS_CONFIG_KEY.is_match(value) {
        let what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        found.push(regex_sentence(what, CONFIG_KEY, &["key.name", "KEY_NAME", "key-name"]));
    }
    if value == "." || value == ".." {
        found.push(format!("must not be '{value}'"));
    } else if value.starts_with("..") {
        found.push("must not start with '..'".into());
    }
    found
}

/// An environment variable's name, as relaxed since Kubernetes 1.32.
#[must_use]
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    if value.is_empty() {
        found.push("environment variable name must be non-empty".into());
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        found.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        );
    }
    found
}

/// A C identifier.
#[must_use]
pub fn c_identifier(value: &str) -> Vec<String> {
    if IS_C_IDENTIFIER.is_match(value) {
        return Vec::new();
    }
    let what = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_sentence(what, C_IDENTIFIER, &["my_name", "MY_NAME", "MyName"])]
}

/// The name of an HTTP header.
#[must_use]
pub fn http_header_name(value: &str) -> Vec<String> {
    if IS_HTTP_HEADER.is_match(value) {
        return Vec::new();
    }
    let what = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_sentence(what, HTTP_HEADER, &["X-Header-Name"])]
}

/// A percentage such as `25%`.
#[must_use]
pub fn percent(value: &str) -> Vec<String> {
    if IS_PERCENT.is_match(value) {
        return Vec::new();
    }
    let what = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_sentence(what, PERCENT, &["1%", "93%"])]
}

/// A port's number.
#[must_use]
pub fn port_number(value: i64) -> Vec<String> {
    in_range(value, 1, 65535)
}

/// A number with both bounds.
#[must_use]
pub fn in_range(value: i64, min: i64, max: i64) -> Vec<String> {
    if (min..=max).contains(&value) {
        return Vec::new();
    }
    vec![format!("must be between {min} and {max}, inclusive")]
}

/// A port's name (IANA service name).
#[must_use]
pub fn port_name(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    longer(value, PORT_NAME_BYTES_MAX, "characters", &mut found);
    if value.is_empty() || !value.bytes().all(|b| b == b'-' || b.is_ascii_lowercase() || b.is_ascii_digit()) {
        found.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        found.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        found.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        found.push("must not begin or end with a hyphen".into());
    }
    found
}

/// Upstream's message for an invalid IP address.
pub const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

pub use machinery_api::ip::leniently as parse_ip_leniently;

/// An IP address in a field of early Kubernetes (`strict`: no leading zeros, no mapped form).
#[must_use]
pub fn ip_in_old_field(value: &str, strict: bool) -> Vec<String> {
    if parse_ip_leniently(value).is_none() {
        return vec![NOT_AN_IP.into()];
    }
    if !strict {
        return Vec::new();
    }
    match value.parse::<IpAddr>() {
        Err(_) => vec!["must not have leading 0s".into()],
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".into()]
        }
        Ok(_) => Vec::new(),
    }
}

/// An IP address in a newer field: strict, and in canonical form.
#[must_use]
pub fn ip_strictly(value: &str) -> Vec<String> {
    let found = ip_in_old_field(value, true);
    if !found.is_empty() {
        return found;
    }
    match value.parse::<IpAddr>() {
        Ok(ip) if ip.to_string() != value => vec![format!("must be in canonical form (\"{ip}\")")],
        _ => Vec::new(),
    }
}

/// Upstream's message for an invalid CIDR.
pub const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// A CIDR by Go's lenient parser: the address as written and the prefix length.
pub fn parse_cidr_leniently(value: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = value.split_once('/')?;
    let (parsed, digits) = (parse_ip_leniently(ip)?, bits.bytes().all(|b| b.is_ascii_digit()));
    let bits: u8 = bits.parse().ok().filter(|_| digits)?;
    let most = if ip.contains(':') { 128 } else { 32 };
    if bits > most {
        return None;
    }
    // The prefix length of an IPv4-mapped address counts from the start of the IPv6 form.
    let bits = if ip.contains(':') && parsed.is_ipv4() { bits.checked_sub(96)? } else { bits };
    Some((parsed, bits))
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ipnet::IpNet::new(ip, bits) {
        Ok(net) => net.network(),
        Err(_) => ip,
    }
}

/// A CIDR in a field of early Kubernetes.
#[must_use]
pub fn cidr_in_old_field(value: &str) -> Vec<String> {
    let Some((ip, bits)) = parse_cidr_leniently(value) else { return vec![NOT_A_CIDR.into()] };
    let (written, length) = value.split_once('/').unwrap_or((value, ""));
    let strict = written.parse::<IpAddr>().is_ok() && (length == "0" || !length.starts_with('0'));
    if !strict {
        return vec!["must not have leading 0s in IP or prefix length".into()];
    }
    if written.contains(':') && ip.is_ipv4() {
        return vec!["must not have an IPv4-mapped IPv6 address".into()];
    }
    if masked(ip, bits) != ip {
        return vec!["must not have bits set beyond the prefix length".into()];
    }
    Vec::new()
}

/// The network of a CIDR, without host bits.
#[must_use]
pub fn cidr_block(value: &str) -> Option<ipnet::IpNet> {
    let (ip, bits) = parse_cidr_leniently(value)?;
    ipnet::IpNet::new(ip, bits).ok().map(|net| net.trunc())
}

/// A CIDR in a newer field: strict, and in canonical form.
#[must_use]
pub fn cidr_strictly(value: &str) -> Vec<String> {
    let found = cidr_in_old_field(value);
    if !found.is_empty() {
        return found;
    }
    match cidr_block(value).map(|net| net.to_string()) {
        Some(canonical) if canonical != value => vec![format!("must be in canonical form (\"{canonical}\")")],
        _ => Vec::new(),
    }
}

/// An interface's address: an address with a prefix length.
#[must_use]
pub fn interface_address(value: &str) -> Vec<String> {
    let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
    match value.parse::<ipnet::IpNet>() {
        Ok(net) if matches!(net.addr(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) => vec![why.into()],
        Ok(net) if net.to_string() != value => vec![format!("must be in canonical form (\"{net}\")")],
        Ok(_) => Vec::new(),
        Err(_) => vec![why.into()],
    }
}

/// Upstream's warnings about a valid CIDR that isn't in canonical form.
#[must_use]
pub fn canonical_cidr_warning(value: &str) -> Vec<String> {
    let Some((ip, bits)) = parse_cidr_leniently(value) else { return Vec::new() };
    let net = format!("{}/{bits}", masked(ip, bits));
    let (written, length) = value.split_once('/').unwrap_or((value, ""));
    let mut found = Vec::new();
    if masked(ip, bits) != ip {
        let all = if ip.is_ipv4() { 32 } else { 128 };
        found.push(format!(
            "CIDR value \"{value}\" is ambiguous in this context (should be \"{net}\" or \"{ip}/{all}\"?)"
        ));
    }
    let strict = written.parse::<IpAddr>().is_ok() && (length == "0" || !length.starts_with('0'));
    if !strict || (written.contains(':') && ip.is_ipv4()) {
        found.push(format!("non-standard CIDR value \"{value}\" is invalid: use \"{net}\""));
    }
    let canonical = format!("{ip}/{bits}");
    if found.is_empty() && ip.is_ipv6() && canonical != value {
        found.push(format!("IPv6 CIDR value \"{value}\" should be in RFC 5952 canonical format (\"{canonical}\")"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(dns_label("a-1").is_empty());
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert!(NameRule::Subdomain.check("web-", true).is_empty());
        assert_eq!(NameRule::Subdomain.check("web-", false).len(), 1);
        assert!(NameRule::PathSegment.check("system:x", false).is_empty());
        assert_eq!(path_segment("a/b%", false), ["may not contain '/'", "may not contain '%'"]);
        assert_eq!(path_segment("..", false), ["may not be '..'"]);
        assert!(label_key("example.com/MyName").is_empty());
        assert_eq!(label_key("/x"), ["prefix part must be non-empty"]);
        assert_eq!(label_key("x/").len(), 2);
        assert!(label_value("").is_empty());
        assert_eq!(label_value(&"x".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(
            port_name("A--"),
            [
                "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                "must contain at least one letter (a-z)",
                "must not contain consecutive hyphens",
                "must not begin or end with a hyphen",
            ]
        );
        assert_eq!(ip_in_old_field("010.1.1.1", true), ["must not have leading 0s"]);
        assert_eq!(ip_strictly("FE80::1"), ["must be in canonical form (\"fe80::1\")"]);
        // A dash after a multi-byte character must not split it.
        assert_eq!(NameRule::Label.check("é-", true).len(), 1);
    }
}
