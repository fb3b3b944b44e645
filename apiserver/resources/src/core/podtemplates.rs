//! PodTemplates: a stand-alone template for controllers.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{NAME, column, containers_and_images, labels, name};
use crate::core::pods::{spec as pod_spec, update::semantically_equal, warnings};
use crate::core::workloads;
use crate::field::{ErrorList, Path};
use crate::read::get;
use crate::{Column, Context, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    schema: "io.k8s.api.core.v1.PodTemplate",
    storage: Storage::Stored("podtemplates"),
    shows_empty: true,
    strategy: &PodTemplate,
    example: r#"apiVersion: v1
kind: PodTemplate
metadata: {name: example}
template:
  metadata: {labels: {app: example}}
  spec:
    containers: [{name: web, image: registry.local/hello:v1}]
"#,
    ..Row::NAMESPACED
};

struct PodTemplate;

const COLUMNS: &[Column] =
    &[NAME, column("Containers", "string"), column("Images", "string"), column("Pod Labels", "string")];
const TEMPLATE: Path<'static> = Path::root("template");

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        workloads::default_template(object);
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        workloads::drop_disabled_template(object, None);
    }

    fn prepare_update(&self, _: &Context<'_>, new: &mut Value, old: &Value) {
        workloads::drop_disabled_template(new, Some(old));
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        !semantically_equal(get(new, "template"), get(old, "template"))
    }

    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        pod_spec::template(errors, get(object, "template"), &TEMPLATE);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none_or(|old| self.generation_changes(object, old)) {
            warnings::template(&mut found, get(object, "template"), &TEMPLATE);
        }
        found
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        let template = get(object, "template");
        let (containers, images) = containers_and_images(template);
        let shown = labels(get(get(template, "metadata"), "labels"), "<none>");
        vec![name(object), containers, images, json!(shown)]
    }
}
