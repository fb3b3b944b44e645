//! Field sets as tries of member paths. A path below a member is a member only if it was added itself; common subtrees
//! are shared.

use std::cmp::Ordering;
use std::sync::Arc;

use super::path::PathElement;

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// By element.
    pub(super) nodes: Vec<Node>,
}

/// An element of a set: whether it is a member, and the set below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) element: PathElement,
    pub(super) member: bool,
    /// Never an empty set.
    pub(super) below: Option<Arc<Set>>,
}

fn some(set: Set) -> Option<Arc<Set>> {
    (!set.is_empty()).then(|| Arc::new(set))
}

impl Set {
    /// Whether the set has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Builds a set from unordered nodes; of duplicates the last one's subtree counts.
    pub(super) fn of_nodes(mut nodes: Vec<Node>) -> Self {
        if !nodes.is_sorted_by(|a, b| a.element < b.element) {
            nodes.sort_by(|a, b| a.element.cmp(&b.element));
            nodes.dedup_by(|later, kept| {
                let same = later.element == kept.element;
                if same {
                    kept.member |= later.member;
                    kept.below = later.below.take().or_else(|| kept.below.take());
                }
                same
            });
        }
        Self { nodes }
    }

    /// Builds a set from paths of field names.
    #[must_use]
    pub fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| PathElement::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// The number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        let below = |node: &Node| node.below.as_deref().map_or(0, Self::len);
        self.nodes.iter().map(|node| usize::from(node.member) + below(node)).sum()
    }

    pub(super) fn find(&self, element: &PathElement) -> Option<&Node> {
        self.nodes.binary_search_by(|node| node.element.cmp(element)).ok().map(|at| &self.nodes[at])
    }

    /// The node of an element, inserted if missing; the caller must make it a member or give it a subtree.
    pub(super) fn node(&mut self, element: &PathElement) -> &mut Node {
        let at = match self.nodes.last() {
            // Sorted input is appended at the end.
            Some(last) if last.element < *element => Err(self.nodes.len()),
            _ => self.nodes.binary_search_by(|node| node.element.cmp(element)),
        };
        let at = at.unwrap_or_else(|at| {
            self.nodes.insert(at, Node { element: element.clone(), member: false, below: None });
            at
        });
        &mut self.nodes[at]
    }

    /// Adds a path. The empty path, which is the whole object, is never a member.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => self.node(last).member = true,
            [first, rest @ ..] => {
                let below = self.node(first).below.get_or_insert_default();
                Arc::make_mut(below).insert(rest);
            }
        }
    }

    /// Whether a path is a member.
    #[must_use]
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.find(last).is_some_and(|node| node.member),
            [first, rest @ ..] => self.below(first).is_some_and(|below| below.has(rest)),
        }
    }

    /// The subtree below an element.
    #[must_use]
    pub fn below(&self, element: &PathElement) -> Option<&Self> {
        self.find(element)?.below.as_deref()
    }

    /// All pairs of nodes, by element.
    fn zip<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (Option<&'a Node>, Option<&'a Node>)> {
        let (mut ours, mut theirs) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        std::iter::from_fn(move || {
            let order = match (ours.peek(), theirs.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.element.cmp(&b.element),
            };
            let own = order.is_le().then(|| ours.next()).flatten();
            let other = order.is_ge().then(|| theirs.next()).flatten();
            Some((own, other))
        })
    }

    /// The union.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        let joined = self.zip(other).filter_map(|pair| match pair {
            (Some(a), Some(b)) => {
                let below = match (&a.below, &b.below) {
                    (Some(x), Some(y)) if Arc::ptr_eq(x, y) => Some(x.clone()),
                    (Some(x), Some(y)) => Some(Arc::new(x.union(y))),
                    (x, y) => x.clone().or_else(|| y.clone()),
                };
                Some(Node { element: a.element.clone(), member: a.member || b.member, below })
            }
            (one, other) => one.or(other).cloned(),
        });
        Self { nodes: joined.collect() }
    }

    fn kept(nodes: impl Iterator<Item = Node>) -> Self {
        Self { nodes: nodes.filter(|node| node.member || node.below.is_some()).collect() }
    }

    /// The intersection.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self::kept(self.zip(other).filter_map(|pair| {
            let (Some(a), Some(b)) = pair else { return None };
            let below = match (&a.below, &b.below) {
                (Some(x), Some(y)) => some(x.intersection(y)),
                _ => None,
            };
            Some(Node { element: a.element.clone(), member: a.member && b.member, below })
        }))
    }

    /// The difference: a member is removed without its descendants.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        Self::kept(self.zip(other).filter_map(|pair| match pair {
            (Some(a), Some(b)) => {
                let below = match (&a.below, &b.below) {
                    (Some(x), Some(y)) => some(x.difference(y)),
                    (x, _) => x.clone(),
                };
                Some(Node { element: a.element.clone(), member: a.member && !b.member, below })
            }
            (one, _) => one.cloned(),
        }))
    }

    /// The difference with descendants: a member is removed with its subtree.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        Self::kept(self.zip(other).filter_map(|pair| match pair {
            (Some(_), Some(b)) if b.member => None,
            (Some(a), Some(b)) => {
                let below = match (&a.below, &b.below) {
                    (Some(x), Some(y)) => some(x.without(y)),
                    (x, _) => x.clone(),
                };
                Some(Node { element: a.element.clone(), member: a.member, below })
            }
            (one, _) => one.cloned(),
        }))
    }

    /// The subset that matches one of the patterns, with all descendants; `None` in a pattern matches any element.
    #[must_use]
    pub fn matching(&self, patterns: &[&[Option<&str>]]) -> Self {
        let fits = |wanted: Option<&str>, element: &PathElement| match (wanted, element) {
            (None, _) => true,
            (Some(wanted), PathElement::Field(name)) => **name == *wanted,
            _ => false,
        };
        if patterns.iter().any(|pattern| pattern.is_empty()) {
            return self.clone();
        }
        Self::kept(self.nodes.iter().filter_map(|node| {
            let first = |pattern: &&[Option<&str>]| pattern.first().is_some_and(|first| fits(*first, &node.element));
            let rest: Vec<_> = patterns.iter().copied().filter(first).map(|pattern| &pattern[1..]).collect();
            if rest.is_empty() {
                return None;
            }
            let below = node.below.as_ref().and_then(|below| some(below.matching(&rest)));
            Some(Node { element: node.element.clone(), member: node.member, below })
        }))
    }

    /// Visits all members in upstream's order: those of a level before their descendants.
    pub fn each(&self, mut visit: impl FnMut(&[PathElement])) {
        fn walk(set: &Set, path: &mut Vec<PathElement>, visit: &mut dyn FnMut(&[PathElement])) {
            for node in set.nodes.iter().filter(|node| node.member) {
                path.push(node.element.clone());
                visit(path);
                path.pop();
            }
            for node in &set.nodes {
                if let Some(below) = &node.below {
                    path.push(node.element.clone());
                    walk(below, path, visit);
                    path.pop();
                }
            }
        }
        walk(self, &mut Vec::new(), &mut visit);
    }

    /// All members in print format.
    #[must_use]
    pub fn printed(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.each(|path| all.push(super::path::printed(path)));
        all
    }
}
