//! Allocation of the node's podCIDR. In memory only: after a restart, pods reserve the addresses of their statuses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

/// A block of addresses, allocated in order, so that a freed address is reused as late as possible.
#[derive(Debug)]
pub struct Addresses {
    /// The first and last address of the block.
    bounds: (u32, u32),
    allocation: Mutex<Allocation>,
}

#[derive(Debug)]
struct Allocation {
    taken: BTreeSet<u32>,
    next: u32,
}

/// A podCIDR that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("podCIDR {0:?} is no IPv4 block that a node can give addresses from")]
pub struct BadCidr(pub String);

impl Addresses {
    /// Parses a block such as `10.244.1.0/24`. Its first and last addresses are never allocated.
    pub fn new(cidr: &str) -> Result<Self, BadCidr> {
        let bad = || BadCidr(cidr.to_owned());
        let (ip, prefix) = cidr.split_once('/').ok_or_else(bad)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| bad())?;
        let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 30).ok_or_else(bad)?;
        let mask = if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) };
        let first = u32::from(ip) & mask;
        let bounds = (first + 1, (first | !mask) - 1);
        Ok(Self { bounds, allocation: Mutex::new(Allocation { taken: BTreeSet::new(), next: bounds.0 }) })
    }

    /// The number of allocatable addresses.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bounds.1 - self.bounds.0 + 1
    }

    /// Reserves the previous address of a pod, if it is in this block and free.
    pub fn reserve(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let number = u32::from(ip);
        let mut allocation = self.allocation.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (self.bounds.0..=self.bounds.1).contains(&number) && allocation.taken.insert(number);
        if free && number >= allocation.next {
            allocation.next = self.after(number);
        }
        free
    }

    /// Allocates the next free address; `None` if all are allocated.
    pub fn take(&self) -> Option<IpAddr> {
        let mut allocation = self.allocation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut number = allocation.next;
        for _ in self.bounds.0..=self.bounds.1 {
            let free = allocation.taken.insert(number);
            let next = self.after(number);
            if free {
                allocation.next = next;
                return Some(IpAddr::V4(number.into()));
            }
            number = next;
        }
        None
    }

    /// Whether any address is free.
    pub fn any_free(&self) -> bool {
        let taken = self.allocation.lock().unwrap_or_else(PoisonError::into_inner).taken.len();
        u32::try_from(taken).is_ok_and(|taken| taken < self.count())
    }

    /// Frees an address.
    pub fn free(&self, ip: IpAddr) {
        if let IpAddr::V4(ip) = ip {
            self.allocation.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&u32::from(ip));
        }
    }

    fn after(&self, number: u32) -> u32 {
        if number >= self.bounds.1 { self.bounds.0 } else { number + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_round() {
        let addresses = Addresses::new("127.66.16.0/29").unwrap();
        let ip = |last: u8| IpAddr::from([127, 66, 16, last]);
        assert!(addresses.reserve(ip(2)) && !addresses.reserve(ip(2)) && !addresses.reserve(ip(9)));
        assert_eq!(addresses.take(), Some(ip(3)));
        addresses.free(ip(3));
        assert!(addresses.any_free());
        let rest: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(rest, [ip(4), ip(5), ip(6), ip(1), ip(3)]);
        assert!(!addresses.any_free());
        for bad in ["", "127.0.0.0", "127.0.0.0/31", "fd00::/64", "x/8"] {
            assert!(Addresses::new(bad).is_err(), "{bad}");
        }
    }
}
