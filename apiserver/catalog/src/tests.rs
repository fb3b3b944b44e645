//! Tests of look-ups and of the discovery order, on the catalog of the built-in kinds.

use std::sync::LazyLock;

use machinery_api::GroupVersionResource;

use super::Catalog;

/// The catalog of the built-in kinds.
pub(super) fn built_in() -> &'static Catalog {
    static BUILT_IN: LazyLock<Catalog> = LazyLock::new(|| Catalog::built_in("127.0.0.1:6443"));
    &BUILT_IN
}

#[test]
fn resources_are_found_by_name_by_key_and_by_group() {
    let catalog = built_in();
    for resource in catalog.resources() {
        assert_eq!(catalog.get(resource.gvr()).unwrap().gvr(), resource.gvr());
        assert!(resource.group.is_empty() || catalog.has_group(&resource.group));
        assert!(catalog.has_version(&resource.group, &resource.version));
    }
    assert!(!catalog.has_group("") && !catalog.has_group("app") && !catalog.has_version("apps", "v2"));
    let of = |key: &str| catalog.of_key(key).map(|resource| &*resource.plural);
    assert_eq!(of("/registry/services/specs/default/web"), Some("services"));
    assert_eq!(of("/registry/minions/n"), Some("nodes"));
    assert_eq!((of("/registry/services/"), of("/registry/ranges/servicenodeports/30000")), (None, None));
    // Two groups share a key prefix; only one of them is the storage version.
    let events =
        catalog.get(GroupVersionResource { group: "events.k8s.io", version: "v1", resource: "events" }).unwrap();
    assert_eq!(&*events.stored().group, "");
    assert_eq!(catalog.prefix("events.k8s.io", "events"), catalog.prefix("", "events"));
    assert!(catalog.stored("events.k8s.io", "events").is_none() && catalog.stored("", "bindings").is_none());
}

#[test]
fn groups_stand_in_the_order_of_upstreams_priorities() {
    let groups = built_in().discovery().groups();
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().filter_map(|group| group["name"].as_str()).collect();
    let at = |name: &str| names.iter().position(|known| *known == name).unwrap();
    assert_eq!(names[..3], ["apiregistration.k8s.io", "apps", "events.k8s.io"]);
    assert!(at("batch") < at("networking.k8s.io") && at("storage.k8s.io") < at("coordination.k8s.io"));
    assert_eq!(names.last(), Some(&"flowcontrol.apiserver.k8s.io"));
}
