//! One pass over a key, and what is remembered between passes: what questions were answered with.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::plan::Failure;
use crate::question::{Memory, Question};
use machinery_api::ObjectKey;

/// What the server said.
pub type Answer = Result<Arc<Value>, Failure>;

/// How far a pass over one key is: what was asked in it, and what the round before hands to this one.
#[derive(Debug, Default, Clone)]
pub struct Pass {
    answers: Vec<(Question, Answer)>,
    /// What the last plan with questions carried.
    pub carried: Option<Memory>,
}

impl Pass {
    /// Takes an answer in.
    pub fn answered(&mut self, question: Question, answer: Answer) {
        self.answers.push((question, answer));
    }

    /// Whether something was asked already.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The last answer to a question of this pass.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Option<&Answer> {
        self.answers.iter().rev().find(|(asked, _)| asked == question).map(|(_, answer)| answer)
    }

    /// The last answer to a GET of a path.
    #[must_use]
    pub fn got(&self, path: &str) -> Option<&Answer> {
        let asked = |question: &Question| matches!(question, Question::Get(known) if known == path);
        self.answers.iter().rev().find(|(question, _)| asked(question)).map(|(_, answer)| answer)
    }
}

/// What a controller remembers, by key.
#[derive(Debug, Default, Clone)]
pub struct Memories(BTreeMap<ObjectKey, Memory>);

impl Memories {
    /// Of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// What is remembered of a key.
    #[must_use]
    pub fn of<T: 'static>(&self, key: &ObjectKey) -> Option<&T> {
        self.0.get(key)?.get()
    }

    /// What is remembered of the keys of a namespace, in order.
    pub fn within<'a, T: 'static>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
        let keys = self.0.range(ObjectKey::new(namespace, "")..).take_while(move |(key, _)| key.namespace == namespace);
        keys.filter_map(|(key, memory)| Some((key, memory.get()?)))
    }

    /// Remembers, or forgets.
    pub fn set(&mut self, key: &ObjectKey, memory: Option<Memory>) {
        match memory {
            Some(memory) => self.0.insert(key.clone(), memory),
            None => self.0.remove(key),
        };
    }

    /// Whether nothing is remembered of a key.
    #[must_use]
    pub fn lacks(&self, key: &ObjectKey) -> bool {
        !self.0.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts_and_memories_are_found_by_namespace() {
        let mut pass = Pass::default();
        let ask = Question::Get("/a".into());
        assert!(pass.got("/a").is_none());
        for n in [1, 2] {
            pass.answered(ask.clone(), Ok(Arc::new(n.into())));
        }
        pass.answered(Question::Put("/a".into(), Value::Null), Ok(Arc::new(3.into())));
        assert_eq!(pass.got("/a"), Some(&Ok(Arc::new(2.into()))));
        assert_eq!(pass.answer(&ask), pass.got("/a"));
        let mut memories = Memories::new();
        let keys = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "x")].map(|(space, name)| ObjectKey::new(space, name));
        keys.iter().for_each(|key| memories.set(key, Some(Memory::of(key.name.clone()))));
        memories.set(&keys[1], Some(Memory::of(5)));
        let of_b: Vec<_> = memories.within::<String>("b").map(|(key, name)| (key.clone(), name.as_str())).collect();
        assert_eq!(of_b, [(keys[2].clone(), "y")], "of another type: not seen");
        memories.set(&keys[0], None);
        assert!(memories.lacks(&keys[0]) && memories.of::<String>(&keys[3]).is_some());
    }
}
