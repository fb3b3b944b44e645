//! Rules of addresses that several groups share: Services, EndpointSlices, pods.

use std::net::IpAddr;

use ipnet::Ipv4Net;

use crate::field::{ErrorList, Path};
use crate::rules;

/// An endpoint's address: no loopback or link-local address, except the cluster's own blocks inside 127.0.0.0/8.
pub(crate) fn endpoint_ip(errors: &mut ErrorList, value: &str, loopback: &[Ipv4Net], path: &Path<'_>) {
    let Some(ip) = rules::parse_ip_leniently(value) else {
        return errors.invalid(path, value, "must be a valid IP address");
    };
    let own = matches!(ip, IpAddr::V4(v4) if loopback.iter().any(|block| block.contains(&v4)));
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(path, value, &format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() && !own {
        errors.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        errors.invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Warns about a valid address that isn't in canonical form.
pub(crate) fn canonical_ip_warning(path: &Path<'_>, value: &str) -> Option<String> {
    let ip = rules::parse_ip_leniently(value)?;
    match value.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => (v6.to_string() != value)
            .then(|| format!("{path}: IPv6 address \"{value}\" should be in RFC 5952 canonical format (\"{v6}\")")),
        Ok(IpAddr::V4(_)) => None,
        _ => Some(format!("{path}: non-standard IP address \"{value}\" is invalid: use \"{ip}\"")),
    }
}
