//! What crates may depend on: components don't know each other, and each crate has a reason to be one.

use super::{check, crates, dependencies, packages, top_folder};

/// What a crate must never depend on, of ours and of others: the reason why it is a crate of its own.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "machinery/api",
        &["tokio", "kube", "machinery-env", "machinery-rules", "pem", "rand", "x509-parser"],
        "pure vocabulary: no tokio, no client, no clock, no certificates",
    ),
    (
        "machinery/rules",
        &["tokio", "kube", "k8s-openapi", "hyper", "machinery-env", "machinery-client", "machinery-serve", "rand"],
        "rules that components apply alike: values in, values out",
    ),
    (
        "machinery/options",
        &["tokio", "kube", "hyper", "machinery-env", "machinery-client", "machinery-serve"],
        "definitions of options and what is made of them: values in, values out",
    ),
    (
        "machinery/roles",
        &[
            "kube",
            "k8s-openapi",
            "hyper",
            "axum",
            "machinery-api",
            "machinery-client",
            "machinery-serve",
            "apiserver",
            "scheduler",
            "controllers",
            "kubelet",
            "proxy",
        ],
        "how a process of roles starts and ends: no HTTP, no client, no component",
    ),
    ("machinery/env", &["kube", "hyper", "machinery-api"], "the ground of all that needs time or chance"),
    ("machinery/client", &["machinery-serve", "hyper"], "clients of the API open no listener"),
    ("machinery/serve", &["machinery-client", "kube"], "a server needs no cluster"),
    (
        "machinery/streaming",
        &["hyper", "axum", "kube", "machinery-serve", "machinery-client"],
        "protocols of an upgraded connection, however it was upgraded",
    ),
    (
        "apiserver/schema",
        &[
            "tokio",
            "hyper",
            "machinery-env",
            "machinery-client",
            "machinery-serve",
            "apiserver-resources",
            "apiserver-storage",
        ],
        "bodies, patches and apply: values and types in, values out",
    ),
    (
        "apiserver/resources",
        &["tokio", "hyper", "machinery-env", "machinery-client", "machinery-serve", "apiserver-storage", "apiserver"],
        "what kinds mean: no tokio, no clock, no HTTP, no store",
    ),
    (
        "apiserver/cel",
        &[
            "tokio",
            "hyper",
            "machinery-env",
            "machinery-client",
            "machinery-serve",
            "apiserver-resources",
            "apiserver-storage",
            "apiserver",
        ],
        "a language: no tokio, no clock, nothing of the server",
    ),
    (
        "apiserver/storage",
        &["hyper", "machinery-client", "kube", "apiserver"],
        "the store and its cache: no HTTP, no client",
    ),
    (
        "apiserver/auth",
        &["axum", "hyper", "machinery-serve", "machinery-client", "kube", "apiserver"],
        "who a user is and what the user may do: no HTTP server or client, no socket",
    ),
    (
        "apiserver/admission",
        &["axum", "http", "hyper", "machinery-serve", "machinery-client", "kube", "sled", "apiserver"],
        "what may be written: no HTTP, no socket, no server",
    ),
    (
        "apiserver/webhook",
        &["axum", "machinery-client", "kube", "apiserver-storage", "apiserver-admission", "apiserver"],
        "calls of webhooks: no HTTP server, no store, no admission",
    ),
    (
        "apiserver/catalog",
        &["tokio", "hyper", "axum", "http", "machinery-env", "machinery-serve", "apiserver-storage", "apiserver"],
        "served resources and their documents: no tokio, no clock, no HTTP, no store",
    ),
    ("apiserver/server", &["sled", "machinery-client", "kube"], "it is the server, others are its clients"),
    ("wasm-node/runtime", &["machinery-client", "kube", "k8s-openapi"], "it runs modules, and knows no cluster"),
    (
        "clients/rust",
        &["kube", "k8s-openapi", "machinery-serve"],
        "a host application's: an address is all that it takes",
    ),
    ("wasm-node/registry", &["machinery-client", "kube", "k8s-openapi"], "any OCI client may use it"),
    ("scheduler", &["axum", "machinery-serve", "machinery-streaming"], "a client of the API: no listener"),
    (
        "controllers",
        &["hyper", "axum", "machinery-serve", "machinery-streaming"],
        "pure decisions over the driver of machinery-client: no listener",
    ),
    (
        "wasm-node/runtime-api",
        &["kube", "k8s-openapi", "machinery-client", "wasm-runtime", "kubelet"],
        "the interface between kubelet and runtime: no Kubernetes client, neither of the two",
    ),
    (
        "wasm-node/keyvalue",
        &[
            "kube",
            "k8s-openapi",
            "machinery-client",
            "machinery-serve",
            "hyper",
            "wasmtime",
            "wasm-runtime",
            "kubelet",
            "images",
        ],
        "stores of guests' data: no guests, no engine, no cluster",
    ),
    (
        "wasm-node/sockets",
        &["kube", "k8s-openapi", "machinery-client", "hyper", "wasmtime", "wasm-runtime", "kubelet", "images", "proxy"],
        "sockets over the pod network: no engine, no guests, no socket of the host",
    ),
    (
        "wasm-node/images",
        &["kube", "k8s-openapi", "machinery-client", "machinery-serve", "machinery-streaming", "kubelet", "hyper"],
        "images by name: no Kubernetes objects, no client, no pods",
    ),
    (
        "wasm-node/kubelet",
        &["wasmtime", "wasmparser", "wiggle", "wasm-runtime", "flate2", "tar", "zstd", "http-auth"],
        "pods over runtime-api and images: no engine, no layers, no registry protocol",
    ),
    ("proxy", &["axum", "machinery-streaming", "runtime-api"], "the data plane: no API of its own, no runtime"),
    (
        "dashboard/server",
        &["apiserver-storage", "scheduler", "controllers", "kubelet", "runtime-api", "wasm-runtime", "images", "proxy"],
        "a page and its proxy: a client of the API, with no store and no node",
    ),
    (
        "tools/cluster",
        &[
            "axum",
            "machinery-serve",
            "apiserver",
            "apiserver-storage",
            "scheduler",
            "controllers",
            "kubelet",
            "images",
            "oci-registry",
            "wasm-runtime",
            "proxy",
        ],
        "how a verb reaches a cluster: a client of the API, and no component",
    ),
    (
        "tools/command",
        &[
            "kube",
            "hyper",
            "machinery-api",
            "machinery-client",
            "machinery-serve",
            "apiserver",
            "apiserver-storage",
            "scheduler",
            "controllers",
            "kubelet",
            "images",
            "wasm-runtime",
            "proxy",
        ],
        "what all verbs share: a terminal, a folder and flags, and nothing of a cluster",
    ),
    (
        "tools/development",
        &[
            "axum",
            "machinery-serve",
            "apiserver",
            "apiserver-admission",
            "apiserver-auth",
            "apiserver-resources",
            "apiserver-storage",
            "scheduler",
            "controllers",
            "kubelet",
            "proxy",
        ],
        "verbs of a developer: clients of the API server and of registries, with a runtime to read modules",
    ),
    (
        "tools/compiled-modules",
        &["kube", "k8s-openapi", "machinery-client", "apiserver", "scheduler", "controllers", "kubelet", "images"],
        "engine and tunnel alone: no Kubernetes object, no client",
    ),
    (
        "tools/diagnosis",
        &["axum", "apiserver", "apiserver-storage", "apiserver-admission", "images", "oci-registry", "proxy"],
        "it reads a cluster and a machine and changes neither: no store, no server, no data plane",
    ),
    (
        "tools/joining",
        &["axum", "apiserver", "scheduler", "controllers", "runtime-api", "wasm-runtime", "images", "kubelet", "proxy"],
        "how a machine gets its credentials, and not what it does with them: no server, no node",
    ),
    (
        "tools/scheduler-plugins",
        &["kube", "k8s-openapi", "machinery-client", "apiserver", "controllers", "kubelet", "images", "proxy"],
        "scheduler and engine alone: no client of its own, no pods",
    ),
    (
        "tools/takeover",
        &[
            "kube",
            "machinery-client",
            "apiserver",
            "scheduler",
            "controllers",
            "kubelet",
            "images",
            "wasm-runtime",
            "proxy",
        ],
        "how sockets pass from one process to the next: no component",
    ),
    (
        "tools/telemetry",
        &[
            "kube",
            "machinery-client",
            "apiserver",
            "apiserver-storage",
            "scheduler",
            "controllers",
            "kubelet",
            "images",
            "wasm-runtime",
            "proxy",
        ],
        "what a process reports of itself: no component, and nothing of a cluster",
    ),
];

const COMPONENTS: &[&str] = &["apiserver", "scheduler", "controllers", "wasm-node", "proxy"];
/// Tools around the components, beside `src`: they may use components, and only `src` uses them.
const TOOLS: &[&str] = &["dashboard", "tools"];

#[test]
fn components_do_not_know_each_other() {
    let mut problems = Vec::new();
    let packages = packages();
    for folder in crates() {
        let own = top_folder(&folder);
        for other in dependencies(&folder) {
            let Some(home) = packages.get(&other).map(|home| top_folder(home)).filter(|home| *home != own) else {
                continue;
            };
            let down = TOOLS.contains(&own) && !TOOLS.contains(&home);
            if !down && (COMPONENTS.contains(&home) || TOOLS.contains(&home) || own == "machinery") {
                problems.push(format!("{folder} depends on {other}: dependencies point down only, to machinery"));
            }
        }
    }
    check(&problems);
}

#[test]
fn crates_have_no_forbidden_dependency() {
    let mut problems = Vec::new();
    for (folder, forbidden, why) in FORBIDDEN {
        for name in dependencies(folder).iter().filter(|name| forbidden.contains(&name.as_str())) {
            problems.push(format!("{folder} depends on {name}: {why}"));
        }
    }
    check(&problems);
}
