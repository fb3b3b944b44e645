//! URLs, addresses and networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use url::Url;

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Cidr, Key, Map, Opaque, Res, Text, Value};

pub(super) fn find(function: &str, id: &str) -> Option<Implementation> {
    Some(match function {
        "url" => |call| match parse_url(call.text(0)?) {
            Ok(url) => Ok(Value::opaque(Opaque::Url(url))),
            Err(error) => Err(EvalError::new(format!("URL parse error during conversion from string: {error}"))),
        },
        "isURL" => |call| Ok(Value::Bool(parse_url(call.text(0)?).is_ok())),
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

/// An absolute URL, or an absolute path, as Go's `ParseRequestURI` takes them.
pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| format!("parse \"{text}\": {why}");
    if text.is_empty() {
        return Err(wrong("empty url"));
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return Err(wrong("net/url: invalid control character in URL"));
    }
    let parsed = match Url::parse(text) {
        Ok(url) => Ok(url),
        Err(url::ParseError::RelativeUrlWithoutBase) if text.starts_with('/') => {
            // A path has no scheme; one that nobody can write stands for none.
            Url::parse(&format!("{NO_SCHEME}:{text}"))
        }
        Err(url::ParseError::RelativeUrlWithoutBase) => return Err(wrong("invalid URI for request")),
        Err(error) => Err(error),
    };
    parsed.map_err(|error| wrong(&error.to_string()))
}

const NO_SCHEME: &str = "x-none";

fn part<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Value::Opaque(opaque) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
    let Opaque::Url(url) = &**opaque else { return Err(EvalError::no_such_overload()) };
    let port = url.port().map(|port| port.to_string());
    let host = url.host_str().unwrap_or_default();
    let text = match call.function {
        "getScheme" if url.scheme() == NO_SCHEME => String::new(),
        "getScheme" => url.scheme().to_owned(),
        "getHost" => port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
        "getHostname" => host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        "getPort" => port.unwrap_or_default(),
        _ => url.path().to_owned(),
    };
    call.made(text)
}

fn query<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Value::Opaque(opaque) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
    let Opaque::Url(url) = &**opaque else { return Err(EvalError::no_such_overload()) };
    let mut found: BTreeMap<String, Vec<Value<'d>>> = BTreeMap::new();
    for (name, value) in url.query_pairs() {
        found.entry(name.into_owned()).or_default().push(Value::text(value));
    }
    let entries = found.into_iter().map(|(name, values)| (Key::String(Text::from(name)), Value::list(values)));
    Ok(Value::Map(Map::own(entries.collect())))
}

/// An address without zone, and no IPv4 one in IPv6 clothes.
fn parse_ip(text: &str) -> Res<IpAddr> {
    let wrong = |why: &str| EvalError::new(format!("IP Address {text:?} {why}"));
    let address: IpAddr = text.parse().map_err(|_| {
        EvalError::new(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        ))
    })?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(wrong("parse error during conversion from string: IPv4-mapped IPv6 address is not allowed"))
        }
        address => Ok(address),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let wrong = |why: &str| format!("netip.ParsePrefix({text:?}): {why}");
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let address: IpAddr = address.parse().map_err(|_| wrong("ParseAddr: unable to parse IP"))?;
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err("IPv4-mapped IPv6 address is not allowed".to_owned());
    }
    let plain = !bits.is_empty() && bits.bytes().all(|c| c.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits: u8 = bits.parse().ok().filter(|_| plain).ok_or_else(|| wrong("bad bits after slash"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if bits > most { Err(wrong("prefix length out of range")) } else { Ok(Cidr { address, bits }) }
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
