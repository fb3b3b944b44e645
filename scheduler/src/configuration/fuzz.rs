//! Fuzz target of configuration files: a broken file is rejected, and a valid one yields profiles that decide.

use bolero::check;

use super::Configuration;

/// Parts of a file, and fragments that break it.
const PIECES: [&str; 23] = [
    "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n",
    "profiles:\n",
    "- schedulerName: a\n",
    "- schedulerName: b\n",
    "  plugins:\n",
    "    multiPoint: {enabled: [{name: NodeName, weight: -1}], disabled: [{name: \"*\"}]}\n",
    "    score: {enabled: [{name: NodeAffinity, weight: 2147483647}]}\n",
    "    filter: {disabled: [{name: NodeAffinity}]}\n",
    "    queueSort: {enabled: [{name: PrioritySort}]}\n",
    "  pluginConfig:\n",
    "  - {name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 5}]}}}}\n",
    "  - {name: PodTopologySpread, args: {defaultingType: List, defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: DoNotSchedule}]}}\n",
    "  - {name: NodeAffinity, args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}}\n",
    "  - {name: InterPodAffinity, args: 7}\n",
    "  - {name: Mine, args: {apiVersion: scheduler.coracle.dev/v1, kind: WasmPluginArgs, module: /m, timeout: 9999999999999h, memory: 1e999, fuel: -1}}\n",
    "percentageOfNodesToScore: 99999999999999\n",
    "podInitialBackoffSeconds: 9223372036854775807\npodMaxBackoffSeconds: 9223372036854775807\n",
    "extenders: [{urlPrefix: 'http://a', weight: 9223372036854775807, prioritizeVerb: p, httpTimeout: 9999999999999h, managedResources: [{name: a/b}]}]\n",
    "- &a [*a, *a]\n",
    "  ? {} : []\n",
    "\t",
    "\u{0}",
    "profiles: {}\n",
];

#[test]
fn a_broken_file_is_refused() {
    check!().with_type::<Vec<u8>>().for_each(|order| {
        let text: String = order.iter().take(40).map(|at| PIECES[usize::from(*at) % PIECES.len()]).collect();
        match Configuration::parse(&text) {
            Ok(Configuration { profiles, .. }) => assert!(!profiles.is_empty()),
            Err(why) => assert!(!why.is_empty()),
        }
    });
}
