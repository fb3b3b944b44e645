//! Calls the WebAssembly plugins of a profile for a pod: the filters one after the other, then the scores.

use std::collections::BTreeMap;

use super::{Answers, CallPoint, Candidate, Failed, Failure, FailurePolicy, Guest, NodeRejection, Scored};

/// The arguments of the plugins' calls.
#[derive(Debug, Clone, Default)]
pub struct PluginRequest {
    /// The pod, as JSON.
    pub pod: String,
    /// The feasible nodes, in the order of the decision.
    pub candidates: Vec<Candidate>,
    /// Filtering stops at this number of feasible nodes.
    pub wanted: usize,
    /// The number of nodes in the cluster.
    pub nodes: usize,
}

/// Runs the filters and scores of all plugins.
///
/// # Errors
/// A plugin whose policy is `Fail` failed.
pub async fn call_plugins(guests: &[Guest], request: &PluginRequest) -> Result<Answers, String> {
    let mut answers = Answers::default();
    let (mut left, mut rest) = (Vec::new(), request.candidates.iter());
    while left.len() < request.wanted {
        let part: Vec<&Candidate> = rest.by_ref().take(request.wanted.max(1)).collect();
        if part.is_empty() {
            break;
        }
        answers.candidates.extend(part.iter().map(|candidate| candidate.name().to_owned()));
        left.extend(filter(guests, request, part, &mut answers).await?);
    }
    // A single node needs no score.
    if left.len() > 1 {
        score(guests, request, &left, &mut answers).await?;
    }
    Ok(answers)
}

/// The candidates that no plugin rejects.
async fn filter<'a>(
    guests: &[Guest],
    request: &PluginRequest,
    mut left: Vec<&'a Candidate>,
    answers: &mut Answers,
) -> Result<Vec<&'a Candidate>, String> {
    for guest in guests.iter().filter(|guest| guest.plugin.filters) {
        if left.is_empty() {
            break;
        }
        if answers.has_failed(guest) {
            continue;
        }
        match guest.filter(&request.pod, &left, request.nodes).await {
            Ok(refusals) => {
                for refusal in refusals {
                    let node = left[refusal.candidate].name().to_owned();
                    let (reason, unresolvable) = (refusal.reason, refusal.unresolvable);
                    answers
                        .refused
                        .insert(node, NodeRejection { plugin: guest.plugin.name.into(), reason, unresolvable });
                }
                left.retain(|candidate| !answers.refused.contains_key(candidate.name()));
            }
            Err(failure) => answers.fail(guest, CallPoint::Filter, failure)?,
        }
    }
    Ok(left)
}

async fn score(
    guests: &[Guest],
    request: &PluginRequest,
    left: &[&Candidate],
    answers: &mut Answers,
) -> Result<(), String> {
    for guest in guests.iter().filter(|guest| guest.plugin.weight.is_some()) {
        if answers.has_failed(guest) {
            continue;
        }
        match guest.score(&request.pod, left, request.nodes).await {
            Ok(scores) => {
                let nodes = left.iter().map(|candidate| candidate.name().to_owned()).zip(scores).collect();
                answers.scores.push(Scored { plugin: guest.plugin.name.into(), nodes });
            }
            Err(failure) => answers.fail(guest, CallPoint::Score, failure)?,
        }
    }
    Ok(())
}

/// The rejected candidates, with the reason: for nodes as they are after a preemption.
///
/// # Errors
/// As [`call_plugins`].
pub async fn filter_candidates(
    guests: &[Guest],
    request: &PluginRequest,
) -> Result<(BTreeMap<String, NodeRejection>, Vec<Failed>), String> {
    let mut answers = Answers::default();
    filter(guests, request, request.candidates.iter().collect(), &mut answers).await?;
    Ok((answers.refused, answers.failed))
}

impl Answers {
    /// A plugin that failed is skipped for the rest of the decision.
    fn has_failed(&self, guest: &Guest) -> bool {
        self.failed.iter().any(|failed| failed.plugin == guest.plugin.name)
    }

    /// Records a failure of a plugin, or returns the error if its policy is `Fail`.
    fn fail(&mut self, guest: &Guest, at: CallPoint, failure: Failure) -> Result<(), String> {
        let (plugin, point) = (guest.plugin.name, at.as_str());
        match guest.plugin.failure_policy {
            // With upstream's text.
            FailurePolicy::Fail => Err(match at {
                CallPoint::Filter => format!("running {plugin:?} filter plugin: {}", failure.why),
                CallPoint::Score => format!("running Score plugins: plugin {plugin:?} failed with: {}", failure.why),
            }),
            FailurePolicy::Ignore => {
                let was_called = failure.kind != "resting";
                self.failed.push(Failed {
                    plugin: plugin.into(),
                    extension_point: point.into(),
                    why: failure.why,
                    was_called,
                });
                Ok(())
            }
        }
    }
}
