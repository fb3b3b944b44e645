//! Asks the plugins of a profile about a pod: first, one after the other, which nodes won't do, then how good the others are.

use std::collections::BTreeMap;

use super::{Answers, At, Candidate, Failed, Failure, FailurePolicy, Guest, Refused, Scored};

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The pod, as JSON.
    pub pod: String,
    /// The nodes that all else has nothing against, in the order of the decision.
    pub candidates: Vec<Candidate>,
    /// So many that will do are enough.
    pub wanted: usize,
    /// Nodes of the whole cluster.
    pub nodes: usize,
}

/// See the module.
///
/// # Errors
/// One that can't be done without failed.
pub async fn ask(guests: &[Guest], question: &Question) -> Result<Answers, String> {
    let mut answers = Answers::default();
    let (mut left, mut rest) = (Vec::new(), question.candidates.iter());
    while left.len() < question.wanted {
        let part: Vec<&Candidate> = rest.by_ref().take(question.wanted.max(1)).collect();
        if part.is_empty() {
            break;
        }
        answers.asked.extend(part.iter().map(|candidate| candidate.name().to_owned()));
        left.extend(filter(guests, question, part, &mut answers).await?);
    }
    // Of one there is nothing to compare.
    if left.len() > 1 {
        score(guests, question, &left, &mut answers).await?;
    }
    Ok(answers)
}

/// Those that nobody refuses.
async fn filter<'a>(
    guests: &[Guest],
    question: &Question,
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
        match guest.filter(&question.pod, &left, question.nodes).await {
            Ok(refusals) => {
                for refusal in refusals {
                    let node = left[refusal.candidate].name().to_owned();
                    let (reason, unresolvable) = (refusal.reason, refusal.unresolvable);
                    answers.refused.insert(node, Refused { plugin: guest.plugin.name.into(), reason, unresolvable });
                }
                left.retain(|candidate| !answers.refused.contains_key(candidate.name()));
            }
            Err(failure) => answers.fail(guest, At::Filter, failure)?,
        }
    }
    Ok(left)
}

async fn score(
    guests: &[Guest],
    question: &Question,
    left: &[&Candidate],
    answers: &mut Answers,
) -> Result<(), String> {
    for guest in guests.iter().filter(|guest| guest.plugin.weight.is_some()) {
        if answers.has_failed(guest) {
            continue;
        }
        match guest.score(&question.pod, left, question.nodes).await {
            Ok(scores) => {
                let nodes = left.iter().map(|candidate| candidate.name().to_owned()).zip(scores).collect();
                answers.scores.push(Scored { plugin: guest.plugin.name.into(), nodes });
            }
            Err(failure) => answers.fail(guest, At::Score, failure)?,
        }
    }
    Ok(())
}

/// Which of some nodes won't do, and why: for nodes where others would go for the pod.
///
/// # Errors
/// As [`ask`].
pub async fn refused_of(
    guests: &[Guest],
    question: &Question,
) -> Result<(BTreeMap<String, Refused>, Vec<Failed>), String> {
    let mut answers = Answers::default();
    filter(guests, question, question.candidates.iter().collect(), &mut answers).await?;
    Ok((answers.refused, answers.failed))
}

impl Answers {
    /// Done without once is done without for the whole decision.
    fn has_failed(&self, guest: &Guest) -> bool {
        self.failed.iter().any(|failed| failed.plugin == guest.plugin.name)
    }

    /// It is done without, where it can be.
    fn fail(&mut self, guest: &Guest, at: At, failure: Failure) -> Result<(), String> {
        let (plugin, point) = (guest.plugin.name, at.as_str());
        match guest.plugin.failure_policy {
            // In upstream's words.
            FailurePolicy::Fail => Err(match at {
                At::Filter => format!("running {plugin:?} filter plugin: {}", failure.why),
                At::Score => format!("running Score plugins: plugin {plugin:?} failed with: {}", failure.why),
            }),
            FailurePolicy::Ignore => {
                let anew = failure.kind != "resting";
                self.failed.push(Failed {
                    plugin: plugin.into(),
                    extension_point: point.into(),
                    why: failure.why,
                    anew,
                });
                Ok(())
            }
        }
    }
}
