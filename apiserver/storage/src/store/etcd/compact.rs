//! Compaction of etcd every five minutes by one API server at a time, as upstream's: the one that writes the next version of
//! one key compacts, the others learn the revision from it. Upstream's API servers on the same etcd take part, so the
//! revisions here are etcd's own, without the offset of a restored backup.

use std::time::Duration;

use super::super::COMPACT_EVERY;
use super::messages::{CompareRequest, RequestOp, TxnRequest, TxnResponse};

/// Upstream's key, which is outside of every prefix: a compaction concerns all of etcd.
const KEY: &[u8] = b"compact_rev_key";

/// When to compact next, and to what.
#[derive(Debug, Default)]
pub(super) struct Compactor {
    next: Option<Duration>,
    /// The newest known version of [`KEY`].
    version: i64,
    /// The newest revision at the last turn, to which the next one compacts; 0: unknown.
    last: i64,
}

/// An attempt to be the one that compacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    version: i64,
    to: i64,
}

/// The revision up to which history is compacted; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompactTo {
    pub(super) revision: i64,
    /// Whether this API server compacts.
    pub(super) is_ours: bool,
}

impl Compactor {
    /// The turn, if the time has come. The first one only reads the revision.
    pub(super) fn due(&mut self, now: Duration) -> Option<Turn> {
        if self.next.is_some_and(|at| now < at) {
            return None;
        }
        self.next = Some(now + COMPACT_EVERY);
        Some(Turn { version: self.version, to: self.last })
    }

    /// The result of a turn.
    pub(super) fn took_turn(&mut self, turn: &Turn, response: TxnResponse) -> CompactTo {
        self.last = response.header.map_or(0, |header| header.revision);
        if response.succeeded {
            self.version = turn.version + 1;
            return CompactTo { revision: turn.to, is_ours: turn.to > 0 };
        }
        let Some(kv) = response.into_first() else { return CompactTo { revision: 0, is_ours: false } };
        self.version = kv.version;
        let to = std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        CompactTo { revision: to, is_ours: false }
    }
}

impl Turn {
    /// Writes the key if its version is the known one, and reads it otherwise.
    pub(super) fn request(self) -> TxnRequest {
        TxnRequest {
            compare: vec![CompareRequest::version(KEY.into(), self.version)],
            success: vec![RequestOp::put(KEY.into(), self.to.to_string().into_bytes(), 0)],
            failure: vec![RequestOp::read(KEY.into())],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{KeyValue, RangeResponse, Response, ResponseHeader, ResponseOp};
    use super::*;

    fn won(at: i64) -> TxnResponse {
        TxnResponse {
            header: Some(ResponseHeader { revision: at, ..ResponseHeader::default() }),
            succeeded: true,
            responses: Vec::new(),
        }
    }

    fn lost(at: i64, version: i64, value: &'static [u8]) -> TxnResponse {
        let kv = KeyValue { version, value: value.into(), ..KeyValue::default() };
        let range = RangeResponse { kvs: vec![kv], ..RangeResponse::default() };
        let responses = vec![ResponseOp { response: Some(Response::Range(range)) }];
        TxnResponse { succeeded: false, responses, ..won(at) }
    }

    #[test]
    fn one_of_two_compacts_to_the_revision_of_its_last_turn() {
        let (mut one, mut two) = (Compactor::default(), Compactor::default());
        let at = |minute: u64| Duration::from_secs(60 * minute);
        let first = one.due(at(0)).unwrap();
        assert_eq!(one.took_turn(&first, won(10)), CompactTo { revision: 0, is_ours: false });
        let second = two.due(at(1)).unwrap();
        assert_eq!(two.took_turn(&second, lost(20, 1, b"0")), CompactTo { revision: 0, is_ours: false });
        assert_eq!(one.due(at(4)), None);
        let turn = one.due(at(5)).unwrap();
        assert_eq!(turn, Turn { version: 1, to: 10 });
        assert_eq!(one.took_turn(&turn, won(50)), CompactTo { revision: 10, is_ours: true });
        let turn = two.due(at(6)).unwrap();
        assert_eq!(turn, Turn { version: 1, to: 20 }, "the other one has written since");
        assert_eq!(two.took_turn(&turn, lost(60, 2, b"10")), CompactTo { revision: 10, is_ours: false });
        // The other one is gone.
        let turn = two.due(at(11)).unwrap();
        assert_eq!(turn, Turn { version: 2, to: 60 });
        assert_eq!(two.took_turn(&turn, won(90)), CompactTo { revision: 60, is_ours: true });
    }
}
