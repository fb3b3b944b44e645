//! What a node on another machine has to know of its cluster: the addresses, and the registries of the API servers. Kept in
//! the ConfigMap `kube-public/coracle-node`, which nodes may read.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use machinery_client::Api;
use machinery_client::request::status_code;
use machinery_env::Env;
use machinery_rules::address_pool::AddressPool;
use proxy::options::AddressOptions;
use serde_json::{Map, Value, json};

use super::registry::{PUBLIC, put_public};
use crate::network::{Network, NetworkConfig};
use tools_command::data_dir::write_atomically;
use tools_joining::node::JoinedNode;

const NAME: &str = "coracle-node";
const SERVICE_CIDR: &str = "serviceCIDR";
const NODE_MASK: &str = "nodeCIDRMaskSize";
const CLUSTER_CIDR: &str = "clusterCIDR";
const CLUSTER_DNS: &str = "clusterDNS";
const BALANCER_POOL: &str = "loadBalancerPool";
/// The prefix of the keys of registries, one an API server.
const REGISTRY: &str = "registry.";
/// In a node's own file: the cluster isn't Coracle's.
const FOREIGN: &str = "foreign";
/// The time for the API server's answer at a start.
const API_WAIT: Duration = Duration::from_secs(5);

/// The configuration of a cluster's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeConfiguration {
    pub(super) services: Ipv4Net,
    pub(super) pods: Ipv4Net,
    pub(super) dns: Option<Ipv4Addr>,
    /// The addresses of LoadBalancer Services.
    pub(super) balancer_pool: AddressPool,
    /// `ADDR:PORT` of each API server's registry.
    pub(super) registries: Vec<String>,
    /// Whether the cluster is Coracle's.
    pub(super) is_coracle: bool,
}

/// Publishes this API server's part; `instance` is its name among those of the cluster.
///
/// # Errors
/// If the API server rejects it.
pub(super) async fn publish(
    client: &Client,
    network: &Network,
    balancer_pool: &AddressPool,
    (instance, registry): (&str, &str),
) -> anyhow::Result<()> {
    let configuration = NodeConfiguration {
        services: network.services,
        pods: network.pods,
        dns: network.dns(),
        balancer_pool: balancer_pool.clone(),
        registries: Vec::new(),
        is_coracle: true,
    };
    let mut data = fields(&configuration);
    data.insert(format!("{REGISTRY}{instance}"), registry.into());
    // Admission reads it: a node claims no other size.
    data.insert(NODE_MASK.into(), network.node_mask.to_string().into());
    put_public(client, NAME, &json!(data)).await.context("the nodes' configuration can't be published")
}

/// Reads the configuration; `None` in a cluster that isn't Coracle's.
///
/// # Errors
/// If the API server can't be reached, or the configuration is of another form.
pub(super) async fn read(client: &Client) -> anyhow::Result<Option<NodeConfiguration>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), PUBLIC);
    match maps.get(NAME).await {
        Ok(map) => Ok(Some(parse(&json!(map.data)).with_context(|| format!("ConfigMap {PUBLIC}/{NAME}"))?)),
        // A cluster without it has no such Role either.
        Err(error) if matches!(status_code(&error), 403 | 404) => Ok(None),
        Err(error) => Err(error).context("the nodes' configuration can't be read"),
    }
}

/// The cluster's addresses and registries. In a cluster that isn't Coracle's: those of the flags or upstream's usual ones,
/// and no registry.
///
/// # Errors
/// As [`read`], or if the flags contradict each other.
pub(super) async fn resolve(client: &Client, given: &AddressOptions) -> anyhow::Result<NodeConfiguration> {
    let AddressOptions { service_cidr, cluster_cidr, load_balancer_pool } = given.clone();
    let usual = Network::usual(&NetworkConfig { service_cidr, cluster_cidr, node_cidr_mask_size: None });
    let usual = usual.check_blocks()?;
    let Some(published) = read(client).await? else {
        return Ok(NodeConfiguration {
            services: usual.services,
            pods: usual.pods,
            dns: usual.dns(),
            balancer_pool: load_balancer_pool.unwrap_or_default(),
            registries: Vec::new(),
            is_coracle: false,
        });
    };
    Ok(NodeConfiguration {
        services: service_cidr.unwrap_or(published.services),
        pods: cluster_cidr.unwrap_or(published.pods),
        balancer_pool: load_balancer_pool.unwrap_or(published.balancer_pool),
        ..published
    })
}

/// What a node knows of its cluster: from the API, or from the file of the last start while the API server doesn't answer.
///
/// # Errors
/// If the API server doesn't answer and there is no such file.
pub(super) async fn known(
    env: &Env,
    node: &JoinedNode,
    given: &AddressOptions,
    file: &Path,
) -> anyhow::Result<NodeConfiguration> {
    let request = async {
        let found = resolve(&node.client, given).await?;
        // A cluster of Coracle's whose configuration this user may not read.
        let is_coracle = found.is_coracle || node.is_coracle().await?;
        anyhow::Ok(NodeConfiguration { is_coracle, ..found })
    };
    let failed = match env.timeout(API_WAIT, request).await {
        Ok(Ok(found)) => {
            write_atomically(file, json!(fields(&found)).to_string().as_bytes())?;
            return Ok(found);
        }
        Ok(Err(error)) => error,
        Err(_) => anyhow::anyhow!("no answer within {} s", API_WAIT.as_secs()),
    };
    let stored = std::fs::read(file).ok().and_then(|text| parse(&serde_json::from_slice(&text).ok()?).ok());
    let stored = stored.with_context(|| format!("{}: {failed:#}", node.server))?;
    tracing::warn!(server = %node.server, error = &*failed, "the node starts from what it knows of its cluster");
    Ok(stored)
}

/// The fields that [`parse`] reads.
fn fields(of: &NodeConfiguration) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert(SERVICE_CIDR.into(), of.services.to_string().into());
    data.insert(CLUSTER_CIDR.into(), of.pods.to_string().into());
    if let Some(dns) = of.dns {
        data.insert(CLUSTER_DNS.into(), dns.to_string().into());
    }
    // Also an empty one, so that it replaces an earlier one.
    data.insert(BALANCER_POOL.into(), of.balancer_pool.to_string().into());
    for (number, address) in of.registries.iter().enumerate() {
        data.insert(format!("{REGISTRY}{number}"), address.clone().into());
    }
    if !of.is_coracle {
        data.insert(FOREIGN.into(), true.into());
    }
    data
}

fn parse(data: &Value) -> anyhow::Result<NodeConfiguration> {
    let field = |name: &str| data[name].as_str().with_context(|| format!("has no {name}"));
    let registries = data.as_object().into_iter().flatten();
    let registries = registries.filter(|(key, _)| key.starts_with(REGISTRY));
    Ok(NodeConfiguration {
        services: field(SERVICE_CIDR)?.parse().context(SERVICE_CIDR)?,
        pods: field(CLUSTER_CIDR)?.parse().context(CLUSTER_CIDR)?,
        dns: data[CLUSTER_DNS].as_str().map(str::parse).transpose().context(CLUSTER_DNS)?,
        // An older API server publishes none.
        balancer_pool: data[BALANCER_POOL].as_str().unwrap_or_default().parse().context(BALANCER_POOL)?,
        registries: registries.filter_map(|(_, address)| address.as_str().map(str::to_owned)).collect(),
        is_coracle: data[FOREIGN].is_null(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_its_registries() {
        let data = json!({"serviceCIDR": "10.96.0.0/12", "clusterCIDR": "10.244.0.0/16", "clusterDNS": "10.96.0.10",
            "loadBalancerPool": "192.0.2.5", "registry.b": "10.0.0.2:5000", "registry.a": "10.0.0.1:5000"});
        let read = parse(&data).unwrap();
        assert_eq!(read.registries, ["10.0.0.1:5000", "10.0.0.2:5000"]);
        assert_eq!((read.pods.to_string().as_str(), read.dns), ("10.244.0.0/16", Some(Ipv4Addr::new(10, 96, 0, 10))));
        let known = NodeConfiguration { is_coracle: false, ..read };
        assert_eq!(parse(&json!(fields(&known))).unwrap(), known);
        let wrong = |key: &str, value: &str| {
            let mut data = data.clone();
            data[key] = json!(value);
            format!("{:#}", parse(&data).unwrap_err())
        };
        assert!(wrong("clusterCIDR", "x").starts_with("clusterCIDR: "));
        assert!(wrong("loadBalancerPool", "x").starts_with("loadBalancerPool: "));
        assert_eq!(format!("{:#}", parse(&json!({})).unwrap_err()), "has no serviceCIDR");
    }
}
