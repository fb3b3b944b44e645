//! What OpenAPI says of types and the table of types doesn't: the order in which Go declares required fields, where that
//! isn't the alphabet's, defaults that are zero, and which fields exclude each other.

/// Types and their required fields, in order.
pub(super) const REQUIRED: &[(&str, &str)] = &[
    ("io.k8s.api.apps.v1.DeploymentCondition", "type status"),
    ("io.k8s.api.apps.v1.ReplicaSetCondition", "type status"),
    ("io.k8s.api.authorization.v1.SubjectRulesReviewStatus", "resourceRules nonResourceRules incomplete"),
    ("io.k8s.api.batch.v1.JobCondition", "type status"),
    ("io.k8s.api.core.v1.AttachedVolume", "name devicePath"),
    ("io.k8s.api.core.v1.ConfigMapNodeConfigSource", "namespace name kubeletConfigKey"),
    ("io.k8s.api.core.v1.ContainerExtendedResourceRequest", "containerName resourceName requestName"),
    ("io.k8s.api.core.v1.ContainerStatus", "name ready restartCount image imageID"),
    ("io.k8s.api.core.v1.Event", "metadata involvedObject"),
    ("io.k8s.api.core.v1.FileKeySelector", "volumeName path key"),
    ("io.k8s.api.core.v1.ISCSIVolumeSource", "targetPortal iqn lun"),
    ("io.k8s.api.core.v1.LinuxContainerUser", "uid gid"),
    ("io.k8s.api.core.v1.NFSVolumeSource", "server path"),
    ("io.k8s.api.core.v1.NamespaceCondition", "type status"),
    ("io.k8s.api.core.v1.NodeAddress", "type address"),
    ("io.k8s.api.core.v1.NodeCondition", "type status"),
    (
        "io.k8s.api.core.v1.NodeSystemInfo",
        "machineID systemUUID bootID kernelVersion osImage containerRuntimeVersion kubeletVersion kubeProxyVersion operatingSystem architecture",
    ),
    ("io.k8s.api.core.v1.PodCertificateProjection", "signerName keyType"),
    ("io.k8s.api.core.v1.PodCondition", "type status"),
    ("io.k8s.api.core.v1.PreferredSchedulingTerm", "weight preference"),
    ("io.k8s.api.core.v1.RBDVolumeSource", "monitors image"),
    ("io.k8s.api.core.v1.ScaleIOVolumeSource", "gateway system secretRef"),
    ("io.k8s.api.core.v1.Taint", "key effect"),
    ("io.k8s.api.core.v1.VolumeDevice", "name devicePath"),
    ("io.k8s.api.core.v1.VolumeMount", "name mountPath"),
    ("io.k8s.api.core.v1.VolumeMountStatus", "name mountPath"),
    ("io.k8s.api.core.v1.WeightedPodAffinityTerm", "weight podAffinityTerm"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIResource", "name singularName namespaced kind verbs"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Condition", "type status lastTransitionTime reason message"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent", "type object"),
];

/// Types and their `x-kubernetes-unions`.
pub(super) const UNIONS: &[(&str, &str)] = &[
    (
        "io.k8s.api.core.v1.AppArmorProfile",
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"}}]"#,
    ),
    ("io.k8s.api.core.v1.PodSchedulingGroup", r#"[{"fields-to-discriminateBy": {"podGroupName": "PodGroupName"}}]"#),
    (
        "io.k8s.api.core.v1.SeccompProfile",
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"}}]"#,
    ),
];

/// Fields that may be left out and have Go's zero as their declared default.
pub(super) const DEFAULTS: &[(&str, &str, &str)] = &[
    ("io.k8s.api.autoscaling.v1.ScaleSpec", "replicas", "0"),
    ("io.k8s.api.core.v1.ConfigMapEnvSource", "name", "\"\""),
    ("io.k8s.api.core.v1.ConfigMapKeySelector", "name", "\"\""),
    ("io.k8s.api.core.v1.ConfigMapProjection", "name", "\"\""),
    ("io.k8s.api.core.v1.ConfigMapVolumeSource", "name", "\"\""),
    ("io.k8s.api.core.v1.GRPCAction", "service", "\"\""),
    ("io.k8s.api.core.v1.LocalObjectReference", "name", "\"\""),
    ("io.k8s.api.core.v1.SecretEnvSource", "name", "\"\""),
    ("io.k8s.api.core.v1.SecretKeySelector", "name", "\"\""),
    ("io.k8s.api.core.v1.SecretProjection", "name", "\"\""),
];
