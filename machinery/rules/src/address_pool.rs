//! Address pool of load balancers: blocks, ranges and single IPv4 addresses, as in
//! `10.0.0.0/28,10.0.1.5-10.0.1.9,10.0.2.1`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Maximum parts of a pool: more are not written by hand.
const PARTS_MAX: usize = 256;

/// Sorted, disjoint, non-adjacent ranges of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPool(Vec<RangeInclusive<u32>>);

/// Why a text is no valid pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} {why}")]
pub struct PoolError {
    part: String,
    why: &'static str,
}

fn part(text: &str) -> Result<RangeInclusive<u32>, &'static str> {
    let address = |text: &str| {
        let parsed = text.trim().parse::<Ipv4Addr>();
        parsed.map(u32::from).map_err(|_| "is no IPv4 address, nor a block or range of them")
    };
    let range = if let Some((network, length)) = text.split_once('/') {
        let network = address(network)?;
        let length = length.parse::<u32>().ok().filter(|length| (8..=32).contains(length));
        let hosts = u32::MAX.checked_shr(length.ok_or("has no length from 8 to 32")?).unwrap_or(0);
        if network & hosts != 0 {
            return Err("is not a network address: host bits are set");
        }
        match hosts {
            // Blocks this small have no network and no broadcast address.
            0 | 1 => network..=network + hosts,
            _ => network + 1..=network + hosts - 1,
        }
    } else if let Some((first, last)) = text.split_once('-') {
        address(first)?..=address(last)?
    } else {
        let only = address(text)?;
        only..=only
    };
    if range.is_empty() {
        return Err("ends before it begins");
    }
    let special = |first: [u8; 4], last: [u8; 4]| {
        *range.start() <= u32::from_be_bytes(last) && u32::from_be_bytes(first) <= *range.end()
    };
    if special([0, 0, 0, 0], [0, 255, 255, 255]) || special([224, 0, 0, 0], [255, 255, 255, 255]) {
        return Err("contains reserved or multicast addresses");
    }
    if special([127, 0, 0, 0], [127, 0, 255, 255]) {
        return Err("has addresses that are each pod's own: of 127.0.0.0/8, take those above 127.0.255.255");
    }
    Ok(range)
}

impl FromStr for AddressPool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let wrong = |part: &str, why| PoolError { part: part.chars().take(64).collect(), why };
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() && !text.trim().is_empty() {
            return Err(wrong(text, "names no address"));
        }
        if parts.len() > PARTS_MAX {
            return Err(wrong(text, "has more than 256 parts"));
        }
        let ranges: Result<Vec<_>, PoolError> =
            parts.iter().map(|one| part(one).map_err(|why| wrong(one, why))).collect();
        let mut ranges = ranges?;
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u32>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Ok(Self(merged))
    }
}

impl fmt::Display for AddressPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{}-{}", Ipv4Addr::from(*range.start()), Ipv4Addr::from(*range.end()))?;
        }
        Ok(())
    }
}

impl AddressPool {
    /// Whether the pool is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the pool contains an address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        self.0.iter().any(|range| range.contains(&u32::from(address)))
    }

    /// Whether the pool contains an address from `first` to `last`.
    #[must_use]
    pub fn overlaps(&self, first: Ipv4Addr, last: Ipv4Addr) -> bool {
        self.0.iter().any(|range| *range.start() <= u32::from(last) && u32::from(first) <= *range.end())
    }

    /// The lowest free address. Tests at most one address more than are taken.
    pub fn first_free(&self, is_taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        self.0.iter().cloned().flatten().map(Ipv4Addr::from).find(|address| !is_taken(*address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Result<String, String> {
        text.parse::<AddressPool>().map(|pool| pool.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_ranges_and_addresses_are_one_pool() {
        for (text, wanted) in [
            ("", ""),
            ("10.0.0.0/30", "10.0.0.1-10.0.0.2"),
            ("10.0.0.4/31, 10.0.0.9/32", "10.0.0.4-10.0.0.5,10.0.0.9-10.0.0.9"),
            ("10.0.1.5-10.0.1.9,10.0.0.7,10.0.1.10,10.0.1.6", "10.0.0.7-10.0.0.7,10.0.1.5-10.0.1.10"),
            ("127.90.0.0/16", "127.90.0.1-127.90.255.254"),
        ] {
            assert_eq!(pool(text), Ok(wanted.to_owned()));
        }
    }

    #[test]
    fn invalid_pools_are_errors() {
        for (text, why) in [
            ("10.0.0.5/24", "host bits"),
            (",", "names no address"),
            ("10.0.0.0/7", "no length"),
            ("10.0.0.0/x", "no length"),
            ("10.0.0.9-10.0.0.1", "ends before"),
            ("fd00::/64", "no IPv4"),
            ("router", "no IPv4"),
            ("127.0.0.0/8", "each pod's own"),
            ("0.0.0.0", "reserved"),
            ("223.0.0.0-225.0.0.0", "reserved"),
        ] {
            let message = pool(text).unwrap_err();
            assert!(message.contains(why), "{text}: {message}");
        }
        assert!(pool(&"10.0.0.1,".repeat(300)).unwrap_err().contains("256"));
    }

    #[test]
    fn the_lowest_free_one_is_taken_until_none_is() {
        let pool: AddressPool = "10.0.0.1-10.0.0.2,10.0.0.9".parse().unwrap();
        let mut taken = Vec::new();
        while let Some(next) = pool.first_free(|address| taken.contains(&address)) {
            taken.push(next);
        }
        assert_eq!(taken.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
        let is = |text: &str| pool.contains(text.parse().unwrap());
        assert!(is("10.0.0.9") && !is("10.0.0.3") && !is("::1"));
        let [a, b, c] = [[10, 0, 0, 3], [10, 0, 0, 8], [10, 0, 0, 9]].map(Ipv4Addr::from);
        assert!(!pool.overlaps(a, b) && pool.overlaps(b, c) && AddressPool::default().is_empty());
    }
}
