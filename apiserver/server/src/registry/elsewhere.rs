//! What a write must know of its object in other versions of a definition with a conversion webhook.
//!
//! Who manages which fields is decided in one piece ([`super::fields`]), and a webhook has to be waited for. So a decision that
//! needs an object in another version notes it here and is dropped; the registry asks the webhook, and decides again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use apiserver_resources::apiextensions::custom::Definition;
use machinery_api::ApiError;
use serde_json::Value;

use crate::conversion::Converter;

/// What is known, and what is missing.
#[derive(Debug, Default)]
pub struct Elsewhere(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Few: at most what an apply looks at, in the versions that managers have written in.
    made: Vec<Made>,
    missing: Vec<(Value, Box<str>)>,
    failure: Option<ApiError>,
}

#[derive(Debug)]
struct Made {
    from: Value,
    to: Box<str>,
    object: Value,
}

impl Elsewhere {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object in another version; where that isn't known, it is noted as missing.
    pub(super) fn get(&self, object: &Value, to: &str) -> Option<Value> {
        let mut known = self.known();
        let made = known.made.iter().find(|made| *made.to == *to && made.from == *object);
        if let Some(made) = made {
            return Some(made.object.clone());
        }
        if known.failure.is_none() {
            known.missing.push((object.clone(), to.into()));
        }
        None
    }

    /// Why an object could not be had in a version: what was decided without it is worth nothing.
    pub(super) fn failure(&self) -> Option<ApiError> {
        self.known().failure.clone()
    }

    /// Asks for what is missing. Returns whether something was: then what was decided is to be decided again.
    pub(super) async fn fill(&self, converter: &Converter, definition: &Definition) -> bool {
        let mut missing = std::mem::take(&mut self.known().missing);
        if missing.is_empty() {
            return false;
        }
        while let Some((_, to)) = missing.first() {
            // Those of one version at once.
            let to = to.clone();
            let (these, others): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(_, other)| *other == to);
            missing = others;
            let objects: Vec<Value> = these.into_iter().map(|(object, _)| object).collect();
            let converted = converter.in_version(definition, &to, objects.clone()).await;
            let mut known = self.known();
            match converted {
                Ok(converted) => {
                    let made = |(from, object)| Made { from, to: to.clone(), object };
                    known.made.extend(objects.into_iter().zip(converted).map(made));
                }
                Err(error) => {
                    known.failure = Some(error);
                    break;
                }
            }
        }
        true
    }
}
