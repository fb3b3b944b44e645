//! Namespaces: `spec.finalizers` blocks a deletion until the namespace controller has emptied the namespace. Only the
//! subresource `finalize` writes it. The phase follows from the deletion timestamp.

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, Path};
use crate::metadata::standard_finalizer;
use crate::read::{default_zero_to, get, has, is_zero, object_mut, put, text, texts};
use crate::rules::{self, NameRule};
use crate::{
    Column, Context, Deletion, MetadataChecks, Row, STATUS, Storage, Strategy, Subresource, SubresourceKind, Verb,
    prepare_update_by_default,
};

pub(crate) static ROW: Row = Row {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    schema: "io.k8s.api.core.v1.Namespace",
    verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
    subresources: &[
        Subresource { name: "finalize", what: SubresourceKind::Finalize, body: None, verbs: &[Verb::Update] },
        STATUS,
    ],
    storage: Storage::Stored("namespaces"),
    deletion: Deletion::Finalized,
    strategy: &Namespace,
    example: r#"apiVersion: v1
kind: Namespace
metadata: {name: example}
"#,
    ..Row::CLUSTER
};

struct Namespace;

const COLUMNS: &[Column] = &[NAME, column("Status", "string"), AGE];
const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn finalizers(errors: &mut ErrorList, object: &Value, with_index: bool) {
    let at = Path::root("spec.finalizers");
    for (i, finalizer) in texts(get(object, "spec"), "finalizers").enumerate() {
        let path = if with_index { at.index(i) } else { at };
        errors.invalid_each(&path, finalizer, rules::label_key(finalizer));
        standard_finalizer(errors, finalizer, &path);
    }
}

const SELECTABLE: &[Text] = &[Text::Borrowed("status.phase")];

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        let name = name(object);
        if !is_zero(&name) {
            put(object_mut(object_mut(object, "metadata"), "labels"), NAME_LABEL, name);
        }
        object_mut(object, "spec");
        default_zero_to(object_mut(object, "status"), "phase", "Active");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        self.default(object);
        put(object, "status", json!({"phase": "Active"}));
        let spec = object_mut(object, "spec");
        let mut list: Vec<String> = texts(spec, "finalizers").map(str::to_owned).collect();
        if !list.iter().any(|f| f == FINALIZER) {
            list.push(FINALIZER.into());
        }
        put(spec, "finalizers", json!(list));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        match context.subresource {
            "finalize" => put(new, "status", get(old, "status").clone()),
            _ => prepare_update_by_default(context, new, old),
        }
        if context.subresource.is_empty() {
            let kept = get(get(old, "spec"), "finalizers").clone();
            put(object_mut(new, "spec"), "finalizers", kept);
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, context: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        match context.subresource {
            "status" => {
                let phase = text(get(object, "status"), "phase");
                let (expected, is) = if has(get(object, "metadata"), "deletionTimestamp") {
                    ("Terminating", "not ")
                } else {
                    ("Active", "")
                };
                if phase != expected {
                    let why = format!("may only be '{expected}' if `deletionTimestamp` is {is}empty");
                    errors.invalid(&Path::root("status.Phase"), phase, &why);
                }
            }
            "finalize" => finalizers(errors, object, true),
            _ => finalizers(errors, object, false),
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(text(get(object, "status"), "phase")), age(object, now)]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![text(get(object, "status"), "phase").into()]
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}
