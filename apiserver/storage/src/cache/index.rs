//! Which of a resource's current objects have a label or an indexed field of some value: a list by `spec.nodeName` or
//! `app=web` costs what it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use machinery_api::selector::{Operator, Requirement};

use super::object::{Cached, Resource};
use super::select::Selectors;

/// Field or label, its name, its value.
type Fact = (bool, Box<str>, Box<str>);

#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Fact, BTreeSet<Arc<str>>>,
}

const FIELD: bool = true;
const LABEL: bool = false;

fn facts<'a>(resource: &'a Resource, object: &'a Cached) -> impl Iterator<Item = Fact> + 'a {
    let fields = resource.indexed_fields.iter().filter_map(|label| {
        let value = object.field(label)?;
        Some((FIELD, Box::from(&**label), value.into()))
    });
    let labels = object.labels().filter(|_| resource.indexes_labels);
    fields.chain(labels.map(|(key, value)| (LABEL, key.into(), value.into())))
}

static NOTHING: BTreeSet<Arc<str>> = BTreeSet::new();

impl Index {
    pub(super) fn add(&mut self, resource: &Resource, object: &Cached) {
        for fact in facts(resource, object) {
            self.keys.entry(fact).or_default().insert(object.key.clone());
        }
    }

    pub(super) fn remove(&mut self, resource: &Resource, object: &Cached) {
        for fact in facts(resource, object) {
            if let Some(keys) = self.keys.get_mut(&fact) {
                keys.remove(&object.key);
                if keys.is_empty() {
                    self.keys.remove(&fact);
                }
            }
        }
    }

    /// The smallest indexed set that holds everything the filter selects; `None`: no index helps.
    pub(super) fn narrow(&self, resource: &Resource, filter: &Selectors) -> Option<&BTreeSet<Arc<str>>> {
        let fields = filter.fields.requirements.iter();
        let fields = fields.filter(|r| r.equal && resource.indexed_fields.iter().any(|label| **label == *r.field));
        let is = |r: &&Requirement| matches!(r.operator, Operator::In | Operator::Equals | Operator::DoubleEquals);
        let labels = filter.labels.requirements().iter().filter(|r| resource.indexes_labels && is(r));
        let labels = labels.filter_map(|r| match r.values.as_slice() {
            [one] => Some((LABEL, r.key.as_str().into(), one.as_str().into())),
            _ => None,
        });
        fields
            .map(|r| (FIELD, r.field.as_str().into(), r.value.as_str().into()))
            .chain(labels)
            .map(|fact: Fact| self.keys.get(&fact).unwrap_or(&NOTHING))
            .min_by_key(|keys| keys.len())
    }
}
