//! Sets of completion indexes in the text form of a Job's status and policies: `0,2-4,7`.
//!
//! These texts are untrusted, and ten characters may mean 2^31 indexes. So a set stores the intervals of its text, and
//! each operation takes one step per interval.

use std::collections::BTreeMap;
use std::fmt;

use machinery_client::Pod;

/// The annotation and label with the index of an Indexed Job's pod.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A set of indexes, all non-negative.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes {
    /// First to last (inclusive) of each interval; at least one index is missing between two intervals.
    intervals: BTreeMap<i32, i32>,
}

impl Indexes {
    /// Parses `0,2-4`. Malformed parts, and indexes of `below` and above, are left out, as the API validated the text.
    pub(super) fn parse(text: &str, below: i32) -> Self {
        let mut set = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
                set.insert_interval(first.max(0), last.min(below.saturating_sub(1)));
            }
        }
        set
    }

    pub(super) fn insert(&mut self, index: i32) {
        self.insert_interval(index, index);
    }

    /// Adds `first` to `last`, merged with adjacent intervals.
    fn insert_interval(&mut self, mut first: i32, mut last: i32) {
        if first > last {
            return;
        }
        // An interval that starts earlier and reaches at least to the index before this one.
        let before = self.intervals.range(..first).next_back().map(|(from, to)| (*from, *to));
        if let Some((from, to)) = before.filter(|(_, to)| *to >= first.saturating_sub(1)) {
            (first, last) = (from, last.max(to));
        }
        while let Some((from, to)) =
            self.intervals.range(first..=last.saturating_add(1)).next().map(|(from, to)| (*from, *to))
        {
            self.intervals.remove(&from);
            last = last.max(to);
        }
        self.intervals.insert(first, last);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        self.intervals.range(..=index).next_back().is_some_and(|(_, last)| *last >= index)
    }

    pub(super) fn len(&self) -> i32 {
        count(self.intervals.iter().map(|(first, last)| (*first, *last)))
    }

    /// The number of indexes in both sets.
    pub(super) fn common(&self, other: &Self) -> i32 {
        let (mut ours, mut theirs) = (self.intervals.iter().peekable(), other.intervals.iter().peekable());
        let shared = std::iter::from_fn(|| {
            let ((first, last), (other_first, other_last)) = (*ours.peek()?, *theirs.peek()?);
            if last <= other_last {
                ours.next()
            } else {
                theirs.next()
            };
            Some((*first.max(other_first), *last.min(other_last)))
        });
        count(shared)
    }

    /// Adds all indexes of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        other.intervals.iter().for_each(|(first, last)| self.insert_interval(*first, *last));
    }

    /// The indexes below `below` that aren't in the set, in order; takes one step per interval.
    pub(super) fn missing(self, below: i32) -> impl Iterator<Item = i32> {
        // The end of each gap, and the start of the next one.
        let gaps = self.intervals.into_iter().chain([(below, i32::MAX)]);
        let mut next = 0;
        gaps.flat_map(move |(first, last)| {
            let gap = next..first.min(below);
            next = last.saturating_add(1);
            gap
        })
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        let mut set = Self::default();
        indexes.into_iter().filter(|index| *index >= 0).for_each(|index| set.insert(index));
        set
    }
}

/// The number of indexes in disjoint intervals; empty intervals count zero.
fn count(intervals: impl Iterator<Item = (i32, i32)>) -> i32 {
    let indexes: i64 = intervals.map(|(first, last)| (i64::from(last) - i64::from(first) + 1).max(0)).sum();
    i32::try_from(indexes).unwrap_or(i32::MAX)
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (first, last)) in self.intervals.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                // Two consecutive indexes are listed, as upstream does.
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The index of a pod.
pub(super) fn of_pod(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn sets_are_written_as_runs() {
        for (given, written) in
            [("", ""), ("3", "3"), ("0-2", "0-2"), ("0,1,2,4,6,7", "0-2,4,6,7"), ("9-20", "9"), ("x,1", "1")]
        {
            assert_eq!(Indexes::parse(given, 10).to_string(), written, "{given}");
        }
    }

    #[test]
    fn ten_characters_that_mean_all_indexes_are_one_interval() {
        let all = Indexes::parse("0-2147483646", i32::MAX);
        assert_eq!((all.len(), all.to_string().as_str()), (i32::MAX, "0-2147483646"));
        let most = Indexes::parse("0-9,11-2147483646", i32::MAX);
        assert_eq!((all.common(&most), most.common(&all)), (i32::MAX - 1, i32::MAX - 1));
        assert_eq!(most.missing(i32::MAX).collect::<Vec<i32>>(), [10]);
        assert_eq!(all.missing(i32::MAX).next(), None);
        assert_eq!(Indexes::parse("-5,2147483647,0-99999999999", i32::MAX), Indexes::default());
    }

    proptest::proptest! {
        /// Every operation against a set of single indexes.
        #[test]
        fn intervals_equal_their_sets(
            ones in proptest::collection::vec((0..40i32, 0..6i32), 0..16),
            others in proptest::collection::btree_set(0..40i32, 0..40),
            below in 0..45i32,
        ) {
            let parts: Vec<String> = ones.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect();
            let set = Indexes::parse(&parts.join(","), below);
            let naive: BTreeSet<i32> =
                ones.iter().flat_map(|(first, more)| *first..=first + more).filter(|index| *index < below).collect();
            let other: Indexes = others.iter().copied().collect();
            proptest::prop_assert_eq!(&set, &naive.iter().copied().collect::<Indexes>());
            proptest::prop_assert_eq!(usize::try_from(set.len()).unwrap(), naive.len());
            proptest::prop_assert_eq!(usize::try_from(set.common(&other)).unwrap(), naive.intersection(&others).count());
            proptest::prop_assert!((-1..50).all(|index| set.contains(index) == naive.contains(&index)));
            let mut both = set.clone();
            both.extend(&other);
            let missing: Vec<i32> = both.missing(below).collect();
            let left: Vec<i32> = (0..below).filter(|i| !naive.contains(i) && !others.contains(i)).collect();
            proptest::prop_assert_eq!(missing, left);
            proptest::prop_assert_eq!(Indexes::parse(&set.to_string(), below), set);
        }
    }
}
