//! Feeds a [`Sink`] with all keys and their changes, from one watch that is opened again at the next revision when its
//! member is lost. If that revision was compacted in between, the sink starts again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use machinery_env::{Deadline, Env};
use tokio::sync::{mpsc, watch};

use super::super::{Change, Entry, HISTORY_BYTES_MAX, HISTORY_RECORD_BYTES, Revision, Sink, StoreError};
use super::EtcdCluster;
use super::client::WatchStream;
use super::era::{Anchor, Era};
use super::keys::Mapping;
use super::messages::{
    KeyValue, RangeRequest, WatchCommand, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};

/// The size of a page of the first read.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// The number of keys of the first page.
const PAGE_KEYS: usize = 500;
const PAGE_KEYS_MAX: usize = 20_000;
/// The interval of progress requests to the member while a reader waits for a revision that the watch hasn't reached
/// (upstream: 100 ms). Writes of others in etcd take revisions, too.
const PROGRESS_EVERY: Duration = Duration::from_millis(20);
/// The pauses between attempts to open the watch.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A response of a watch.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Changes(Vec<Change>),
    /// All changes up to here were sent.
    Progress(Revision),
    /// The changes after the position are compacted.
    Compacted,
    Canceled(String),
    Nothing,
}

/// Reads a response of a watch that has sent all changes up to `position`. A value that can't be read counts as absent.
fn read(mapping: &Mapping, response: WatchResponse, position: Revision) -> Received {
    if response.canceled {
        return if response.compact_revision > 0 {
            Received::Compacted
        } else {
            Received::Canceled(response.cancel_reason)
        };
    }
    if response.events.is_empty() {
        let at = mapping.header_revision(response.header);
        return if response.created || at <= position { Received::Nothing } else { Received::Progress(at) };
    }
    let changes = response.events.into_iter().filter_map(|event| {
        let kv = event.kv?;
        let revision = mapping.revision(kv.mod_revision);
        let key = mapping.changed(&kv).filter(|_| revision > position)?;
        let entry = if event.kind == 0 { readable(mapping.entry(&kv)) } else { None };
        let previous = event.prev_kv.and_then(|kv| readable(mapping.entry(&kv)));
        Some(Change { revision, key, entry, previous })
    });
    Received::Changes(changes.collect())
}

fn readable(entry: Result<Entry, StoreError>) -> Option<Entry> {
    entry.inspect_err(|error| tracing::error!(%error, "a key is ignored")).ok()
}

/// The size of the history that a sink keeps, in steps.
#[derive(Debug, Default)]
struct HistorySize {
    bytes: usize,
    /// The revisions at which the sizes were reached.
    marks: VecDeque<(Revision, usize)>,
}

impl HistorySize {
    /// Adds changes; returns the revision to compact to if history is too large.
    fn add(&mut self, changes: &[Change]) -> Option<Revision> {
        let size = |change: &Change| HISTORY_RECORD_BYTES + change.entry.as_ref().map_or(0, |e| e.record.bytes_len());
        self.bytes += changes.iter().map(size).sum::<usize>();
        let last = changes.last()?.revision;
        if self.marks.back().is_none_or(|(_, at)| self.bytes > at + HISTORY_BYTES_MAX / 64) {
            self.marks.push_back((last, self.bytes));
        }
        if self.bytes <= HISTORY_BYTES_MAX {
            return None;
        }
        let half = self.marks.partition_point(|(_, at)| *at <= self.bytes / 2).max(1).min(self.marks.len());
        let (to, dropped) = self.marks.drain(..half).next_back()?;
        self.subtract(dropped);
        Some(to)
    }

    /// History up to a revision is gone.
    fn compacted(&mut self, to: Revision) {
        let gone = self.marks.partition_point(|(at, _)| *at <= to);
        let last = self.marks.drain(..gone).next_back();
        self.subtract(last.map_or(0, |(_, dropped)| dropped));
    }

    fn subtract(&mut self, dropped: usize) {
        self.bytes = self.bytes.saturating_sub(dropped);
        self.marks.iter_mut().for_each(|(_, at)| *at = at.saturating_sub(dropped));
    }
}

/// All entries and the revision of the read.
pub(super) async fn read_all(cluster: &EtcdCluster) -> Result<(Vec<Entry>, Revision), StoreError> {
    let era = cluster.present()?;
    let (kvs, at) = read_values_in(cluster, &era).await?;
    let entries = kvs.iter().map(|kv| era.mapping.entry(kv)).collect::<Result<_, StoreError>>()?;
    Ok((entries, at))
}

/// All keys and the revision of the read.
pub(super) async fn read_values(cluster: &EtcdCluster) -> Result<(Vec<KeyValue>, Revision), StoreError> {
    let era = cluster.present()?;
    read_values_in(cluster, &era).await
}

async fn read_values_in(cluster: &EtcdCluster, era: &Era) -> Result<(Vec<KeyValue>, Revision), StoreError> {
    let (mut key, range_end) = era.mapping.all();
    let (mut all, mut at, mut limit) = (Vec::new(), 0, PAGE_KEYS);
    loop {
        let (key_now, range_end) = (key.clone(), range_end.clone());
        let request =
            RangeRequest { key: key_now, range_end, limit: i64::try_from(limit).unwrap_or(i64::MAX), revision: at };
        let mut page = cluster.range_in(era, request).await?;
        if at == 0 {
            at = page.header.map_or(0, |header| header.revision);
        }
        let bytes = 1 + page.kvs.iter().map(|kv| kv.value.len()).sum::<usize>();
        limit = (page.kvs.len().saturating_mul(PAGE_BYTES) / bytes).clamp(1, PAGE_KEYS_MAX);
        let next = page.kvs.last().filter(|_| page.more).map(|last| [&last.key[..], &[0]].concat());
        all.append(&mut page.kvs);
        match next {
            Some(next) => key = next,
            None => return Ok((all, era.mapping.revision(at))),
        }
    }
}

/// The task that feeds a sink.
pub(super) struct Follower {
    cluster: Arc<EtcdCluster>,
    sink: Arc<dyn Sink>,
    /// All changes up to here were fed.
    position: Revision,
    /// The number of the position's era.
    era: u64,
    /// The last change that was fed; none after a list. Without changes for as long as etcd keeps history, it is dropped.
    anchor: Option<Anchor>,
    /// The newest revision that a reader waits for; closed when the store is dropped.
    wanted: watch::Receiver<Revision>,
    /// The revision up to which history was compacted.
    compacted: watch::Receiver<Revision>,
    /// The number of eras that have ended.
    ended: watch::Receiver<u64>,
}

/// Why a watch ended.
enum End {
    Lost(StoreError),
    Compacted,
    /// etcd's history was replaced.
    WentBack,
    /// The store was dropped.
    Dropped,
}

/// Why etcd ended a watch.
enum Ended {
    Compacted,
    Canceled(String),
}

impl Follower {
    pub(super) fn new(
        cluster: Arc<EtcdCluster>,
        sink: Arc<dyn Sink>,
        position: Revision,
        wanted: watch::Receiver<Revision>,
        compacted: watch::Receiver<Revision>,
    ) -> Self {
        let (ended, era) = (cluster.ended.subscribe(), cluster.era().number);
        Self { cluster, sink, position, era, anchor: None, wanted, compacted, ended }
    }

    /// Follows until the store is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = BACK_OFF.0;
        let mut size = HistorySize::default();
        loop {
            let before = self.position;
            let end = self.follow(&mut size).await;
            if self.position > before {
                pause = BACK_OFF.0;
            }
            let lost = match end {
                End::Dropped => return,
                End::Lost(error) => error,
                // The position may be later than what was compacted.
                End::Compacted if self.anchor.take().is_some() => continue,
                End::Compacted => match self.start_again().await {
                    Ok(()) => {
                        tracing::warn!(
                            revision = self.position,
                            "etcd compacted changes that were not watched: clients list again"
                        );
                        size = HistorySize::default();
                        continue;
                    }
                    Err(error) => error,
                },
                End::WentBack => match self.begin_era().await {
                    Ok(()) => {
                        tracing::error!(
                            revision = self.position,
                            "the watch cache was built again from etcd's present state: clients list again"
                        );
                        (size, pause) = (HistorySize::default(), BACK_OFF.0);
                        continue;
                    }
                    Err(error) => {
                        // Once for each outage.
                        if pause == BACK_OFF.0 {
                            tracing::error!(%error, "no request is served until etcd's present state can be read");
                        }
                        error
                    }
                },
            };
            if pause == BACK_OFF.0 {
                tracing::warn!(error = %lost, revision = self.position, "the watch of etcd is opened again");
            } else {
                tracing::debug!(error = %lost, revision = self.position, "the watch of etcd is opened again");
            }
            let sleep = self.cluster.env.sleep(pause);
            tokio::select! {
                () = sleep => {}
                () = dropped(&mut self.wanted) => return,
            }
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Feeds the present state.
    async fn start_again(&mut self) -> Result<(), StoreError> {
        let era = self.cluster.era().number;
        let (entries, at) = read_all(&self.cluster).await?;
        self.sink.start(entries, at);
        (self.position, self.era, self.anchor) = (at, era, None);
        Ok(())
    }

    /// Begins an era after the one that has ended, unless an attempt before did so.
    async fn begin_era(&mut self) -> Result<(), StoreError> {
        if self.has_ended() {
            self.cluster.renew().await?;
        }
        self.start_again().await
    }

    fn has_ended(&mut self) -> bool {
        *self.ended.borrow_and_update() > self.cluster.era().number
    }

    /// One watch, from the position on.
    async fn follow(&mut self, size: &mut HistorySize) -> End {
        let cluster = self.cluster.clone();
        let era = cluster.era();
        if self.has_ended() || self.era != era.number {
            return End::WentBack;
        }
        let (commands, requests) = mpsc::channel(4);
        // From the last change on, which proves that the history is the one that was fed.
        let mut unproved = self.anchor.clone();
        let first = unproved.as_ref().map_or_else(|| era.mapping.after(self.position), |anchor| anchor.modified);
        let mut stream = match open(&cluster, &era, requests, &commands, first, false).await {
            Ok(stream) => stream,
            Err(error) => return End::Lost(error),
        };
        let mut request_at = None;
        loop {
            let awaited = *self.wanted.borrow_and_update() > self.position;
            // Kept until it is reached: readers that come in between don't postpone it.
            request_at = awaited.then(|| request_at.unwrap_or_else(|| cluster.env.deadline(PROGRESS_EVERY)));
            let response = tokio::select! {
                biased;
                ended = self.ended.changed() => match ended {
                    Ok(()) if self.has_ended() => return End::WentBack,
                    Ok(()) => continue,
                    Err(_) => return End::Dropped,
                },
                response = stream.next() => match response {
                    Ok(response) => response,
                    Err(error) => return End::Lost(error),
                },
                changed = self.wanted.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return End::Dropped,
                },
                changed = self.compacted.changed() => {
                    if changed.is_err() {
                        return End::Dropped;
                    }
                    let to = (*self.compacted.borrow_and_update()).min(self.position);
                    self.sink.compact(to);
                    size.compacted(to);
                    continue;
                }
                () = reached(&cluster.env, request_at) => {
                    request_at = None;
                    let command = Some(WatchCommand::Progress(WatchProgressRequest {}));
                    // A full channel has requests enough.
                    let _ = commands.try_send(WatchRequest { command });
                    continue;
                }
            };
            if let Err(end) = self.verify(&era, &response, &mut unproved).await {
                return end;
            }
            match self.receive(&era, response, size) {
                None => {}
                Some(Ended::Compacted) => return End::Compacted,
                Some(Ended::Canceled(reason)) => {
                    stream.leave();
                    return End::Lost(StoreError::Unavailable(format!("etcd canceled the watch: {reason}")));
                }
            }
        }
    }

    /// Checks that a response is of the history that was fed.
    async fn verify(&self, era: &Era, response: &WatchResponse, unproved: &mut Option<Anchor>) -> Result<(), End> {
        // A member may be behind: the newest revision decides.
        if response.created && era.mapping.header_revision(response.header) < self.position {
            self.cluster.newest().await.map_err(End::Lost)?;
        }
        if !response.events.is_empty()
            && let Some(anchor) = unproved.take()
            && !anchor.is_in(&response.events)
        {
            self.cluster.end(era, "the last change that was fed is not in its history");
            return Err(End::WentBack);
        }
        Ok(())
    }

    /// Feeds the changes of a response; returns why the watch has ended, if it has.
    fn receive(&mut self, era: &Era, response: WatchResponse, size: &mut HistorySize) -> Option<Ended> {
        let last_change = response.events.last().and_then(Anchor::of);
        match read(&era.mapping, response, self.position) {
            Received::Nothing => {}
            Received::Changes(changes) => {
                self.position = changes.last()?.revision;
                self.anchor = last_change;
                self.sink.commit(&changes);
                era.saw(self.position);
                if let Some(to) = size.add(&changes) {
                    self.sink.compact(to);
                }
            }
            Received::Progress(at) => {
                self.position = at;
                self.sink.progress(at);
                era.saw(at);
            }
            Received::Compacted => return Some(Ended::Compacted),
            Received::Canceled(reason) => return Some(Ended::Canceled(reason)),
        }
        None
    }
}

async fn reached(env: &Env, deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => env.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn dropped(wanted: &mut watch::Receiver<Revision>) {
    while wanted.changed().await.is_ok() {}
}

/// Opens a watch of all keys from a revision of etcd on.
async fn open<'a>(
    cluster: &'a EtcdCluster,
    era: &Era,
    requests: mpsc::Receiver<WatchRequest>,
    commands: &mpsc::Sender<WatchRequest>,
    start_revision: i64,
    prev_kv: bool,
) -> Result<WatchStream<'a>, StoreError> {
    let (key, range_end) = era.mapping.all();
    let create = WatchCreateRequest { key, range_end, start_revision, progress_notify: true, prev_kv };
    let _ = commands.try_send(WatchRequest { command: Some(WatchCommand::Create(create)) });
    let requests =
        futures::stream::unfold(requests, |mut requests| async move { Some((requests.recv().await?, requests)) });
    cluster.client.watch(requests).await
}

/// Sends the changes after a revision, with the values before, until the receiver is dropped or the watch ends.
pub(super) async fn send_changes(
    cluster: &EtcdCluster,
    after: Revision,
    sender: &mpsc::Sender<Result<Change, StoreError>>,
    sent: &watch::Sender<Revision>,
) {
    let (commands, requests) = mpsc::channel(4);
    let mut position = after;
    let ended = async {
        let era = cluster.present()?;
        let mut stream = open(cluster, &era, requests, &commands, era.mapping.after(after), true).await?;
        loop {
            match read(&era.mapping, stream.next().await?, position) {
                Received::Changes(changes) => {
                    for change in changes {
                        position = change.revision;
                        if sender.send(Ok(change)).await.is_err() {
                            return Ok(());
                        }
                        sent.send_replace(position);
                    }
                }
                Received::Compacted => return Err(StoreError::Compacted(0)),
                Received::Canceled(reason) => return Err(StoreError::Unavailable(format!("etcd: {reason}"))),
                Received::Progress(_) | Received::Nothing => {}
            }
        }
    };
    if let Err(error) = ended.await {
        let _ = sender.send(Err(error)).await;
        sent.send_modify(|_| {});
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Record;
    use super::super::keys::value;
    use super::super::messages::{Event, KeyValue, ResponseHeader};
    use super::*;

    fn event(kind: i32, key: &str, at: i64) -> Event {
        let value = if kind == 0 { value(&Record::plain(b"{}")).into() } else { Vec::new().into() };
        let key = format!("/p/{key}").into_bytes().into();
        Event {
            kind,
            kv: Some(KeyValue { key, value, create_revision: 2, mod_revision: at, ..KeyValue::default() }),
            prev_kv: None,
        }
    }

    fn response(events: Vec<Event>, at: i64) -> WatchResponse {
        WatchResponse {
            header: Some(ResponseHeader { revision: at, cluster_id: 7 }),
            events,
            ..WatchResponse::default()
        }
    }

    #[test]
    fn responses_become_changes_in_order_and_without_repeats() {
        let mapping = Mapping::new("/p", 0);
        let foreign = Event {
            kv: event(0, "c", 7).kv.map(|kv| KeyValue { value: b"k8s\0".to_vec().into(), ..kv }),
            ..event(0, "c", 7)
        };
        let events = vec![event(0, "a", 5), event(0, "a", 6), event(1, "b", 6), foreign];
        let Received::Changes(changes) = read(&mapping, response(events, 9), 5) else { panic!() };
        let seen: Vec<_> = changes.iter().map(|c| (c.revision, &*c.key, c.entry.is_some())).collect();
        assert_eq!(seen, [(6, "/registry/a", true), (6, "/registry/b", false), (7, "/registry/c", false)]);
        assert_eq!(read(&mapping, response(vec![], 9), 5), Received::Progress(9));
        assert_eq!(read(&mapping, response(vec![], 5), 5), Received::Nothing);
        let created = WatchResponse { created: true, ..response(vec![], 9) };
        assert_eq!(read(&mapping, created, 5), Received::Nothing, "earlier changes follow");
        let canceled = WatchResponse { canceled: true, cancel_reason: "no leader".into(), ..response(vec![], 9) };
        assert_eq!(read(&mapping, canceled.clone(), 5), Received::Canceled("no leader".into()));
        assert_eq!(read(&mapping, WatchResponse { compact_revision: 7, ..canceled }, 5), Received::Compacted);
    }

    #[test]
    fn a_large_history_is_halved() {
        let mut size = HistorySize::default();
        let record = Record::plain(&vec![b'x'; 1024 * 1024]);
        let change = |revision| {
            let key: Arc<str> = "/registry/a".into();
            let entry = Entry { key: key.clone(), record: record.clone(), created: 1, modified: revision };
            [Change { revision, key, entry: Some(entry), previous: None }]
        };
        assert_eq!((1..64).filter_map(|at| size.add(&change(at))).next(), None);
        let to = (64..70).find_map(|at| size.add(&change(at))).unwrap();
        assert!((28..36).contains(&to), "{to}");
        assert!(size.bytes < HISTORY_BYTES_MAX * 5 / 8);
        size.compacted(70);
        assert!(size.bytes <= HISTORY_RECORD_BYTES + record.bytes_len() && size.marks.is_empty(), "{size:?}");
    }
}
