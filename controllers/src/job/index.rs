//! Sets of completion indexes as a Job's status and policies write them: `0,2-4,7`.

use std::collections::BTreeSet;
use std::fmt;

use machinery::runtime::Pod;

/// The annotation and label by which a pod of an Indexed Job names its index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A set of indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Reads `0,2-4`; whatever is malformed or at `below` and beyond is left out, as the API validated it.
    pub(super) fn parse(text: &str, below: i32) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
                set.extend(first.max(0)..=last.min(below - 1));
            }
        }
        Self(set)
    }

    pub(super) fn insert(&mut self, index: i32) {
        self.0.insert(index);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    pub(super) fn len(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn common(&self, other: &Self) -> i32 {
        i32::try_from(self.0.intersection(&other.0).count()).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for index in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *index => *last = *index,
                _ => runs.push((*index, *index)),
            }
        }
        for (nth, (first, last)) in runs.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                // Two in a row are listed, as upstream does.
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The index that a pod runs for.
pub(super) fn of_pod(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_runs() {
        for (given, written) in
            [("", ""), ("3", "3"), ("0-2", "0-2"), ("0,1,2,4,6,7", "0-2,4,6,7"), ("9-20", "9"), ("x,1", "1")]
        {
            assert_eq!(Indexes::parse(given, 10).to_string(), written, "{given}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(indexes in proptest::collection::btree_set(0..60i32, 0..40)) {
            let set = Indexes(indexes);
            proptest::prop_assert_eq!(Indexes::parse(&set.to_string(), 60), set);
        }
    }
}
