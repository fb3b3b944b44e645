//! Examples of the cache: indexes follow the objects, and stale states are dropped.

use super::*;
use crate::object::decode;

fn pod(name: &str, version: u64, owner: Option<&str>) -> Arc<dyn Object> {
    let owners = owner.map_or(
        serde_json::json!([]),
        |uid| serde_json::json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]),
    );
    let text = serde_json::json!({"metadata": {
        "name": name, "namespace": "a", "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
        "ownerReferences": owners}});
    decode::<Pod>(&text.to_string()).unwrap()
}

#[test]
fn labels_find_current_objects() {
    let mut view = ObjectCache::default();
    let kind = Kind::of::<Pod>();
    let labelled = |name: &str, version: u64, app: &str| -> Arc<dyn Object> {
        let metadata = serde_json::json!({"name": name, "namespace": "a", "uid": name, "resourceVersion": version.to_string(), "labels": {"app": app}});
        decode::<Pod>(&serde_json::json!({"metadata": metadata}).to_string()).unwrap()
    };
    let names = |view: &ObjectCache, app: &str| -> Vec<String> {
        let wanted = [("app".to_owned(), app.to_owned())].into();
        view.labelled::<Pod>("a", &wanted).iter().filter_map(|pod| pod.metadata.name.clone()).collect()
    };
    for object in [labelled("x", 1, "web"), labelled("y", 2, "web"), labelled("x", 3, "db")] {
        view.put(&kind, object);
    }
    assert_eq!((names(&view, "web"), names(&view, "db")), (vec!["y".to_owned()], vec!["x".to_owned()]));
    view.remove(&kind, &ObjectKey::new("a", "y"), 4);
    assert!(names(&view, "web").is_empty());
}

#[test]
fn an_object_is_stamped_when_a_new_version_of_it_arrives() {
    let kind = Kind::of::<Pod>();
    let key = ObjectKey::new("a", "p");
    let seconds = Duration::from_secs;
    let mut view = ObjectCache::default();
    view.set_elapsed(seconds(5));
    view.put(&kind, pod("p", 3, None));
    view.set_elapsed(seconds(9));
    view.put(&kind, pod("p", 2, None));
    view.replace(&kind, vec![pod("p", 3, None)], 4);
    assert_eq!(view.seen_at(&kind, &key), Some(seconds(5)), "an old version and a relist say nothing new");
    view.put(&kind, pod("p", 5, None));
    assert_eq!(view.seen_at(&kind, &key), Some(seconds(9)));
    assert_eq!(view.appeared_at(&kind, &key), Some(seconds(5)), "it is the same object");
    view.remove(&kind, &key, 6);
    assert_eq!(view.seen_at(&kind, &key), None);
    view.put(&kind, pod("p", 7, None));
    assert_eq!(view.appeared_at(&kind, &key), Some(seconds(9)), "it came anew");
}

#[test]
fn pods_are_found_by_their_node() {
    let kind = Kind::of::<Pod>();
    let bound = |name: &str, version: u64, node: Option<&str>| {
        let text = serde_json::json!({"metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"nodeName": node, "containers": []}});
        decode::<Pod>(&text.to_string()).unwrap()
    };
    let mut view = ObjectCache::default();
    view.put(&kind, bound("p", 1, None));
    view.put(&kind, bound("q", 2, Some("n")));
    let on = |view: &ObjectCache| view.on_node("n").filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(on(&view), ["q"]);
    view.put(&kind, bound("p", 3, Some("n")));
    assert_eq!(on(&view), ["p", "q"]);
    view.remove(&kind, &ObjectKey::new("a", "q"), 4);
    view.replace(&kind, vec![bound("p", 5, None)], 5);
    assert!(on(&view).is_empty() && view.tables[&kind].by_node.is_empty());
}

#[test]
fn everything_comes_in_pieces() {
    let kind = Kind::of::<Pod>();
    let mut view = ObjectCache::default();
    for (version, name) in (1..).zip(["p", "q", "r"]) {
        view.put(&kind, pod(name, version, None));
    }
    let names = |changes: &[Change]| changes.iter().map(|c| c.key.name.clone()).collect::<Vec<_>>();
    let first = view.changes_after(&kind, None, 2);
    assert_eq!(names(&first), ["p", "q"]);
    assert_eq!(names(&view.changes_after(&kind, Some(&first[1].key), 2)), ["r"]);
}

#[test]
fn indexes_follow_the_objects() {
    let kind = Kind::of::<Pod>();
    let mut view = ObjectCache::default();
    view.put(&kind, pod("p", 1, None));
    view.put(&kind, pod("q", 2, Some("o")));
    assert_eq!(view.uncontrolled::<Pod>("a").count(), 1);
    assert_eq!(view.controlled::<Pod>("o").count(), 1);
    view.put(&kind, pod("p", 3, Some("o")));
    assert_eq!(view.uncontrolled::<Pod>("a").count(), 0);
    assert_eq!(view.dependents("o").count(), 2);
    assert!(view.put(&kind, pod("p", 2, None)).is_none(), "older states are dropped");
    let changes = view.replace(&kind, vec![pod("q", 2, Some("o")), pod("r", 9, None)], 12);
    assert_eq!(changes.len(), 2, "p is gone, r is new, q is unchanged");
    assert_eq!(view.seen(&kind), Some(12));
    view.interrupt(&kind);
    assert!(!view.is_followed(&kind));
    view.progress(&kind, 13);
    assert!(view.is_followed(&kind));
    assert!(view.by_uid("uid-p").is_none() && view.by_uid("uid-r").is_some());
    assert_eq!((view.list::<Pod>("a").count(), view.list::<Pod>("b").count()), (2, 0));
}

#[test]
fn a_list_of_a_restored_server_replaces_newer_objects() {
    let kind = Kind::of::<Pod>();
    let mut view = ObjectCache::default();
    view.replace(&kind, vec![pod("p", 1000, Some("new"))], 1020);
    assert!(view.put(&kind, pod("p", 900, Some("old"))).is_none(), "a late event");
    assert_eq!(view.replace(&kind, vec![pod("p", 900, Some("old"))], 950).len(), 1);
    assert_eq!(view.seen(&kind), Some(950), "writes from here on are waited for");
    let shown = view.get::<Pod>(&ObjectKey::new("a", "p")).unwrap();
    assert_eq!(shown.metadata.resource_version.as_deref(), Some("900"));
    assert!(view.replace(&kind, vec![pod("p", 900, Some("old"))], 960).is_empty());
}
