//! An object of a write in other versions, for definitions with a conversion webhook.
//!
//! Field management is computed synchronously ([`super::fields`]), but a webhook is asynchronous. A computation that
//! needs another version records it here and is discarded; the registry calls the webhook, and the computation runs
//! again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use apiserver_resources::apiextensions::custom::Definition;
use machinery_api::ApiError;
use serde_json::Value;

use apiserver_webhook::conversion::Converter;

/// The converted objects, and the conversions still to be made.
#[derive(Debug, Default)]
pub struct ObjectConversions(Mutex<ConversionState>);

#[derive(Debug, Default)]
struct ConversionState {
    /// Few entries: the versions of an apply's objects in which managers have written.
    converted: Vec<ConvertedObject>,
    missing: Vec<(Value, Box<str>)>,
    failure: Option<ApiError>,
}

#[derive(Debug)]
struct ConvertedObject {
    from: Value,
    to: Box<str>,
    object: Value,
}

impl ObjectConversions {
    fn state(&self) -> MutexGuard<'_, ConversionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object in another version; if it is not converted yet, the conversion is recorded as missing.
    pub(super) fn get(&self, object: &Value, to: &str) -> Option<Value> {
        let mut state = self.state();
        let made = state.converted.iter().find(|made| *made.to == *to && made.from == *object);
        if let Some(made) = made {
            return Some(made.object.clone());
        }
        if state.failure.is_none() {
            state.missing.push((object.clone(), to.into()));
        }
        None
    }

    /// Why a conversion failed: a computation without its result is invalid.
    pub(super) fn failure(&self) -> Option<ApiError> {
        self.state().failure.clone()
    }

    /// Runs the missing conversions. Returns whether there were any: then the computation must run again.
    pub(super) async fn convert_missing(&self, converter: &Converter, definition: &Definition) -> bool {
        let mut missing = std::mem::take(&mut self.state().missing);
        if missing.is_empty() {
            return false;
        }
        while let Some((_, to)) = missing.first() {
            // All conversions to one version go into one request.
            let to = to.clone();
            let (these, others): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(_, other)| *other == to);
            missing = others;
            let objects: Vec<Value> = these.into_iter().map(|(object, _)| object).collect();
            let converted = converter.convert(definition, &to, objects.clone()).await;
            let mut state = self.state();
            match converted {
                Ok(converted) => {
                    let made = |(from, object)| ConvertedObject { from, to: to.clone(), object };
                    state.converted.extend(objects.into_iter().zip(converted).map(made));
                }
                Err(error) => {
                    state.failure = Some(error);
                    break;
                }
            }
        }
        true
    }
}
