//! Plugins of a profile by extension point: upstream's defaults, the plugins that the file enables and disables at each
//! point, and `multiPoint`, which stands for all points.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::errors::{Errors, Path};
use super::{args, wasm};
use crate::plugins::{Args, PLUGINS, Plugin, Points, Profile};
use crate::wasm::{SCORE_MAX, WasmPlugin};

/// Upstream's extension points, with the names of their interfaces.
const POINTS: [(&str, &str); 12] = [
    ("preFilter", "PreFilterPlugin"),
    ("filter", "FilterPlugin"),
    ("postFilter", "PostFilterPlugin"),
    ("reserve", "ReservePlugin"),
    ("preScore", "PreScorePlugin"),
    ("score", "ScorePlugin"),
    ("preBind", "PreBindPlugin"),
    ("bind", "BindPlugin"),
    ("postBind", "PostBindPlugin"),
    ("permit", "PermitPlugin"),
    ("preEnqueue", "PreEnqueuePlugin"),
    ("queueSort", "QueueSortPlugin"),
];

const FILTERS: &[&str] = &["preFilter", "filter"];
const SCORES: &[&str] = &["preFilter", "filter", "preScore", "score"];

/// Upstream's plugins, with the weight of their score and their extension points, in the default order.
const UPSTREAM: &[(&str, i64, &[&str])] = &[
    ("SchedulingGates", 0, &["preEnqueue"]),
    ("PrioritySort", 0, &["queueSort"]),
    ("NodeUnschedulable", 0, &["filter"]),
    ("NodeName", 0, &["filter"]),
    ("TaintToleration", 3, &["filter", "preScore", "score"]),
    ("NodeAffinity", 2, SCORES),
    ("NodePorts", 0, FILTERS),
    ("NodeResourcesFit", 1, SCORES),
    ("VolumeRestrictions", 0, FILTERS),
    ("NodeVolumeLimits", 0, FILTERS),
    ("VolumeBinding", 0, &["preFilter", "filter", "reserve", "preScore", "score", "preBind"]),
    ("VolumeZone", 0, FILTERS),
    ("PodTopologySpread", 2, SCORES),
    ("InterPodAffinity", 2, SCORES),
    ("DynamicResources", 2, &["preEnqueue", "preFilter", "filter", "postFilter", "score", "reserve", "preBind"]),
    ("DefaultPreemption", 0, &["preEnqueue", "postFilter"]),
    ("NodeResourcesBalancedAllocation", 1, &["preScore", "score"]),
    ("ImageLocality", 1, &["score"]),
    ("DefaultBinder", 0, &["bind"]),
];

/// Plugins that upstream has removed.
const REMOVED: &[&str] = &["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    #[serde(default)]
    plugins: Option<BTreeMap<String, PluginSet>>,
    #[serde(default)]
    plugin_config: Option<Vec<PluginConfig>>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<PluginRef>,
    #[serde(default)]
    disabled: Vec<PluginRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct PluginRef {
    #[serde(default)]
    name: String,
    weight: Option<i32>,
}

#[derive(Debug, Deserialize)]
struct PluginConfig {
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Value,
}

/// The name of a profile and the arguments of its plugins.
#[derive(Debug, Default)]
pub(super) struct ProfileArgs {
    name: String,
    pub(super) args: Args,
    /// Plugins that the profile's arguments define.
    wasm: Vec<WasmPlugin>,
}

/// As upstream: an only profile without a name gets the default name.
fn name_of(profile: &ProfileFile, alone: bool) -> &str {
    let usual = if alone { "default-scheduler" } else { "" };
    profile.scheduler_name.as_deref().unwrap_or(usual)
}

/// Validates the profiles, and reads the arguments of their plugins.
pub(super) fn check(profiles: &[ProfileFile], errors: &mut Errors) -> Vec<ProfileArgs> {
    let root = Path::new("profiles");
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut made = Vec::new();
    for (at, profile) in profiles.iter().enumerate() {
        let path = root.index(at);
        let name = name_of(profile, profiles.len() == 1);
        if name.is_empty() {
            errors.required(&path.child("schedulerName"), "");
        }
        errors.percentage(&path.child("percentageOfNodesToScore"), profile.percentage_of_nodes_to_score);
        for (point, set) in profile.plugins.iter().flatten() {
            let enabled = path.child("plugins").child(point).child("enabled");
            for (nth, plugin) in set.enabled.iter().enumerate().filter(|(_, p)| REMOVED.contains(&p.name.as_str())) {
                let version = "was invalid in version \"kubescheduler.config.k8s.io/v1\" (KubeSchedulerConfiguration is version \"kubescheduler.config.k8s.io/v1\")";
                errors.invalid_text(&enabled.index(nth), &plugin.name, version);
            }
        }
        let mut profile_args = ProfileArgs { name: name.to_owned(), ..ProfileArgs::default() };
        let mut seen = BTreeSet::new();
        for (nth, config) in profile.plugin_config.iter().flatten().enumerate() {
            let path = path.child("pluginConfig").index(nth);
            if !seen.insert(config.name.as_str()) {
                errors.duplicate(&path, &config.name);
                continue;
            }
            if wasm::is_meant(&config.args) {
                profile_args.read_wasm(profile, config, (at, nth), &path, errors);
                continue;
            }
            args::read(&config.name, &config.args, (at, nth), &path.child("args"), &mut profile_args.args, errors);
        }
        if let Some(first) = names.get(name).filter(|_| !name.is_empty()) {
            errors.duplicate(&path.child("schedulerName"), &root.index(*first).child("schedulerName").to_string());
        }
        names.insert(name, at);
        made.push(profile_args);
    }
    let sort = |profile: &ProfileFile| {
        profile.plugins.as_ref().and_then(|plugins| plugins.get("queueSort").cloned()).unwrap_or_default()
    };
    let first = profiles.first().map(sort).unwrap_or_default();
    if first.enabled.len() > 1 {
        let path = root.index(0).child("plugins").child("queueSort").child("Enabled");
        errors.invalid(&path, first.enabled.len(), "only one queue sort plugin can be enabled");
    }
    for (at, _) in profiles.iter().enumerate().skip(1).filter(|(_, profile)| sort(profile) != first) {
        let path = root.index(at).child("plugins").child("queueSort");
        errors.invalid(&path, "{}", "must be the same for all profiles");
    }
    made
}

impl ProfileArgs {
    fn read_wasm(
        &mut self,
        of: &ProfileFile,
        config: &PluginConfig,
        at: (usize, usize),
        path: &Path,
        errors: &mut Errors,
    ) {
        if upstream(&config.name).is_some() {
            return errors.invalid_text(path, &config.name, "this name is another plugin's");
        }
        if self.wasm.len() >= wasm::PLUGINS_MAX {
            return errors
                .forbidden(path, &format!("a profile has at most {} plugins of this kind", wasm::PLUGINS_MAX));
        }
        // Arguments of a plugin that the profile doesn't enable are an error.
        let points = of
            .plugins
            .iter()
            .flatten()
            .filter(|(point, _)| *point == "multiPoint" || wasm::POINTS.contains(&point.as_str()));
        if !points.flat_map(|(_, set)| &set.enabled).any(|plugin| plugin.name == config.name) {
            let why = "the profile enables it neither at filter nor at score nor at multiPoint";
            errors.invalid_text(path, &config.name, why);
        }
        self.wasm.extend(wasm::read(&config.name, &config.args, &args::place(at), &path.child("args"), errors));
    }

    /// A plugin's static name, and its points.
    fn known(&self, name: &str) -> Option<(&'static str, &'static [&'static str])> {
        let own = || self.wasm.iter().find(|plugin| plugin.name == name).map(|plugin| (plugin.name, wasm::POINTS));
        upstream(name).map(|(name, _, points)| (*name, *points)).or_else(own)
    }

    /// The enabled WebAssembly plugins of the profile, in the order of their filters, then of their scores.
    fn taking_part(&self, filters: &[(&str, i64)], scores: &[(&str, i64)]) -> Vec<Arc<WasmPlugin>> {
        let mut made: Vec<WasmPlugin> = Vec::new();
        for (name, _) in filters.iter().chain(scores) {
            let Some(plugin) = self.wasm.iter().find(|plugin| plugin.name == *name) else { continue };
            if made.iter().any(|known| known.name == plugin.name) {
                continue;
            }
            let weight = scores.iter().find(|(of, _)| of == name).map(|(_, weight)| *weight);
            made.push(WasmPlugin { filters: filters.iter().any(|(of, _)| of == name), weight, ..plugin.clone() });
        }
        made.into_iter().map(Arc::new).collect()
    }
}

fn upstream(name: &str) -> Option<&'static (&'static str, i64, &'static [&'static str])> {
    UPSTREAM.iter().find(|(known, ..)| *known == name)
}

impl ProfileFile {
    /// The profile. `percentage` is the default of all profiles for `percentageOfNodesToScore`.
    pub(super) fn made(&self, profile_args: ProfileArgs, percentage: Option<i32>) -> Result<Profile, String> {
        let name = &profile_args.name;
        let wrap = |error: String| format!("creating profile for scheduler name {name}: {error}");
        let mut lists: BTreeMap<&str, Vec<(&str, i64)>> = BTreeMap::new();
        let multi = self.multi_point();
        for (point, interface) in POINTS {
            lists.insert(point, self.list(point, interface, &multi, &profile_args).map_err(wrap)?);
        }
        consistent(&lists).map_err(wrap)?;
        if overflows(&lists["score"]) {
            return Err(wrap("score plugins: total score of Score plugins could overflow".into()));
        }
        let sorts = lists.get("queueSort").map_or(0, Vec::len);
        if sorts != 1 {
            return Err(wrap(format!(
                "only one queue sort plugin required for profile with scheduler name {name:?}, but got {sorts}"
            )));
        }
        if lists.get("bind").is_none_or(Vec::is_empty) {
            return Err(wrap(format!("at least one bind plugin is needed for profile with scheduler name {name:?}")));
        }
        let at = |point: &str| -> Vec<(&'static Plugin, i64)> {
            let names = lists.get(point).into_iter().flatten();
            let row = |name: &str| PLUGINS.iter().find(|row| row.name == name);
            names.filter_map(|(name, weight)| Some((row(name)?, *weight))).collect()
        };
        let points = Points::new([
            at("preEnqueue"),
            at("queueSort"),
            at("preFilter"),
            at("filter"),
            at("postFilter"),
            at("score"),
            at("reserve"),
            at("preBind"),
        ]);
        let plugins = PLUGINS.iter().filter(|row| points.has(row.name)).map(|row| (row, row.weight)).collect();
        let percentage = self.percentage_of_nodes_to_score.or(percentage);
        let wasm = profile_args.taking_part(&lists["filter"], &lists["score"]);
        Ok(Profile {
            scheduler_name: profile_args.name,
            plugins,
            args: Arc::new(profile_args.args),
            feasible_percent: percentage.and_then(|percent| usize::try_from(percent).ok()).filter(|p| *p > 0),
            points: Some(Arc::new(points)),
            wasm,
        })
    }

    fn set(&self, point: &str) -> PluginSet {
        self.plugins.as_ref().and_then(|plugins| plugins.get(point).cloned()).unwrap_or_default()
    }

    /// The plugins of `multiPoint` with the weights of their scores: the defaults in their order, then the file's
    /// others.
    fn multi_point(&self) -> Vec<(String, i64)> {
        let PluginSet { enabled, disabled } = self.set("multiPoint");
        let off = |name: &str| disabled.iter().any(|plugin| plugin.name == name || plugin.name == "*");
        let weight = |plugin: &PluginRef| plugin.weight.unwrap_or(0).into();
        let mut all: Vec<(String, i64)> = Vec::new();
        let mut replaced = BTreeSet::new();
        for (name, usual, _) in UPSTREAM.iter().filter(|(name, ..)| !off(name)) {
            let given = enabled.iter().rposition(|plugin| plugin.name == *name);
            replaced.extend(given);
            all.push(((*name).to_owned(), given.map_or(*usual, |at| weight(&enabled[at]))));
        }
        let others = enabled.iter().enumerate().filter(|(at, _)| !replaced.contains(at));
        all.extend(others.map(|(_, plugin)| (plugin.name.clone(), weight(plugin))));
        all
    }

    /// The plugins of a point, in order: those named at the point and in `multiPoint`, those of `multiPoint` alone, and
    /// those named at the point alone.
    fn list(
        &self,
        point: &'static str,
        interface: &str,
        multi: &[(String, i64)],
        profile_args: &ProfileArgs,
    ) -> Result<Vec<(&'static str, i64)>, String> {
        let PluginSet { enabled, disabled } = self.set(point);
        let known = |name: &str| profile_args.known(name).ok_or_else(|| format!("{interface} {name:?} does not exist"));
        let mut own: Vec<(&'static str, i64)> = Vec::new();
        for plugin in &enabled {
            let (name, points) = known(&plugin.name)?;
            if !points.contains(&point) {
                return Err(format!("plugin {name:?} does not extend {interface} plugin"));
            }
            if own.iter().any(|(other, _)| *other == name) {
                return Err(format!("plugin {name:?} already registered as {interface:?}"));
            }
            own.push((name, weight_or_one(plugin.weight.unwrap_or(0).into())));
        }
        if disabled.iter().any(|plugin| plugin.name == "*") {
            return Ok(own);
        }
        let mut of_all: Vec<(&'static str, i64)> = Vec::new();
        let mut both = BTreeSet::new();
        for (name, weight) in multi {
            let (name, points) = known(name)?;
            if !points.contains(&point) || disabled.iter().any(|plugin| plugin.name == name) {
                continue;
            }
            if own.iter().any(|(other, _)| *other == name) {
                both.insert(name);
            } else if of_all.iter().any(|(other, _)| *other == name) {
                return Err(format!("plugin {name:?} already registered as {interface:?}"));
            } else {
                of_all.push((name, weight_or_one(*weight)));
            }
        }
        let (first, last): (Vec<_>, Vec<_>) = own.into_iter().partition(|(name, _)| both.contains(name));
        Ok(first.into_iter().chain(of_all).chain(last).collect())
    }
}

/// A weight of zero means one, as upstream.
const fn weight_or_one(weight: i64) -> i64 {
    if weight == 0 { 1 } else { weight }
}

/// Upstream's overflow check of the sum of all scores. As upstream, it also fails if negative weights bring the sum
/// below zero.
fn overflows(scores: &[(&str, i64)]) -> bool {
    let mut total: i64 = 0;
    scores.iter().any(|(_, weight)| {
        let most = weight.wrapping_mul(SCORE_MAX);
        let over = most > i64::MAX.wrapping_sub(total);
        total = total.wrapping_add(most);
        over
    })
}

/// A filter is created by `preFilter`, and a score by `preScore`: a plugin needs the earlier point for the later one.
/// The reverse is valid, as in the example of upstream's documentation.
fn consistent(lists: &BTreeMap<&str, Vec<(&str, i64)>>) -> Result<(), String> {
    for (before, point) in [("preFilter", "filter"), ("preScore", "score")] {
        let has =
            |point: &str, name: &str| lists.get(point).is_some_and(|list| list.iter().any(|(other, _)| *other == name));
        let both = UPSTREAM.iter().filter(|(.., points)| points.contains(&before) && points.contains(&point));
        for (name, ..) in both {
            if has(point, name) && !has(before, name) {
                return Err(format!("plugin {name:?} can't be enabled at {point} and not at {before}"));
            }
        }
    }
    Ok(())
}
