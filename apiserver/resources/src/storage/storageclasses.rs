//! StorageClasses: provisioner, parameters, and reclaim policy of volumes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{parameters, provisioner};
use crate::cells::{AGE, NAME, age, column};
use crate::core::pods::warnings::old_node_label;
use crate::field::{ERRORS_MAX, ErrorList, Path};
use crate::metadata::label_name;
use crate::read::{at, default_to, flag, get, has, items, text, texts};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    schema: "io.k8s.api.storage.v1.StorageClass",
    storage: Storage::Stored("storageclasses"),
    shows_empty: true,
    strategy: &StorageClass,
    example: r#"apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: example}
provisioner: example.com/disks
"#,
    ..Row::CLUSTER
};

struct StorageClass;

const COLUMNS: &[Column] = &[
    NAME,
    column("Provisioner", "string"),
    column("ReclaimPolicy", "string"),
    column("VolumeBindingMode", "string"),
    column("AllowVolumeExpansion", "string"),
    AGE,
];
const DEFAULT_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

fn one_of(errors: &mut ErrorList, object: &Value, key: &str, known: &[&str]) {
    let value = text(object, key);
    if !known.contains(&value) {
        errors.not_supported(&Path::root(key), value, known);
    }
}

/// The required values of each label of a term.
type Term<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn term<'a>(errors: &mut ErrorList, term: &'a Value, path: &Path<'_>) -> Term<'a> {
    let mut wanted = Term::new();
    let list_at = path.child("matchLabelExpressions");
    for (i, expression) in items(term, "matchLabelExpressions").iter().enumerate() {
        let at = list_at.index(i);
        let (values_at, key) = (at.child("values"), text(expression, "key"));
        let mut values = BTreeSet::new();
        if items(expression, "values").is_empty() {
            errors.required(&values_at, "");
        }
        for (j, value) in texts(expression, "values").enumerate() {
            if !values.insert(value) {
                errors.duplicate(&values_at.index(j), value);
            }
        }
        label_name(errors, key, &at.child("key"));
        if wanted.insert(key, values).is_some() {
            errors.duplicate(&at.child("key"), key);
        }
    }
    wanted
}

/// Rejects equal terms. Upstream also compares each term with one empty term per term, so that an empty term is
/// reported as often here.
fn topologies(errors: &mut ErrorList, terms: &[Value]) {
    let list_at = Path::root("allowedTopologies");
    let mut seen: BTreeMap<Term<'_>, usize> = BTreeMap::from([(Term::new(), terms.len())]);
    for (i, given) in terms.iter().enumerate() {
        let at = list_at.index(i);
        let wanted = term(errors, given, &at);
        let times = seen.entry(wanted).or_default();
        for _ in 0..(*times).min(ERRORS_MAX + 1) {
            errors.duplicate(&at.child("matchLabelExpressions"), "");
        }
        *times += 1;
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    provisioner(errors, object, "provisioner");
    parameters(errors, object, true);
    if !text(object, "reclaimPolicy").is_empty() {
        one_of(errors, object, "reclaimPolicy", &["Delete", "Retain"]);
    }
    if has(object, "volumeBindingMode") {
        one_of(errors, object, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
    } else {
        errors.required(&Path::root("volumeBindingMode"), "");
    }
    topologies(errors, items(object, "allowedTopologies"));
}

impl Strategy for StorageClass {
    fn default(&self, object: &mut Value) {
        default_to(object, "reclaimPolicy", "Delete");
        default_to(object, "volumeBindingMode", "Immediate");
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
        if let Some(old) = old {
            for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
                errors.immutable(&Path::root(key), get(object, key), get(old, key));
            }
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let terms = items(object, "allowedTopologies").iter().enumerate();
        let expressions = terms.flat_map(|(i, term)| {
            let list = items(term, "matchLabelExpressions").iter().enumerate();
            list.map(move |(j, expression)| (i, j, text(expression, "key")))
        });
        let warn = |(i, j, key)| {
            let why = old_node_label(key)?;
            Some(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {why}"))
        };
        expressions.filter_map(warn).collect()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let annotations = at(object, &["metadata", "annotations"]);
        let is_default = DEFAULT_ANNOTATIONS.iter().any(|key| text(annotations, key) == "true");
        let named = crate::read::name(object);
        let or = |key: &str, other: &str| json!(if has(object, key) { text(object, key) } else { other });
        vec![
            json!(if is_default { format!("{named} (default)") } else { named.to_owned() }),
            json!(text(object, "provisioner")),
            or("reclaimPolicy", "Delete"),
            or("volumeBindingMode", "Immediate"),
            json!(flag(object, "allowVolumeExpansion")),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_equal_terms_cost_little() {
        let mut errors = ErrorList::new();
        let terms = vec![json!({}); 100_000];
        topologies(&mut errors, &terms);
        assert!(errors.count() > ERRORS_MAX);
    }
}
