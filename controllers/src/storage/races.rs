//! Property: no claim is bound twice, and no volume to two claims. Several binders run with different old views and
//! crash between any two writes, while users delete and create claims.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;
use machinery_client::claims::{claim_ref, is_fully_bound, volume_name};
use machinery_client::simulate::Simulation;
use machinery_client::{Kind, Plan, Typed, key_of};
use machinery_env::Env;
use serde_json::{Value, json};

use crate::table_tests::{decide, settle, start};

const BINDER: &str = "persistentvolume-binder-controller";
const CLAIMS: u64 = 3;
const VOLUMES: u64 = 2;
/// The maximum lag of a binder's watches, in writes.
const PAST: usize = 16;
const STEPS: usize = 250;
const SEEDS: u64 = 60;

fn claim(n: u64, dice: &Env) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""});
    // Some claims request one volume by name, and some the same one.
    if dice.below(4) == 0 {
        spec["volumeName"] = json!(format!("v{}", dice.below(2)));
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": format!("c{n}"), "namespace": "a"},
        "spec": spec, "status": {"phase": "Pending"}})
}

fn volume(n: u64, dice: &Env) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"},
        "persistentVolumeReclaimPolicy": "Retain"});
    if dice.below(4) == 0 {
        spec["claimRef"] = json!({"namespace": "a", "name": format!("c{}", dice.below(2))});
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("v{n}")}, "spec": spec})
}

/// The view of a binder whose watch of one kind lags behind the other.
fn seen(old: &Simulation, new: &Simulation, newer: &Kind) -> Simulation {
    let mut mixed = old.clone();
    let objects = new.view.changes_after(newer, None, usize::MAX).into_iter().filter_map(|change| change.new);
    mixed.view.replace(newer, objects.collect(), 0);
    mixed
}

/// By uid, the volume of each claim whose status was bound.
type Bound = BTreeMap<String, String>;

fn look(world: &Simulation, bound: &mut Bound) -> Result<(), String> {
    let mut holders: BTreeMap<&str, String> = BTreeMap::new();
    for claim in world.view.all::<PersistentVolumeClaim>().filter(|claim| is_fully_bound(claim)) {
        let (name, uid) = (volume_name(claim), claim.metadata.uid.clone().unwrap_or_default());
        let key = key_of(&claim.metadata).to_string();
        if let Some(other) = holders.insert(name, key.clone()) {
            return Err(format!("{name} is bound to {other} and to {key}"));
        }
        let before = bound.entry(uid.clone()).or_insert_with(|| name.to_owned());
        if before != name {
            return Err(format!("{key} was bound to {before}, and now to {name}"));
        }
        let volume = world.view.get::<PersistentVolume>(&ObjectKey::cluster(name)).ok_or("a volume went")?;
        if claim_ref(volume).and_then(|r| r.uid.as_deref()) != Some(&*uid) {
            return Err(format!("{key} is bound to {name}, which names {:?}", claim_ref(volume)));
        }
    }
    Ok(())
}

fn forget<K: Typed>(world: &mut Simulation, key: ObjectKey) {
    let (kind, uid) = (Kind::of::<K>(), None);
    let (resource_version, propagation, grace_seconds) = (None, None, None);
    let notes = machinery_client::OutcomeEvents::default();
    let action =
        machinery_client::Action::Delete { kind, key, uid, resource_version, propagation, grace_seconds, notes };
    world.apply(Plan::from(vec![action]));
}

fn race(seed: u64) -> Result<usize, String> {
    let (dice, _) = &Env::seeded(seed, start());
    let mut all: Vec<Value> = (0..CLAIMS).map(|n| claim(n, dice)).collect();
    all.extend((0..VOLUMES).map(|n| volume(n, dice)));
    let mut world = crate::simulation(start(), all);
    let mut pasts = vec![world.clone()];
    let mut bound = Bound::new();
    for _ in 0..STEPS {
        match dice.below(20) {
            0 => {
                let name = format!("c{}", dice.below(CLAIMS));
                forget::<PersistentVolumeClaim>(&mut world, ObjectKey::new("a", &*name));
            }
            1 => {
                let n = dice.below(CLAIMS);
                if world.view.get::<PersistentVolumeClaim>(&ObjectKey::new("a", format!("c{n}"))).is_none() {
                    let made = claim(n, dice);
                    world.create(&Kind::of::<PersistentVolumeClaim>(), made);
                }
            }
            // A user makes a volume available again, though its claim may exist: only a Released one.
            2 => free(&mut world, &format!("v{}", dice.below(VOLUMES))),
            _ => {
                let recent = pasts.len().saturating_sub(PAST);
                let pick = || &pasts[recent + usize::try_from(dice.below((pasts.len() - recent) as u64)).unwrap()];
                let (one, other) = (pick(), pick());
                let (old, new) = if one.view.seen(&Kind::of::<PersistentVolume>())
                    <= other.view.seen(&Kind::of::<PersistentVolume>())
                {
                    (one, other)
                } else {
                    (other, one)
                };
                let newer = if dice.below(2) == 0 {
                    Kind::of::<PersistentVolume>()
                } else {
                    Kind::of::<PersistentVolumeClaim>()
                };
                let view = seen(old, new, &newer);
                let n = dice.below(CLAIMS + VOLUMES);
                let key = match n.checked_sub(CLAIMS) {
                    None => ObjectKey::new("a", format!("c{n}")),
                    Some(n) => ObjectKey::cluster(format!("v{n}")),
                };
                // As the driver: a failure ends the plan. The binder may also crash before.
                let plan = decide(BINDER, &view, &key);
                let lives = usize::try_from(dice.below(3)).unwrap() + 1;
                for action in plan.actions.into_iter().take(lives) {
                    if !world.apply(Plan::from(vec![action])).is_empty() {
                        break;
                    }
                }
            }
        }
        look(&world, &mut bound)?;
        pasts.push(world.clone());
    }
    settle(&mut world);
    look(&world, &mut bound)?;
    Ok(bound.len())
}

fn free(world: &mut Simulation, name: &str) {
    let kind = Kind::of::<PersistentVolume>();
    let Some(volume) = world.view.get::<PersistentVolume>(&ObjectKey::cluster(name)) else { return };
    if volume.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Released") {
        return;
    }
    let mut volume = machinery_client::value_of(volume);
    volume["spec"].as_object_mut().unwrap().remove("claimRef");
    world.write(&kind, volume);
}

#[test]
fn no_claim_is_bound_twice_despite_stale_caches_and_crashes() {
    let mut bindings = 0;
    for seed in 0..SEEDS {
        bindings += race(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(bindings > usize::try_from(SEEDS).unwrap() * 2, "only {bindings} claims were bound");
}
