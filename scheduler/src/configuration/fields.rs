//! The fields that a configuration file may have. Unknown fields are rejected.

use serde_json::Value;

/// The fields of each object, by its path without indexes.
pub(super) type FieldTable = &'static [(&'static str, &'static [&'static str])];

/// Fields that configure upstream's own process.
pub(super) const OF_PROCESS: &[&str] = &[
    "parallelism",
    "leaderElection",
    "clientConnection",
    "enableProfiling",
    "enableContentionProfiling",
    "delayCacheUntilActive",
];

pub(super) const FILE: FieldTable = &[
    (
        "",
        &[
            "apiVersion",
            "kind",
            "parallelism",
            "leaderElection",
            "clientConnection",
            "enableProfiling",
            "enableContentionProfiling",
            "percentageOfNodesToScore",
            "podInitialBackoffSeconds",
            "podMaxBackoffSeconds",
            "profiles",
            "extenders",
            "delayCacheUntilActive",
        ],
    ),
    (
        "leaderElection",
        &[
            "leaderElect",
            "leaseDuration",
            "renewDeadline",
            "retryPeriod",
            "resourceLock",
            "resourceName",
            "resourceNamespace",
        ],
    ),
    ("clientConnection", &["kubeconfig", "acceptContentTypes", "contentType", "qps", "burst"]),
    (
        "extenders[]",
        &[
            "urlPrefix",
            "filterVerb",
            "preemptVerb",
            "prioritizeVerb",
            "weight",
            "bindVerb",
            "enableHTTPS",
            "tlsConfig",
            "httpTimeout",
            "nodeCacheCapable",
            "managedResources",
            "ignorable",
        ],
    ),
    (
        "extenders[].tlsConfig",
        &["insecure", "serverName", "certFile", "keyFile", "caFile", "certData", "keyData", "caData"],
    ),
    ("extenders[].managedResources[]", &["name", "ignoredByScheduler"]),
    ("profiles[]", &["schedulerName", "percentageOfNodesToScore", "plugins", "pluginConfig"]),
    (
        "profiles[].plugins",
        &[
            "preEnqueue",
            "queueSort",
            "preFilter",
            "filter",
            "postFilter",
            "preScore",
            "score",
            "reserve",
            "permit",
            "preBind",
            "bind",
            "postBind",
            "multiPoint",
            "placementGenerate",
            "placementScore",
        ],
    ),
    ("profiles[].plugins.*", &["enabled", "disabled"]),
    ("profiles[].plugins.*.enabled[]", &["name", "weight"]),
    ("profiles[].plugins.*.disabled[]", &["name", "weight"]),
    ("profiles[].pluginConfig[]", &["name", "args"]),
];

/// The argument fields of a plugin; none if the plugin takes no arguments.
pub(super) fn args(plugin: &str) -> Option<FieldTable> {
    const FIT: FieldTable = &[
        ("", &["apiVersion", "kind", "ignoredResources", "ignoredResourceGroups", "scoringStrategy"]),
        ("scoringStrategy", &["type", "resources", "requestedToCapacityRatio"]),
        ("scoringStrategy.resources[]", &["name", "weight"]),
        ("scoringStrategy.requestedToCapacityRatio", &["shape"]),
        ("scoringStrategy.requestedToCapacityRatio.shape[]", &["utilization", "score"]),
    ];
    const SPREAD: FieldTable = &[
        ("", &["apiVersion", "kind", "defaultConstraints", "defaultingType"]),
        (
            "defaultConstraints[]",
            &[
                "maxSkew",
                "topologyKey",
                "whenUnsatisfiable",
                "labelSelector",
                "minDomains",
                "nodeAffinityPolicy",
                "nodeTaintsPolicy",
                "matchLabelKeys",
            ],
        ),
    ];
    const AFFINITY: FieldTable = &[
        ("", &["apiVersion", "kind", "addedAffinity"]),
        (
            "addedAffinity",
            &["requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"],
        ),
    ];
    Some(match plugin {
        "NodeResourcesFit" => FIT,
        "PodTopologySpread" => SPREAD,
        "NodeAffinity" => AFFINITY,
        "NodeResourcesBalancedAllocation" => {
            &[("", &["apiVersion", "kind", "resources"]), ("resources[]", &["name", "weight"])]
        }
        "InterPodAffinity" => {
            &[("", &["apiVersion", "kind", "hardPodAffinityWeight", "ignorePreferredTermsOfExistingPods"])]
        }
        "DefaultPreemption" => {
            &[("", &["apiVersion", "kind", "minCandidateNodesPercentage", "minCandidateNodesAbsolute"])]
        }
        "VolumeBinding" => &[("", &["apiVersion", "kind", "bindTimeoutSeconds", "shape"])],
        "DynamicResources" => &[("", &["apiVersion", "kind", "filterTimeout", "bindingTimeout"])],
        _ => return None,
    })
}

/// The unknown fields of a value, in the form of upstream's decoder.
pub(super) fn unknown(value: &Value, known: FieldTable) -> Vec<String> {
    let mut found = Vec::new();
    walk(value, String::new(), "", known, &mut found);
    found
}

fn walk(value: &Value, at: String, pattern: &str, known: FieldTable, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let Some((_, names)) = known.iter().find(|(known, _)| *known == pattern) else { return };
            for (name, value) in fields {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                if !names.contains(&name.as_str()) {
                    found.push(format!("unknown field {at:?}"));
                    continue;
                }
                let name = if pattern == "profiles[].plugins" { "*" } else { name };
                let pattern = if pattern.is_empty() { name.to_owned() } else { format!("{pattern}.{name}") };
                walk(value, at, &pattern, known, found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, format!("{at}[{index}]"), &format!("{pattern}[]"), known, found);
            }
        }
        _ => {}
    }
}
