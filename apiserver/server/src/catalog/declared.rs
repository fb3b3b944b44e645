//! What OpenAPI says of types and the table of types doesn't: the order in which Go declares required fields, where that
//! isn't the alphabet's, defaults that are zero, and which fields exclude each other.

/// Types and their required fields, in order.
pub(super) const REQUIRED: &[(&str, &str)] = &[
    ("io.k8s.api.admissionregistration.v1.MatchCondition", "name expression"),
    ("io.k8s.api.admissionregistration.v1.MutatingWebhook", "name clientConfig sideEffects admissionReviewVersions"),
    ("io.k8s.api.admissionregistration.v1.ServiceReference", "namespace name"),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhook", "name clientConfig sideEffects admissionReviewVersions"),
    ("io.k8s.api.admissionregistration.v1.Variable", "name expression"),
    ("io.k8s.api.apps.v1.DaemonSetCondition", "type status"),
    (
        "io.k8s.api.apps.v1.DaemonSetStatus",
        "currentNumberScheduled numberMisscheduled desiredNumberScheduled numberReady",
    ),
    ("io.k8s.api.apps.v1.DeploymentCondition", "type status"),
    ("io.k8s.api.apps.v1.ReplicaSetCondition", "type status"),
    ("io.k8s.api.apps.v1.StatefulSetCondition", "type status"),
    ("io.k8s.api.authorization.v1.SubjectRulesReviewStatus", "resourceRules nonResourceRules incomplete"),
    ("io.k8s.api.autoscaling.v1.HorizontalPodAutoscalerSpec", "scaleTargetRef maxReplicas"),
    ("io.k8s.api.autoscaling.v2.ContainerResourceMetricSource", "name target container"),
    ("io.k8s.api.autoscaling.v2.ContainerResourceMetricStatus", "name current container"),
    ("io.k8s.api.autoscaling.v2.ExternalMetricStatus", "metric current"),
    ("io.k8s.api.autoscaling.v2.HPAScalingPolicy", "type value periodSeconds"),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerCondition", "type status"),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec", "scaleTargetRef maxReplicas"),
    ("io.k8s.api.autoscaling.v2.ObjectMetricSource", "describedObject target metric"),
    ("io.k8s.api.autoscaling.v2.ObjectMetricStatus", "metric current describedObject"),
    ("io.k8s.api.autoscaling.v2.PodsMetricStatus", "metric current"),
    ("io.k8s.api.autoscaling.v2.ResourceMetricStatus", "name current"),
    ("io.k8s.api.batch.v1.CronJobSpec", "schedule jobTemplate"),
    ("io.k8s.api.batch.v1.JobCondition", "type status"),
    ("io.k8s.api.certificates.v1.CertificateSigningRequestCondition", "type status"),
    ("io.k8s.api.core.v1.AttachedVolume", "name devicePath"),
    ("io.k8s.api.core.v1.ComponentCondition", "type status"),
    ("io.k8s.api.core.v1.ConfigMapNodeConfigSource", "namespace name kubeletConfigKey"),
    ("io.k8s.api.core.v1.ContainerExtendedResourceRequest", "containerName resourceName requestName"),
    ("io.k8s.api.core.v1.ContainerStatus", "name ready restartCount image imageID"),
    ("io.k8s.api.core.v1.Event", "metadata involvedObject"),
    ("io.k8s.api.core.v1.FileKeySelector", "volumeName path key"),
    ("io.k8s.api.core.v1.ISCSIPersistentVolumeSource", "targetPortal iqn lun"),
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
    ("io.k8s.api.core.v1.PersistentVolumeClaimCondition", "type status"),
    ("io.k8s.api.core.v1.PodCertificateProjection", "signerName keyType"),
    ("io.k8s.api.core.v1.PodCondition", "type status"),
    ("io.k8s.api.core.v1.PreferredSchedulingTerm", "weight preference"),
    ("io.k8s.api.core.v1.RBDPersistentVolumeSource", "monitors image"),
    ("io.k8s.api.core.v1.RBDVolumeSource", "monitors image"),
    ("io.k8s.api.core.v1.ReplicationControllerCondition", "type status"),
    ("io.k8s.api.core.v1.ScaleIOPersistentVolumeSource", "gateway system secretRef"),
    ("io.k8s.api.core.v1.ScaleIOVolumeSource", "gateway system secretRef"),
    ("io.k8s.api.core.v1.ScopedResourceSelectorRequirement", "scopeName operator"),
    ("io.k8s.api.core.v1.Taint", "key effect"),
    ("io.k8s.api.core.v1.VolumeDevice", "name devicePath"),
    ("io.k8s.api.core.v1.VolumeMount", "name mountPath"),
    ("io.k8s.api.core.v1.VolumeMountStatus", "name mountPath"),
    ("io.k8s.api.core.v1.WeightedPodAffinityTerm", "weight podAffinityTerm"),
    ("io.k8s.api.flowcontrol.v1.NonResourcePolicyRule", "verbs nonResourceURLs"),
    ("io.k8s.api.flowcontrol.v1.ResourcePolicyRule", "verbs apiGroups resources"),
    ("io.k8s.api.flowcontrol.v1.ServiceAccountSubject", "namespace name"),
    ("io.k8s.api.networking.v1.HTTPIngressPath", "pathType backend"),
    ("io.k8s.api.networking.v1.ParentReference", "resource name"),
    ("io.k8s.api.storage.v1.VolumeAttachmentSpec", "attacher source nodeName"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceColumnDefinition", "name type jsonPath"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionCondition", "type status"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionNames", "plural kind"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ServiceReference", "namespace name"),
    ("io.k8s.api.resource.v1.AllocatedDeviceStatus", "driver pool device"),
    ("io.k8s.api.resource.v1.CounterSet", "name counters"),
    ("io.k8s.api.resource.v1.DeviceRequestAllocationResult", "request driver pool device"),
    ("io.k8s.api.resource.v1.DeviceSubRequest", "name deviceClassName"),
    ("io.k8s.api.resource.v1.DeviceTaint", "key effect"),
    ("io.k8s.api.resource.v1.ResourceClaimConsumerReference", "resource name uid"),
    ("io.k8s.api.resource.v1.ResourcePool", "name generation resourceSliceCount"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIResource", "name singularName namespaced kind verbs"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions", "versions serverAddressByClientCIDRs"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Condition", "type status lastTransitionTime reason message"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent", "type object"),
    (
        "io.k8s.apimachinery.pkg.version.Info",
        "major minor gitVersion gitCommit gitTreeState buildDate goVersion compiler platform",
    ),
    ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceCondition", "type status"),
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
    (
        "io.k8s.api.flowcontrol.v1.LimitResponse",
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"queuing": "Queuing"}}]"#,
    ),
    (
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec",
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"exempt": "Exempt", "limited": "Limited"}}]"#,
    ),
    (
        "io.k8s.api.flowcontrol.v1.Subject",
        r#"[{"discriminator": "kind", "fields-to-discriminateBy": {"group": "Group", "serviceAccount": "ServiceAccount", "user": "User"}}]"#,
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
    ("io.k8s.api.core.v1.ReplicationControllerSpec", "minReadySeconds", "0"),
    ("io.k8s.api.core.v1.SecretEnvSource", "name", "\"\""),
    ("io.k8s.api.core.v1.SecretKeySelector", "name", "\"\""),
    ("io.k8s.api.core.v1.SecretProjection", "name", "\"\""),
];

/// What else is said of fields, beside their types.
pub(super) const OTHERS: &[(&str, &str, &str)] = &[
    (
        "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
        "allocatedResourceStatuses",
        r#"{"x-kubernetes-map-type": "granular", "additionalProperties": {"type": "string", "default": "", "enum":
            ["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"]}}"#,
    ),
    ("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef", r#"{"x-kubernetes-map-type": "granular"}"#),
];
