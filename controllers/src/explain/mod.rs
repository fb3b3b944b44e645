//! Explains a controller's decision: the plan that it makes now, as text. Input: objects, a key, the time, and the
//! results of the requests that the decision needs. Nothing is performed. Pure.

mod fields;
mod kinds;
mod plan;
mod recording;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use machinery_api::ObjectKey;
use machinery_client::pass::EffectResult;
use machinery_client::{Context, Controller, Effect, Failure, ObjectCache, Pass, Plan};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::fields::FieldChange;
pub use self::kinds::{find_kind, of_controllers};
pub use self::plan::{ActionText, PlanText};
pub use self::recording::{Recording, RecordingError, RecordingInputs};
use crate::Settings;

/// Maximum rounds of requests in one decision, as in the driver.
const ROUNDS_MAX: usize = 24;

/// Controllers with an input that only the control plane has.
const UNKNOWN_INPUTS: &[(&str, &str)] = &[
    ("certificatesigningrequest-signing-controller", "the key of the certificate authority"),
    ("cloud-node-controller", "the cloud provider"),
    ("cloud-node-lifecycle-controller", "the cloud provider"),
    ("node-ipam-controller", "the networks for nodes"),
    ("root-ca-certificate-publisher-controller", "the certificate authority"),
    ("service-lb-controller", "the pool of addresses"),
    ("serviceaccount-token-controller", "the key of tokens"),
    ("validatingadmissionpolicy-status-controller", "the type checker of expressions"),
];

/// The input of a controller that an explanation lacks.
fn unknown_input(controller: &str) -> Option<&'static str> {
    UNKNOWN_INPUTS.iter().find(|(name, _)| *name == controller).map(|(_, input)| *input)
}

/// The plans of an object's controllers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Kind, namespace and name.
    pub object: String,
    /// The time of the decision.
    pub now: Timestamp,
    /// The plans, in the order of the controllers' table.
    pub controllers: Vec<ControllerPlan>,
    /// Other controllers that watch the kind, for keys of other objects.
    pub others: Vec<&'static str>,
}

/// A controller's plan for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerPlan {
    /// Upstream's name of the controller.
    pub controller: &'static str,
    /// The key, as `namespace/name`.
    pub key: String,
    /// An input of the decision that only the control plane has: the plan may differ from the controller's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<&'static str>,
    /// The plan.
    pub plan: PlanText,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}", self.object, self.now.strftime("%Y-%m-%dT%H:%M:%SZ"))?;
        for controller in &self.controllers {
            write!(f, "\n{}", controller.controller)?;
            if self.object.split_once(' ').is_none_or(|(_, own)| own != controller.key) {
                write!(f, ", key {}", controller.key)?;
            }
            writeln!(f)?;
            for line in controller.plan.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
            if let Some(input) = controller.unknown {
                writeln!(f, "  note: {input} is unknown here, so that the controller's plan may differ")?;
            }
        }
        if !self.others.is_empty() {
            writeln!(f, "\nother controllers that watch its kind (--controller NAME): {}", self.others.join(", "))?;
        }
        Ok(())
    }
}

/// The API server's response to a request of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Response {
    /// The object.
    Object(Value),
    /// The HTTP status code with the reason and the message of the Status.
    #[serde(rename_all = "camelCase")]
    Error {
        /// The HTTP status code.
        code: u16,
        /// The Status' reason: `NotFound`.
        reason: String,
        /// The Status' message.
        message: String,
    },
}

/// Responses by method and path: `GET /apis/apps/v1/namespaces/a/deployments/web/scale`.
pub type Responses = BTreeMap<String, Response>;

/// The result of a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The plan. If it has effects, these are writes whose responses decide how the pass continues.
    Plan(Plan),
    /// Paths of objects to GET first.
    Needs(Vec<String>),
}

/// The name of an effect in [`Responses`].
fn name_of(effect: &Effect) -> String {
    match effect {
        Effect::Get(path) => format!("GET {path}"),
        Effect::Put(path, _) => format!("PUT {path}"),
    }
}

fn result_of(effect: &Effect, response: &Response) -> EffectResult {
    match response {
        Response::Object(object) => Ok(Arc::new(object.clone())),
        Response::Error { code, reason, message } => {
            let (verb, path) = match effect {
                Effect::Get(path) => ("get", path),
                Effect::Put(path, _) => ("update", path),
            };
            let (resource, reason, message) = (path.clone(), reason.clone(), message.clone());
            Err(Failure { verb, resource, code: *code, reason, message })
        }
    }
}

/// Runs a controller's decision for a key, with the responses to its requests as far as they are known.
#[must_use]
pub fn decide(
    controller: &Controller<Settings>,
    view: &ObjectCache,
    key: &ObjectKey,
    context: &Context<'_, Settings>,
    responses: &Responses,
) -> Decision {
    let mut pass = Pass::default();
    let mut plan = Plan::nothing();
    for _ in 0..ROUNDS_MAX {
        plan = (controller.reconcile)(view, key, &Context { pass: &pass, ..*context });
        let missing: Vec<&Effect> =
            plan.effects.iter().filter(|effect| !responses.contains_key(&name_of(effect))).collect();
        if missing.iter().any(|effect| matches!(effect, Effect::Put(..))) || plan.effects.is_empty() {
            break;
        }
        if !missing.is_empty() {
            let paths = missing.iter().filter_map(|effect| match effect {
                Effect::Get(path) => Some(path.clone()),
                Effect::Put(..) => None,
            });
            return Decision::Needs(paths.collect());
        }
        pass.scratch = plan.state.take();
        for effect in std::mem::take(&mut plan.effects) {
            let result = responses.get(&name_of(&effect)).map(|response| result_of(&effect, response));
            result.into_iter().for_each(|result| pass.record(effect.clone(), result));
        }
    }
    Decision::Plan(plan)
}
