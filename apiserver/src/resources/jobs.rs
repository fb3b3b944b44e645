//! Job.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, STATUS, Storage, Strategy};

/// Jobs.
pub(super) static ROW: Row = Row {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    schema: "io.k8s.api.batch.v1.Job",
    subresources: &[STATUS],
    storage: Storage::Stored("jobs"),
    strategy: &Job,
    example: r#"apiVersion: batch/v1
kind: Job
metadata: {name: example}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: work, image: registry.local/wordcount:v1}]
"#,
    ..Row::NAMESPACED
};

struct Job;

impl Strategy for Job {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
