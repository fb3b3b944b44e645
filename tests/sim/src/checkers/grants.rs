//! Requests and grants: no certificate without approval, and after convergence every request is granted, processed or gone.

use std::collections::BTreeSet;

use serde_json::Value;

use super::convergence::Objects;
use crate::history::History;
use crate::workload::{PART, SUM};

fn is(request: &Value, what: &str) -> bool {
    let conditions = request["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == what)
}

/// A certificate requires an approval.
pub(super) fn certificates(request: &Value, problems: &mut Vec<String>) {
    if !request["status"]["certificate"].is_null() && !is(request, "Approved") {
        problems.push("it has a certificate, and nobody approved".to_owned());
    }
}

/// Unmet expectations after convergence.
pub(super) fn unmet(history: &History, problems: &mut Vec<String>) {
    let of = |prefix: &str| Objects::of(history, prefix);
    for (key, request) in of("certificatesigningrequests").iter() {
        if is(request, "Approved") && request["status"]["certificate"].is_null() {
            problems.push(format!("{key} is approved and has no certificate"));
        }
    }
    roles(&of("clusterroles"), problems);
    tokens(&of("secrets"), &of("serviceaccounts"), problems);
    for (key, policy) in of("validatingadmissionpolicies").iter() {
        if policy["status"]["observedGeneration"] != policy["metadata"]["generation"] {
            problems.push(format!("{key} is not looked over"));
        }
    }
    let addresses = of("ipaddresses");
    for (key, range) in of("servicecidrs").iter() {
        let going = !range["metadata"]["deletionTimestamp"].is_null();
        let condition = &range["status"]["conditions"][0];
        let of_range = |address: &Value| {
            let (block, ip) = (range["spec"]["cidrs"][0].as_str(), address["metadata"]["name"].as_str());
            let block: Option<ipnet::IpNet> = block.and_then(|block| block.parse().ok());
            let ip: Option<std::net::IpAddr> = ip.and_then(|ip| ip.parse().ok());
            block.zip(ip).is_some_and(|(block, ip)| block.contains(&ip))
        };
        let used = addresses.iter().any(|(_, address)| of_range(address));
        if going && !used {
            problems.push(format!("{key} is not gone, and nobody has an address of it"));
        } else if condition["status"] != if going { "False" } else { "True" } {
            problems.push(format!("{key} is {condition}"));
        }
    }
    for (key, class) in of("volumeattributesclasses").iter() {
        if !class["metadata"]["deletionTimestamp"].is_null() {
            problems.push(format!("{key} is not gone, and nobody uses it"));
        }
    }
}

/// An aggregated role has its parts' rules, and no more.
fn roles(roles: &Objects, problems: &mut Vec<String>) {
    let Some((key, sum)) = roles.iter().find(|(_, role)| role["metadata"]["name"] == SUM) else { return };
    let rules = |role: &Value| -> BTreeSet<String> {
        role["rules"].as_array().into_iter().flatten().map(Value::to_string).collect()
    };
    let parts = roles.iter().filter(|(_, role)| role["metadata"]["labels"][PART] == "yes");
    let wanted: BTreeSet<String> = parts.flat_map(|(_, part)| rules(part)).collect();
    if rules(sum) != wanted {
        problems.push(format!("{key} is not the sum of its parts"));
    }
}

/// A token exists as long as its account.
fn tokens(secrets: &Objects, accounts: &Objects, problems: &mut Vec<String>) {
    for (key, secret) in secrets.iter().filter(|(_, of)| of["type"] == "kubernetes.io/service-account-token") {
        let metadata = &secret["metadata"];
        let whose = &metadata["annotations"]["kubernetes.io/service-account.name"];
        let account = accounts.iter().map(|(_, account)| &account["metadata"]);
        let mut account =
            account.filter(|account| account["namespace"] == metadata["namespace"] && account["name"] == *whose);
        match account.next() {
            None => problems.push(format!("{key} is left of an account that is gone")),
            Some(_) if secret["data"]["token"].is_null() => problems.push(format!("{key} has no token")),
            Some(_) => {}
        }
    }
}
