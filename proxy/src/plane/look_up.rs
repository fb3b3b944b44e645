//! Resolves a name or an address without a call: serves `nslookup` of the node's toolbox.

use std::net::{IpAddr, Ipv4Addr};

use machinery_api::ObjectKey;
use machinery_serve::net::{Caller, DialError, NamePolicy, ResolvedName};

use crate::names::cluster_name::in_cluster;
use crate::names::resolve::Target;
use crate::plane::plain_name;
use crate::state::ProxyState;

impl ProxyState {
    /// The addresses of a name for a caller, or the name of an address.
    pub(crate) async fn look_up(&self, caller: &Caller, name: &str) -> Result<ResolvedName, DialError> {
        let unknown = || DialError::NameNotFound(name.to_owned());
        let given: Vec<IpAddr> = caller.names.hosts(&plain_name(name)).collect();
        if !given.is_empty() {
            return Ok(ResolvedName { name: plain_name(name), addresses: given });
        }
        if let Ok(ip) = name.parse() {
            let found = self.name_of(caller, ip).map(|name| ResolvedName { name, addresses: Vec::new() });
            return found.ok_or_else(unknown);
        }
        let addresses = |key: &ObjectKey, host: Option<&str>| {
            self.routes.of(key).map_or_else(Vec::new, |routes| routes.published.addresses(host))
        };
        let found = match self.target(caller, name).await? {
            Target::Own => ResolvedName { name: plain_name(name), addresses: vec![Ipv4Addr::LOCALHOST.into()] },
            Target::Ip(ip) => ResolvedName { name: plain_name(name), addresses: vec![ip] },
            Target::Unknown => return Err(unknown()),
            Target::Outside(outside) => {
                let addresses = self.egress.resolve(caller, &outside).await?;
                ResolvedName { name: plain_name(&outside), addresses }
            }
            Target::Service(key) => ResolvedName { name: in_cluster(None, &key), addresses: addresses(&key, None) },
            Target::Endpoint(key, host) => {
                ResolvedName { name: in_cluster(Some(&host), &key), addresses: addresses(&key, Some(&host)) }
            }
        };
        if found.addresses.is_empty() { Err(unknown()) } else { Ok(found) }
    }

    /// The first name server for a caller's queries.
    pub(crate) fn name_server(&self, caller: &Caller) -> Option<IpAddr> {
        let names = &caller.names;
        match names.policy {
            NamePolicy::Cluster => self.config.cluster_dns,
            NamePolicy::Host => self.egress.name_server().or_else(|| names.servers.first().copied()),
            NamePolicy::Own => names.servers.first().copied(),
        }
    }

    /// The cluster DNS name of a Service's address, for callers that use cluster DNS.
    fn name_of(&self, caller: &Caller, ip: IpAddr) -> Option<String> {
        let uses_cluster_dns = match caller.names.policy {
            NamePolicy::Cluster => true,
            NamePolicy::Host => false,
            NamePolicy::Own => caller.names.servers.first().is_some_and(|server| self.is_cluster(*server)),
        };
        if uses_cluster_dns { self.routes.names_of(ip).into_iter().next() } else { None }
    }
}
