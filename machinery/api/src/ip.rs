//! Parses IP addresses as Go's lenient parser, for fields that upstream reads this way: leading zeros are accepted.

use std::net::IpAddr;

/// Parses an address as Go's lenient parser: leading zeros in IPv4 octets are allowed, zones are not, and an
/// IPv4-mapped IPv6 address is the IPv4 address.
#[must_use]
pub fn leniently(value: &str) -> Option<IpAddr> {
    if let Ok(ip) = value.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let octets: Vec<&str> = value.split('.').collect();
    if octets.len() != 4 || octets.iter().any(|o| o.is_empty() || !o.bytes().all(|b| b.is_ascii_digit())) {
        return None;
    }
    let mut out = [0u8; 4];
    for (slot, octet) in out.iter_mut().zip(&octets) {
        let digits = octet.trim_start_matches('0');
        *slot = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    Some(IpAddr::from(out))
}

#[cfg(test)]
mod tests {
    use super::leniently;

    #[test]
    fn old_and_mapped_forms_are_taken() {
        for (text, ip) in [
            ("10.9.8.7", Some("10.9.8.7")),
            ("010.009.8.7", Some("10.9.8.7")),
            ("::ffff:10.9.8.7", Some("10.9.8.7")),
            ("FD00::1", Some("fd00::1")),
            ("fe80::1%eth0", None),
            ("10.9.8", None),
            ("10.9.8.256", None),
            ("10.9.8.+7", None),
            ("", None),
        ] {
            assert_eq!(leniently(text).map(|ip| ip.to_string()).as_deref(), ip, "{text}");
        }
    }
}
