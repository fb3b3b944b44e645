//! Transcripts of controllers' plans: `tests/plans/*.yaml` have objects, a time, a key and the expected plan as text.
//!
//! A story is a list of steps. Each step changes objects, names a controller and a key, and expects a plan, which is
//! then performed: the next step continues from there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use jiff::Timestamp;
use machinery_api::ObjectKey;
use machinery_client::key_of;
use machinery_client::request::PatchType;
use machinery_client::simulate::{Simulation, patched};
use serde::Deserialize;
use serde_json::Value;

use super::{Decision, PlanText, Responses, decide};
use crate::CONTROLLERS;
use crate::table_tests::settings;

/// One file of `tests/plans`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Story {
    /// What the story shows, in one sentence.
    story: String,
    /// The time of the first step.
    now: Timestamp,
    /// The objects before the first step.
    objects: Vec<Value>,
    steps: Vec<StoryStep>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoryStep {
    /// What happens, in one sentence.
    step: String,
    /// Time since the step before, as `90s` or `10m`.
    #[serde(default)]
    after: Option<jiff::SignedDuration>,
    /// New objects; existing ones are merged with these fields.
    #[serde(default)]
    objects: Vec<Value>,
    /// Objects that are gone: `Kind namespace/name`.
    #[serde(default)]
    gone: Vec<String>,
    /// Responses to the requests of the decision.
    #[serde(default)]
    responses: Responses,
    controller: String,
    /// `namespace/name`, or the name of an object without a namespace.
    key: String,
    /// The expected text.
    plan: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/plans")
}

/// The stories by file name, with their text.
fn stories() -> BTreeMap<String, (String, Story)> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let story = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let story = machinery_api::yaml::read(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        (name, (text, story))
    };
    files.map(story).collect()
}

fn key(text: &str) -> ObjectKey {
    match text.split_once('/') {
        Some((namespace, name)) => ObjectKey::new(namespace, name),
        None => ObjectKey::cluster(text),
    }
}

/// Adds an object, or merges its fields into the existing one.
fn put(simulation: &mut Simulation, object: Value) {
    let kind = simulation.kind_of(&object);
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let known = simulation.view.object(&kind, &ObjectKey::new(text("namespace"), text("name")));
    match known.map(|known| known.to_value()) {
        Some(known) => simulation.write(&kind, patched(&known, PatchType::Merge, &object).unwrap()),
        None => drop(simulation.create(&kind, object)),
    }
}

fn remove(simulation: &mut Simulation, step: &str, name: &str) {
    let (kind, name) = name.split_once(' ').unwrap();
    let kinds: Vec<_> = simulation.view.kinds().filter(|known| known.kind == kind).cloned().collect();
    let all: Vec<String> = kinds
        .iter()
        .flat_map(|kind| simulation.view.metadata_of(kind, "").map(key_of))
        .map(|key| key.to_string())
        .collect();
    let gone = kinds.iter().filter_map(|kind| simulation.view.remove(kind, &key(name), 0)).count();
    assert_eq!(gone, 1, "{step}: {kind} {name} exists once: {all:?}");
}

/// Performs a story. Returns the text of each step's plan.
fn perform(file: &str, story: &Story) -> Vec<String> {
    let settings = settings();
    let mut simulation = crate::simulation(story.now, story.objects.clone());
    let mut texts = Vec::new();
    for step in &story.steps {
        let name = format!("{file}, \"{}\"", step.step);
        simulation.now = simulation.now.checked_add(step.after.unwrap_or_default()).unwrap();
        simulation.view.set_elapsed(simulation.elapsed());
        step.objects.iter().for_each(|object| put(&mut simulation, object.clone()));
        step.gone.iter().for_each(|object| remove(&mut simulation, &name, object));
        let row = CONTROLLERS.iter().find(|row| row.name == step.controller);
        let row = row.unwrap_or_else(|| panic!("{name}: there is no {}", step.controller));
        let key = key(&step.key);
        let plan = match decide(row, &simulation.view, &key, &simulation.context(&settings), &step.responses) {
            Decision::Plan(plan) => plan,
            Decision::Needs(paths) => panic!("{name} needs responses to {paths:?}"),
        };
        texts.push(PlanText::of(&plan, &simulation.view, simulation.now).to_string());
        simulation.reconciler_cache.set(&key, plan.state.clone());
        assert_eq!(simulation.apply(plan), Vec::<String>::new(), "{name}: the plan can be performed");
    }
    texts
}

/// A story's file with other plans.
fn with_plans(text: &str, plans: &[String]) -> String {
    let (mut lines, mut plans) = (text.lines().peekable(), plans.iter());
    let mut out = String::new();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        if line.trim() != "plan: |" {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let is_text = |line: &&str| line.trim().is_empty() || line.len() - line.trim_start().len() > indent;
        while lines.next_if(is_text).is_some() {}
        for line in plans.next().iter().flat_map(|plan| plan.lines()) {
            out.push_str(&format!("{:indent$}{line}\n", "", indent = indent + 2));
        }
    }
    out
}

/// The text of each story's plans is the expected one. New texts are left in a folder, for a look at the difference.
#[test]
fn plans_are_the_expected_ones() {
    let found = env::temp_dir().join("coracle-plans");
    let mut different = Vec::new();
    for (name, (text, story)) in stories() {
        assert!(!story.story.is_empty() && !story.steps.is_empty(), "{name} has a sentence and steps");
        let plans = perform(&name, &story);
        if plans.iter().zip(&story.steps).any(|(plan, step)| *plan != step.plan) {
            fs::create_dir_all(&found).unwrap();
            fs::write(found.join(&name), with_plans(&text, &plans)).unwrap();
            different.push(name);
        }
    }
    let found = found.display();
    assert!(
        different.is_empty(),
        "other plans in {different:?}: compare with diff -r tests/plans {found}; cp {found}/* tests/plans/ accepts them"
    );
}

#[test]
fn each_controller_has_a_story() {
    let stories = stories();
    let covered: BTreeSet<&str> =
        stories.values().flat_map(|(_, story)| &story.steps).map(|step| step.controller.as_str()).collect();
    let missing: Vec<&str> = CONTROLLERS.iter().map(|row| row.name).filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "no story in tests/plans for {missing:?}");
}

/// What `coracle explain-reconcile` relies on: a controller with a namespaced key reads no other namespace.
#[test]
fn a_namespaced_key_depends_on_its_namespace_alone() {
    for (name, (_, mut story)) in stories() {
        let namespaces: BTreeSet<String> = story.steps.iter().map(|step| key(&step.key).namespace).collect();
        let [namespace] = namespaces.into_iter().collect::<Vec<_>>().try_into().unwrap_or_default();
        if namespace.is_empty() {
            continue;
        }
        let is_other =
            |object: &Value| object["metadata"]["namespace"].as_str().is_some_and(|other| other != namespace);
        story.objects.retain(|object| !is_other(object));
        story.steps.iter_mut().for_each(|step| step.objects.retain(|object| !is_other(object)));
        let plans = perform(&name, &story);
        assert!(plans.iter().zip(&story.steps).all(|(plan, step)| *plan == step.plan), "{name}");
    }
}
