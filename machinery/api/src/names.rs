//! Names of annotations, labels, taints, finalizers and headers that several components share.

/// Annotation prefix `fuel.coracle.dev/<container>`: wasmtime fuel for one run or one request.
pub const FUEL: &str = "fuel.coracle.dev/";
/// Annotation prefix `timeout.coracle.dev/<container>`: wall clock limit to a response's head.
pub const TIMEOUT: &str = "timeout.coracle.dev/";
/// Annotation prefix `concurrency.coracle.dev/<container>`: concurrent requests per pod.
pub const CONCURRENCY: &str = "concurrency.coracle.dev/";
/// Annotation prefix `host.coracle.dev/<container>`: optional host interfaces granted.
pub const HOST: &str = "host.coracle.dev/";
/// Annotation prefix `stop.coracle.dev/<container>`: `grace` lets a command run until its grace period ends.
pub const STOP: &str = "stop.coracle.dev/";
/// Annotation prefix `exec.coracle.dev/<container>`: `deny` forbids exec, cp and attach; `image` limits exec to the
/// image's own commands.
pub const EXEC: &str = "exec.coracle.dev/";
/// Annotation prefix `reuse.coracle.dev/<container>`: reuse of a server's instances, `count=128,idle=1s`.
pub const REUSE: &str = "reuse.coracle.dev/";
/// Annotation prefix `kind.coracle.dev/<container>`: `command` runs a module as a command although it could serve.
pub const KIND: &str = "kind.coracle.dev/";
/// Annotation prefix `imports.coracle.dev/<container>`: allowed imports of the container's module. On a namespace, with
/// `enforce`, `warn` or `audit` as suffix: allowed imports of its pods' modules.
pub const IMPORTS: &str = "imports.coracle.dev/";
/// Annotation of an image's manifest: the module's imports, unless its config has them.
pub const IMPORTS_OF_IMAGE: &str = "dev.coracle.imports";
/// The domain of the annotations above: an unknown one on a pod causes a warning.
pub const ANNOTATIONS_DOMAIN: &str = ".coracle.dev";
/// Node label: the host's real operating system.
pub const HOST_OS: &str = "coracle.dev/host-os";
/// Node annotation: the address of the node's tunnel, `IP:PORT`.
pub const TUNNEL_ADDRESS: &str = "coracle.dev/tunnel";
/// Node annotation: the node exchanges compiled modules with others of the same value, its version and CPU features.
pub const COMPILED_MODULES: &str = "coracle.dev/compiled-modules";
/// Node label: the node's runtime.
pub const RUNTIME: &str = "node.coracle.dev/runtime";
/// Response header with the reason of a response that the node, not the guest, made.
pub const REASON_HEADER: &str = "coracle-reason";
/// Header with a plugin's session, in requests and responses.
pub const SESSION_HEADER: &str = "coracle-session";
/// Label of a local volume: the host name of its node, as in its affinity. A node lists and watches the volumes with its name.
pub const VOLUME_NODE: &str = "coracle.dev/volume-node";
/// The `loadBalancerClass` of Services with an address of the pool; Services without a class get one too.
pub const ADDRESS_POOL_CLASS: &str = "coracle.dev/address-pool";
/// The Service that an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Taint of a node whose machine a provider has yet to describe: kubelets register with it if they are configured with
/// an external provider.
pub const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// Node annotation: the address configured for its kubelet, which the provider's addresses must contain.
pub const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// The host name label of a node.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The ConfigMap in `kube-system` with every address and further name of an API server, present or past: no node gets a
/// serving certificate for one.
pub const API_SERVERS: &str = "coracle-api-servers";
/// Its key: addresses and names, one a line. API servers add theirs; only an administrator removes one.
pub const API_SERVER_ADDRESSES: &str = "addresses";
/// The cluster's DNS domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Issuer and default audience of service account tokens.
pub const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
