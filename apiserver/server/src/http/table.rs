//! Transforms objects into Table and PartialObjectMetadata responses, with the columns of their kind.

use std::sync::Arc;

use jiff::Timestamp;
use machinery_api::ApiError;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::negotiate::MetaVersion;
use apiserver_resources::query::Query;
use apiserver_resources::{Column, ResourceInfo, Strategy, cells};
use apiserver_storage::cache::Cached;

/// What a table's rows carry besides their cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The metadata.
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// Parses `includeObject`.
    pub fn read(query: &Query) -> Result<Self, ApiError> {
        match query.text("includeObject") {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(ApiError::BadRequest(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', \
                 'None', or empty",
                apiserver_resources::field::quoted(other)
            ))),
        }
    }
}

/// The settings of a table.
#[derive(Clone)]
pub struct Tables {
    /// The row.
    pub row: Arc<ResourceInfo>,
    /// `v1` or `v1beta1`
    pub version: MetaVersion,
    /// What rows carry besides their cells.
    pub include: Include,
    /// The reference time of ages.
    pub now: Timestamp,
    /// Whether the objects are Scales of the row.
    pub scales: bool,
}

/// The columns of a Scale's table.
const SCALE_COLUMNS: &[Column] = &[
    cells::column("Name", "string"),
    cells::column("Desired", "integer"),
    cells::column("Available", "integer"),
    cells::column("Age", "string"),
];

impl Tables {
    /// The column definitions.
    #[must_use]
    pub fn columns(&self) -> Value {
        let columns = if self.scales { SCALE_COLUMNS } else { self.row.strategy.columns() };
        let columns = columns.iter().map(|c| {
            json!({
                "name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority,
            })
        });
        Value::Array(columns.collect())
    }

    /// One object's row.
    #[must_use]
    pub fn row(&self, object: &Value) -> Value {
        self.row_by(object, &*self.row.strategy, object)
    }

    /// A stored object's row: the cells come from the stored version, which has the most fields.
    #[must_use]
    pub fn row_of(&self, cached: &Cached) -> Value {
        let stored = cached.value();
        if self.row.serves_cached_form() || self.scales {
            return self.row(&stored);
        }
        let object = self.row.strategy.read_storage_version(stored.clone());
        self.row_by(&object, &*self.row.stored().strategy, &stored)
    }

    fn row_by(&self, object: &Value, strategy: &dyn Strategy, read: &Value) -> Value {
        let carried = match self.include {
            Include::None => Value::Null,
            Include::Object => object.clone(),
            Include::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": self.version.api_version(),
                "metadata": object["metadata"],
            }),
        };
        let cells = if self.scales {
            let replicas = |part: &str| json!(object[part]["replicas"].as_i64().unwrap_or(0));
            vec![cells::name(object), replicas("spec"), replicas("status"), cells::age(object, self.now)]
        } else {
            strategy.cells(read, self.now)
        };
        json!({"cells": cells, "object": carried})
    }

    /// A whole table.
    #[must_use]
    pub fn table(&self, metadata: Value, columns: Value, rows: Vec<Value>) -> Value {
        json!({
            "kind": "Table",
            "apiVersion": self.version.api_version(),
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }
}

#[derive(Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// Appends an object's PartialObjectMetadata; `json` is the whole object with its resourceVersion.
pub fn write_partial(version: MetaVersion, json: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.extend_from_slice(version.api_version().as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    match serde_json::from_slice::<OnlyMetadata<'_>>(json) {
        Ok(only) => out.extend_from_slice(only.metadata.get().as_bytes()),
        Err(_) => out.extend_from_slice(b"{}"),
    }
    out.push(b'}');
}
