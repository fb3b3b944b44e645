//! Names of endpoints' addresses, for PTR records: an address may be an endpoint of several Services.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use machinery_api::ObjectKey;

use crate::names::published::Published;

/// The name of an endpoint's address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointName {
    /// Whether the endpoint has a host name of its own.
    pub named: bool,
    /// The Service.
    pub service: ObjectKey,
    /// The label below the Service's name.
    pub host: Box<str>,
}

/// The names by address.
#[derive(Debug, Default)]
pub(crate) struct ReverseNames {
    by_ip: HashMap<IpAddr, BTreeSet<EndpointName>>,
}

impl ReverseNames {
    /// Replaces the names of one Service; returns the new names of the addresses that it affects.
    pub(crate) fn update(
        &mut self,
        key: &ObjectKey,
        before: &Published,
        after: &Published,
    ) -> Vec<(IpAddr, Option<Arc<[EndpointName]>>)> {
        let names = |published: &Published| -> BTreeSet<(IpAddr, EndpointName)> {
            let all = published.reverse();
            let name = |host: &str, named| EndpointName { named, service: key.clone(), host: host.into() };
            all.map(|endpoint| (endpoint.ip, name(&endpoint.host, endpoint.named))).collect()
        };
        let (old, new) = (names(before), names(after));
        let mut touched = BTreeSet::new();
        for (ip, name) in old.difference(&new) {
            touched.insert(*ip);
            if let Some(names) = self.by_ip.get_mut(ip) {
                names.remove(name);
                if names.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
        }
        for (ip, name) in new.difference(&old) {
            touched.insert(*ip);
            self.by_ip.entry(*ip).or_default().insert(name.clone());
        }
        let now = |ip: IpAddr| self.by_ip.get(&ip).map(|names| names.iter().cloned().collect());
        touched.into_iter().map(|ip| (ip, now(ip))).collect()
    }
}
