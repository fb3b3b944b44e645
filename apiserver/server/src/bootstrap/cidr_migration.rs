//! Migrates a cluster to free CIDRs when another cluster took its own before a start. Services and nodes keep their
//! offsets in the CIDR, so that nothing refers to the other cluster's addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::Write;
use apiserver_resources::objects::ObjectReader;

/// A CIDR and its replacement of the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CidrMigration {
    /// The previous CIDR.
    pub from: Ipv4Net,
    /// The new CIDR.
    pub to: Ipv4Net,
}

impl CidrMigration {
    fn address(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        self.from.contains(&address).then(|| {
            let offset = u32::from(address) - u32::from(self.from.network());
            Ipv4Addr::from(u32::from(self.to.network()) + offset)
        })
    }

    /// Maps an address or CIDR in text form.
    fn text(&self, text: &str) -> Option<String> {
        match text.split_once('/') {
            Some((address, length)) => Some(format!("{}/{length}", self.address(address.parse().ok()?)?)),
            None => Some(self.address(text.parse().ok()?)?.to_string()),
        }
    }
}

/// Returns the writes that move Services' addresses and nodes' CIDRs.
#[must_use]
pub fn plan(objects: &dyn ObjectReader, migrations: &[CidrMigration]) -> Vec<Write> {
    let kinds: [(&'static str, [&str; 2]); 2] =
        [("services", ["clusterIP", "clusterIPs"]), ("nodes", ["podCIDR", "podCIDRs"])];
    let mut writes = Vec::new();
    for (plural, fields) in kinds {
        for found in objects.list("", plural, None) {
            let mut object = Value::clone(&found);
            for field in fields {
                if let Some(value) = object["spec"].get_mut(field) {
                    rewrite(value, migrations);
                }
            }
            if object != *found {
                writes.push(Write::Update { group: "", plural, object });
            }
        }
    }
    writes
}

fn rewrite(value: &mut Value, migrations: &[CidrMigration]) {
    match value {
        Value::String(text) => {
            if let Some(moved) = migrations.iter().find_map(|one| one.text(text)) {
                *value = json!(moved);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| rewrite(item, migrations)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::objects::memory::MemoryObjects;

    #[test]
    fn addresses_keep_their_offset_in_the_new_cidr() {
        let objects = MemoryObjects::default();
        objects.put("", "services", json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"clusterIP": "127.64.3.4", "clusterIPs": ["127.64.3.4"]}}));
        objects.put(
            "",
            "services",
            json!({"metadata": {"name": "none", "namespace": "default"}, "spec": {"clusterIP": "None"}}),
        );
        objects.put("", "nodes", json!({"metadata": {"name": "coracle-1"}, "spec": {"podCIDR": "127.66.16.0/20", "podCIDRs": ["127.66.16.0/20"]}}));
        let block = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let migrations = [
            CidrMigration { from: block("127.64.0.0/16"), to: block("127.68.0.0/16") },
            CidrMigration { from: block("127.66.0.0/15"), to: block("127.70.0.0/15") },
        ];
        let written: Vec<Value> = plan(&objects, &migrations)
            .into_iter()
            .map(|write| match write {
                Write::Update { object, .. } => object["spec"].clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            written,
            [
                json!({"clusterIP": "127.68.3.4", "clusterIPs": ["127.68.3.4"]}),
                json!({"podCIDR": "127.70.16.0/20", "podCIDRs": ["127.70.16.0/20"]}),
            ]
        );
    }
}
