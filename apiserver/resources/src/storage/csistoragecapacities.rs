//! CSIStorageCapacities: the remaining capacity of a driver, by storage class and topology segment.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{NAME_AND_CREATED, name_and_created};
use crate::core::pods::update::semantically_equal;
use crate::core::pods::warnings::old_node_label;
use crate::field::{ErrorList, IMMUTABLE, NOT_NEGATIVE, Path};
use crate::metadata::{label_selector, quantity};
use crate::read::{entries, get, items, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "storage.k8s.io",
    kind: "CSIStorageCapacity",
    plural: "csistoragecapacities",
    singular: "csistoragecapacity",
    schema: "io.k8s.api.storage.v1.CSIStorageCapacity",
    storage: Storage::Stored("csistoragecapacities"),
    inert: Some("nothing runs CSI drivers here"),
    strategy: &CsiStorageCapacity,
    example: r#"apiVersion: storage.k8s.io/v1
kind: CSIStorageCapacity
metadata: {name: example}
storageClassName: example
capacity: 1Gi
"#,
    ..Row::NAMESPACED
};

struct CsiStorageCapacity;

fn validate(errors: &mut ErrorList, object: &Value) {
    label_selector(errors, get(object, "nodeTopology"), &Path::root("nodeTopology"));
    let class = text(object, "storageClassName");
    errors.invalid_each(&Path::root("storageClassName"), class, rules::dns_subdomain(class));
    let capacity = get(object, "capacity");
    if let Some(amount) = quantity(capacity).filter(|amount| amount.sign() < 0) {
        errors.invalid(&Path::root("capacity"), json!(amount.to_string()), NOT_NEGATIVE);
    }
}

impl Strategy for CsiStorageCapacity {
    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
        if let Some(old) = old {
            for key in ["nodeTopology", "storageClassName"] {
                if !semantically_equal(get(object, key), get(old, key)) {
                    errors.invalid(&Path::root(key), get(object, key).clone(), IMMUTABLE);
                }
            }
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let topology = get(object, "nodeTopology");
        let expressions = items(topology, "matchExpressions").iter().enumerate().filter_map(|(i, expression)| {
            let why = old_node_label(text(expression, "key"))?;
            Some(format!("nodeTopology.matchExpressions[{i}].key: {why}"))
        });
        let labels = entries(topology, "matchLabels")
            .filter_map(|(key, _)| Some(format!("nodeTopology.matchLabels.{key}: {}", old_node_label(key)?)));
        expressions.chain(labels).collect()
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        NAME_AND_CREATED
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        name_and_created(object)
    }
}
