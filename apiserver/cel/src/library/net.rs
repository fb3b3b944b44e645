//! URL, IP and CIDR functions. Addresses are strict: no zones and no IPv4-mapped IPv6.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Cidr, Key, Map, Opaque, Res, Text, Url, Value};

pub(super) fn find(function: &str, id: &str) -> Option<Implementation> {
    Some(match function {
        "url" => |call| match Url::parse(call.text(0)?) {
            Ok(url) => Ok(Value::opaque(Opaque::Url(url))),
            Err(error) => Err(EvalError::new(format!("URL parse error during conversion from string: {error}"))),
        },
        "isURL" => |call| Ok(Value::Bool(Url::parse(call.text(0)?).is_ok())),
        "getScheme" | "getHost" | "getHostname" | "getPort" | "getEscapedPath" => part,
        "getQuery" => query,
        "ip" if id == "cidr_ip" => |call| Ok(Value::opaque(Opaque::Ip(cidr(call, 0)?.address))),
        "ip" => |call| parse_ip(call.text(0)?).map(|address| Value::opaque(Opaque::Ip(address))),
        "isIP" => |call| Ok(Value::Bool(parse_ip(call.text(0)?).is_ok())),
        "ip.isCanonical" => |call| {
            let address = parse_ip(call.text(0)?)?;
            Ok(Value::Bool(address.to_string() == call.text(0)?))
        },
        "family" => |call| Ok(Value::Int(if address(call, 0)?.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => |call| Ok(Value::Bool(address(call, 0)?.is_unspecified())),
        "isLoopback" => |call| Ok(Value::Bool(address(call, 0)?.is_loopback())),
        "isLinkLocalMulticast" => |call| {
            Ok(Value::Bool(match address(call, 0)? {
                IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
                IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
            }))
        },
        "isLinkLocalUnicast" => |call| Ok(Value::Bool(is_link_local(address(call, 0)?))),
        "isGlobalUnicast" => |call| {
            let address = address(call, 0)?;
            let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
            let other = address.is_unspecified() || address.is_loopback() || address.is_multicast();
            Ok(Value::Bool(!(broadcast || other || is_link_local(address))))
        },
        "cidr" => |call| match parse_cidr(call.text(0)?) {
            Ok(cidr) => Ok(Value::opaque(Opaque::Cidr(cidr))),
            Err(error) => {
                Err(EvalError::new(format!("network address parse error during conversion from string: {error}")))
            }
        },
        "isCIDR" => |call| Ok(Value::Bool(parse_cidr(call.text(0)?).is_ok())),
        "containsIP" => |call| {
            let network = cidr(call, 0)?;
            let address = match call.arg(1)? {
                Value::String(text) => parse_ip(text)?,
                _ => address(call, 1)?,
            };
            Ok(Value::Bool(contains(network, address)))
        },
        "containsCIDR" => |call| {
            let network = cidr(call, 0)?;
            let other = match call.arg(1)? {
                Value::String(text) => parse_cidr(text).map_err(|error| {
                    EvalError::new(format!("network address parse error during conversion from string: {error}"))
                })?,
                _ => cidr(call, 1)?,
            };
            Ok(Value::Bool(network.bits <= other.bits && contains(network, masked(other).address)))
        },
        "prefixLength" => |call| Ok(Value::Int(cidr(call, 0)?.bits.into())),
        "masked" => |call| Ok(Value::opaque(Opaque::Cidr(masked(cidr(call, 0)?)))),
        _ => return None,
    })
}

fn url<'c>(call: &'c Call<'_, '_, '_>) -> Res<&'c Url> {
    match call.arg(0)? {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Url(url) => Ok(url),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn part<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let url = url(call)?;
    let text = match call.function {
        "getScheme" => &url.scheme,
        "getHost" => &url.host,
        "getHostname" => url.hostname(),
        "getPort" => url.port().unwrap_or_default(),
        _ => &url.path,
    };
    let text = text.to_owned();
    call.new_text(text)
}

fn query<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let mut found: BTreeMap<String, Vec<Value<'d>>> = BTreeMap::new();
    for (name, value) in url(call)?.pairs() {
        found.entry(name).or_default().push(Value::text(value));
    }
    let entries = found.into_iter().map(|(name, values)| (Key::String(Text::from(name)), Value::list(values)));
    Ok(Value::Map(Map::owned(entries.collect())))
}

/// Parses an address; zones and IPv4-mapped IPv6 addresses are errors.
fn parse_ip(text: &str) -> Res<IpAddr> {
    let plain = text.split_once('%').map_or(text, |(plain, _)| plain);
    let address: IpAddr = plain.parse().map_err(|_| {
        let what = "parse error during conversion from string";
        EvalError::new(format!("IP Address {text:?} {what}: ParseAddr({text:?}): {}", parse_error(text)))
    })?;
    if plain.len() < text.len() {
        return Err(EvalError::new(format!("IP address {text:?} with zone value is not allowed")));
    }
    if is_mapped(address) {
        return Err(EvalError::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")));
    }
    Ok(address)
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Go's error for an address that doesn't parse.
fn parse_error(text: &str) -> String {
    match text.bytes().find(|byte| b".:%".contains(byte)) {
        Some(b'.') => unreadable_v4(text),
        Some(b':') => unreadable_v6(text),
        Some(_) => "missing IPv6 address".into(),
        None => "unable to parse IP".into(),
    }
}

fn unreadable_v4(text: &str) -> String {
    let (mut digits, mut number, mut fields) = (0, 0u32, 0);
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' if digits == 1 && number == 0 => return "IPv4 field has octet with leading zero".into(),
            b'0'..=b'9' => {
                number = number * 10 + u32::from(byte - b'0');
                digits += 1;
                if number > 255 {
                    return "IPv4 field has value >255".into();
                }
            }
            b'.' if at == 0 || at == last || text.as_bytes()[at - 1] == b'.' => {
                return format!("IPv4 field must have at least one digit (at {:?})", &text[at..]);
            }
            b'.' if fields == 3 => return "IPv4 address too long".into(),
            b'.' => (digits, number, fields) = (0, 0, fields + 1),
            _ if text.is_char_boundary(at) => return format!("unexpected character (at {:?})", &text[at..]),
            _ => return "unexpected character".into(),
        }
    }
    "IPv4 address too short".into()
}

fn unreadable_v6(text: &str) -> String {
    let mut rest = text.split_once('%').map_or(text, |(plain, _)| plain);
    let mut elided = rest.starts_with("::");
    if elided {
        rest = &rest[2..];
    }
    for field in 0.. {
        if field == 8 {
            return format!("trailing garbage after address (at {rest:?})");
        }
        let length = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        if length > 4 {
            return format!("each group must have 4 or less digits (at {rest:?})");
        }
        if length == 0 {
            return format!("each colon-separated field must have at least one digit (at {rest:?})");
        }
        let before = rest;
        rest = &rest[length..];
        match rest.as_bytes() {
            [] => break,
            [b'.', ..] => {
                return format!("embedded IPv4 address must replace the final 2 fields of the address (at {before:?})");
            }
            [b':'] => return "colon must be followed by more characters (at \":\")".into(),
            [b':', b':', ..] if elided => return format!("multiple :: in address (at {:?})", &rest[1..]),
            [b':', b':', ..] => {
                elided = true;
                rest = &rest[2..];
                if rest.is_empty() {
                    break;
                }
            }
            [b':', ..] => rest = &rest[1..],
            _ => return format!("unexpected character, want colon (at {rest:?})"),
        }
    }
    "address string too short".into()
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let wrong = |why: String| {
        format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}")
    };
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'".into()))?;
    let unread = |_| wrong(format!("ParseAddr({address:?}): {}", parse_error(address)));
    let address: IpAddr = address.parse().map_err(unread)?;
    let plain = !bits.is_empty() && bits.bytes().all(|c| c.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let number: Option<u32> = bits.parse().ok().filter(|_| plain);
    let number = number.ok_or_else(|| wrong(format!("bad bits after slash: {bits:?}")))?;
    if number > if address.is_ipv4() { 32 } else { 128 } {
        return Err(wrong("prefix length out of range".into()));
    }
    if is_mapped(address) {
        return Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"));
    }
    Ok(Cidr { address, bits: number as u8 })
}

fn address(call: &Call<'_, '_, '_>, at: usize) -> Res<IpAddr> {
    match call.arg(at)? {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Ip(address) => Ok(*address),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn cidr(call: &Call<'_, '_, '_>, at: usize) -> Res<Cidr> {
    match call.arg(at)? {
        Value::Opaque(opaque) => match &**opaque {
            Opaque::Cidr(cidr) => Ok(*cidr),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn masked(cidr: Cidr) -> Cidr {
    let address = match cidr.address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(cidr.bits)).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(cidr.bits)).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    };
    Cidr { address, ..cidr }
}

fn contains(network: Cidr, address: IpAddr) -> bool {
    network.address.is_ipv4() == address.is_ipv4()
        && masked(network).address == masked(Cidr { address, bits: network.bits }).address
}
