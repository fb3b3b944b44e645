//! Responses by caller and Service: a bounded table, which requests read without a lock. A row is removed once a whole
//! sampling period had no call of it, so that the table has only rows whose rate is not zero.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use machinery_serve::net::{Origin, Peer, ServicePort};

use super::tally::{Counts, Tally};

/// The maximum number of rows of a container: pairs of a Service and a caller. More callers than this in a sampling period
/// are counted together, so that no crowd of them takes memory or makes responses of this node's API large.
pub(crate) const ROWS_MAX: usize = 64;
/// The maximum number of rows for the callers beyond that, one for each Service. Calls beyond both are not in the table.
const OTHER_ROWS_MAX: usize = 8;

/// A caller: its namespace and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Caller<'a> {
    /// No pod: a process of the host, a client of a NodePort, or the API server's proxy.
    Outside,
    /// A pod.
    Pod(&'a str, &'a str),
    /// The callers beyond the maximum of rows.
    Other,
}

/// Identifies a row: the namespace and name of the Service, unless the pod's address was called, and the caller.
type Key<'a> = (Option<(&'a str, &'a str)>, Caller<'a>);

/// The same, owned. The names are those of the data plane, not copies.
#[derive(Debug)]
enum OwnedCaller {
    Outside,
    Pod(Arc<str>, Arc<str>),
    Other,
}

/// One row.
#[derive(Debug)]
struct Row {
    via: Option<Arc<ServicePort>>,
    caller: OwnedCaller,
    tally: Tally,
}

fn service_of(via: Option<&Arc<ServicePort>>) -> Option<(&str, &str)> {
    via.map(|via| (&*via.service.namespace, &*via.service.name))
}

impl Row {
    fn key(&self) -> Key<'_> {
        let caller = match &self.caller {
            OwnedCaller::Outside => Caller::Outside,
            OwnedCaller::Pod(namespace, name) => Caller::Pod(namespace, name),
            OwnedCaller::Other => Caller::Other,
        };
        (service_of(self.via.as_ref()), caller)
    }
}

fn key(from: &Origin) -> Key<'_> {
    let caller = match &from.peer {
        Peer::Pod(caller) if !caller.pod.is_empty() => Caller::Pod(&caller.namespace, &caller.pod),
        Peer::Pod(_) | Peer::Host(_) | Peer::Node => Caller::Outside,
    };
    (service_of(from.via.as_ref()), caller)
}

/// A row as metrics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Calls<'a> {
    /// The Service's namespace and name.
    pub(crate) service: Option<(&'a str, &'a str)>,
    pub(crate) caller: Caller<'a>,
    /// The calls since the earlier of the last two samples.
    pub(crate) counts: Counts,
}

/// The rows, sorted by key.
type Rows = Vec<Arc<Row>>;

/// The table.
#[derive(Debug, Default)]
pub(super) struct Callers {
    rows: ArcSwap<Rows>,
    /// Held by changes of the set of rows.
    changes: Mutex<()>,
}

impl Callers {
    pub(super) fn record(&self, from: &Origin, took: Duration, is_error: bool) {
        let key = key(from);
        let rows = self.rows.load();
        let known = find(&rows, key).or_else(|at| match rows.len() {
            ..ROWS_MAX => Err(at),
            _ => find(&rows, (key.0, Caller::Other)),
        });
        match known {
            Ok(at) => rows[at].tally.record(took, is_error),
            Err(_) if rows.len() >= ROWS_MAX + OTHER_ROWS_MAX => {}
            Err(_) => self.add(from, took, is_error),
        }
    }

    /// Adds a row with its first call; beyond the maximum, that of the Service's other callers.
    fn add(&self, from: &Origin, took: Duration, is_error: bool) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.rows.load_full();
        let own = key(from);
        let is_full = rows.len() >= ROWS_MAX;
        let key = if is_full && find(&rows, own).is_err() { (own.0, Caller::Other) } else { own };
        let at = match find(&rows, key) {
            // Another request was first.
            Ok(at) => return rows[at].tally.record(took, is_error),
            Err(_) if rows.len() >= ROWS_MAX + OTHER_ROWS_MAX => return,
            Err(at) => at,
        };
        let caller = match (key.1, &from.peer) {
            (Caller::Pod(..), Peer::Pod(caller)) => OwnedCaller::Pod(caller.namespace.clone(), caller.pod.clone()),
            (Caller::Other, _) => OwnedCaller::Other,
            _ => OwnedCaller::Outside,
        };
        let row = Row { via: from.via.clone(), caller, tally: Tally::default() };
        row.tally.record(took, is_error);
        let mut rows = Rows::clone(&rows);
        rows.insert(at, Arc::new(row));
        self.rows.store(Arc::new(rows));
    }

    /// Takes a sample, and removes rows without a call since the last one. A call that is recorded at that moment may be
    /// lost with its row.
    pub(super) fn sample(&self) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = self.rows.load_full();
        let kept: Rows = rows.iter().filter(|row| row.tally.sample()).cloned().collect();
        if kept.len() < rows.len() {
            self.rows.store(Arc::new(kept));
        }
    }

    /// Passes each row to `show`, in the order of Services and callers.
    pub(super) fn each(&self, mut show: impl FnMut(Calls<'_>)) {
        for row in self.rows.load().iter() {
            let (service, caller) = row.key();
            show(Calls { service, caller, counts: row.tally.recent() });
        }
    }
}

fn find(rows: &Rows, key: Key<'_>) -> Result<usize, usize> {
    rows.binary_search_by(|row| row.key().cmp(&key))
}

#[cfg(test)]
mod tests {
    use machinery_api::ObjectKey;
    use machinery_rules::response_times;
    use machinery_serve::net;

    use super::*;

    fn from(pod: Option<&str>, service: Option<&str>) -> Origin {
        let local = ([127, 66, 0, 2], 80).into();
        let peer = match pod {
            Some(pod) => Peer::Pod(net::Caller {
                node: "n".into(),
                namespace: "shop".into(),
                pod: pod.into(),
                ip: None,
                names: Arc::default(),
            }),
            None => Peer::Host(local),
        };
        let via = service.map(|name| Arc::new(ServicePort { service: ObjectKey::new("shop", name), port: 80 }));
        Origin { peer, local, via }
    }

    fn shown(callers: &Callers) -> Vec<(String, u64, u64)> {
        let mut shown = Vec::new();
        callers.each(|calls| {
            let name = format!("{:?} {:?}", calls.service.map(|service| service.1), calls.caller);
            shown.push((name, response_times::count(&calls.counts.durations), calls.counts.errors));
        });
        shown
    }

    const TOOK: Duration = Duration::from_millis(1);

    #[test]
    fn calls_are_counted_by_service_and_caller() {
        let callers = Callers::default();
        for (pod, service, is_error) in [
            (Some("web"), Some("cart"), false),
            (Some("web"), Some("cart"), true),
            (None, Some("cart"), false),
            (Some("web"), None, false),
            (Some(""), None, false),
            (None, None, true),
        ] {
            callers.record(&from(pod, service), TOOK, is_error);
        }
        let want = [
            ("None Outside", 2, 1),
            ("None Pod(\"shop\", \"web\")", 1, 0),
            ("Some(\"cart\") Outside", 1, 0),
            ("Some(\"cart\") Pod(\"shop\", \"web\")", 2, 1),
        ];
        assert_eq!(shown(&callers), want.map(|(name, count, errors)| (name.to_owned(), count, errors)));
    }

    #[test]
    fn rows_without_calls_are_removed() {
        let callers = Callers::default();
        callers.record(&from(Some("a"), None), TOOK, false);
        callers.sample();
        callers.record(&from(Some("b"), None), TOOK, false);
        callers.sample();
        assert_eq!(shown(&callers), [("None Pod(\"shop\", \"b\")".to_owned(), 1, 0)]);
        callers.sample();
        assert!(shown(&callers).is_empty());
        callers.record(&from(Some("a"), None), TOOK, false);
        assert_eq!(shown(&callers), [("None Pod(\"shop\", \"a\")".to_owned(), 1, 0)]);
    }

    #[test]
    fn a_crowd_of_callers_is_counted_together() {
        let callers = Callers::default();
        callers.record(&from(Some("first"), Some("cart")), TOOK, false);
        for pod in 0..10 * ROWS_MAX {
            callers.record(&from(Some(&format!("pod-{pod}")), Some("cart")), TOOK, false);
        }
        callers.record(&from(Some("first"), Some("cart")), TOOK, false);
        let rows = shown(&callers);
        assert_eq!(rows.len(), ROWS_MAX + 1);
        assert_eq!(rows.iter().map(|row| row.1).sum::<u64>(), 10 * ROWS_MAX as u64 + 2, "none is lost");
        assert_eq!(rows[0], ("Some(\"cart\") Pod(\"shop\", \"first\")".to_owned(), 2, 0));
        assert_eq!(rows[ROWS_MAX].0, "Some(\"cart\") Other");
        for service in 0..10 * OTHER_ROWS_MAX {
            callers.record(&from(None, Some(&format!("service-{service}"))), TOOK, false);
        }
        assert_eq!(shown(&callers).len(), ROWS_MAX + OTHER_ROWS_MAX);
    }
}
