//! Selectors in their parsed form, and matching them against an object's facts.

use machinery_api::selector::{FieldSelector, LabelSelector, Operator};

use super::object::Cached;

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelOp {
    /// Its value is one of the values (`=`, `==`, `in`).
    In,
    /// It is absent, or its value is none of the values (`!=`, `notin`).
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// It is there and an integer over the one value.
    Gt,
    /// It is there and an integer under the one value.
    Lt,
}

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequirement {
    /// The label.
    pub key: String,
    /// How.
    pub op: LabelOp,
    /// With what.
    pub values: Vec<String>,
}

/// One requirement of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field label, such as `spec.nodeName`.
    pub label: String,
    /// Equal or not equal.
    pub equals: bool,
    /// To what.
    pub value: String,
}

/// All requirements of a list or watch; empty selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selectors {
    /// On labels.
    pub labels: Vec<LabelRequirement>,
    /// On fields. A label that an object's resource doesn't extract counts as empty.
    pub fields: Vec<FieldRequirement>,
}

impl LabelRequirement {
    /// Whether a label of this value (`None`: absent) satisfies the requirement.
    #[must_use]
    pub fn holds(&self, value: Option<&str>) -> bool {
        match self.op {
            LabelOp::In => value.is_some_and(|value| self.values.iter().any(|v| v == value)),
            LabelOp::NotIn => value.is_none_or(|value| self.values.iter().all(|v| v != value)),
            LabelOp::Exists => value.is_some(),
            LabelOp::DoesNotExist => value.is_none(),
            LabelOp::Gt => self.ordered(value).is_some_and(|(value, bound)| value > bound),
            LabelOp::Lt => self.ordered(value).is_some_and(|(value, bound)| value < bound),
        }
    }

    fn ordered(&self, value: Option<&str>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

impl Selectors {
    /// From the parsed `labelSelector` and `fieldSelector` of a request (one that matches nothing can't be written there).
    #[must_use]
    pub fn new(labels: &LabelSelector, fields: &FieldSelector) -> Self {
        let labels = labels.requirements().iter().map(|requirement| LabelRequirement {
            key: requirement.key.clone(),
            op: match requirement.operator {
                Operator::In | Operator::Equals | Operator::DoubleEquals => LabelOp::In,
                Operator::NotIn | Operator::NotEquals => LabelOp::NotIn,
                Operator::Exists => LabelOp::Exists,
                Operator::DoesNotExist => LabelOp::DoesNotExist,
                Operator::GreaterThan => LabelOp::Gt,
                Operator::LessThan => LabelOp::Lt,
            },
            values: requirement.values.clone(),
        });
        let fields = fields.requirements.iter().map(|requirement| FieldRequirement {
            label: requirement.field.clone(),
            equals: requirement.equal,
            value: requirement.value.clone(),
        });
        Self { labels: labels.collect(), fields: fields.collect() }
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is selected.
    #[must_use]
    pub fn matches(&self, object: &Cached) -> bool {
        self.labels.iter().all(|requirement| requirement.holds(object.label(&requirement.key)))
            && self.fields.iter().all(|requirement| {
                (object.field(&requirement.label).unwrap_or("") == requirement.value) == requirement.equals
            })
    }

    /// The value that a field must be equal to, where there is one.
    #[must_use]
    pub fn field_equals(&self, label: &str) -> Option<&str> {
        self.fields.iter().find(|r| r.equals && r.label == label).map(|r| r.value.as_str())
    }
}
