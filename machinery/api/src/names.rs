//! Names of annotations, labels, taints and finalizers, each once.

/// Annotation prefix `fuel.coracle.dev/<container>`: wasmtime fuel for one run or one request.
pub const FUEL: &str = "fuel.coracle.dev/";
/// Annotation prefix `timeout.coracle.dev/<container>`: wall clock to a response's head.
pub const TIMEOUT: &str = "timeout.coracle.dev/";
/// Annotation prefix `concurrency.coracle.dev/<container>`: requests at once per pod.
pub const CONCURRENCY: &str = "concurrency.coracle.dev/";
/// Annotation prefix `host.coracle.dev/<container>`: optional host interfaces granted.
pub const HOST: &str = "host.coracle.dev/";
/// Annotation prefix `stop.coracle.dev/<container>`: `grace` lets a command run on until its grace period ends.
pub const STOP: &str = "stop.coracle.dev/";
/// Annotation prefix `exec.coracle.dev/<container>`: `deny` forbids exec, cp and attach; `image` leaves exec the image's own
/// commands.
pub const EXEC: &str = "exec.coracle.dev/";
/// Annotation prefix `reuse.coracle.dev/<container>`: how a server's instances are used again, `count=128,idle=1s`.
pub const REUSE: &str = "reuse.coracle.dev/";
/// Annotation prefix `kind.coracle.dev/<container>`: `command` runs a module that could serve, too.
pub const KIND: &str = "kind.coracle.dev/";
/// Annotation prefix `imports.coracle.dev/<container>`: what the container's module may import. On a namespace, with `enforce`,
/// `warn` or `audit` after it: what the modules of its pods may.
pub const IMPORTS: &str = "imports.coracle.dev/";
/// Annotation of an image's manifest: what its module imports, where its config doesn't say.
pub const IMPORTS_OF_IMAGE: &str = "dev.coracle.imports";
/// The domain whose subdomains name the annotations above: an unknown one on a pod is told, not passed over.
pub const ANNOTATIONS_DOMAIN: &str = ".coracle.dev";
/// Node label: the host's real operating system.
pub const HOST_OS: &str = "coracle.dev/host-os";
/// Node label: what the node runs.
pub const RUNTIME: &str = "node.coracle.dev/runtime";
/// The response header that says why the node, and not the guest, answered.
pub const REASON_HEADER: &str = "coracle-reason";
/// The header that names a plugin's session, in requests and responses.
pub const SESSION_HEADER: &str = "coracle-session";
/// The `loadBalancerClass` of Services that get an address of the pool; those without a class do, too.
pub const ADDRESS_POOL_CLASS: &str = "coracle.dev/address-pool";
/// The Service that an EndpointSlice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The taint of a node of whose machine a provider knows, and didn't say it yet: kubelets register with it where they are told
/// that there is a provider.
pub const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// Annotation of a node: the address that its kubelet was told to use, which the provider's have to have.
pub const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// The host name label of a node.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The cluster's DNS domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Issuer and default audience of service account tokens.
pub const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
