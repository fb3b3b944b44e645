//! The program under `tests/power-loss`: it fills an embedded store while its system calls are recorded, and prints what
//! a store holds after a crash.
//!
//! `power_loss write FOLDER SEED TRANSACTIONS [abort]` prints the state at the start, then a line before each transaction
//! and a line after its acknowledgement. With `abort` it ends in the middle. `power_loss check` reads folders from its
//! input, opens each, prints its state and history, writes once, and compares the state after another start.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use apiserver_storage::store::embedded::{EmbeddedStore, Options};
use apiserver_storage::store::{Compare, Op, Outcome, Record, Revision, Store, StoreError, Txn, prefix_end};
use jiff::Timestamp;
use machinery_env::Env;

/// Concurrent writers.
const TASKS: u64 = 3;
const KEYS: u64 = 20;
/// Operations of a transaction, besides the put that marks it.
const OPS_MAX: u64 = 5;
const VALUE_BYTES_MAX: u64 = 160;
/// Transactions of the first task between two compactions, and the revisions that a compaction keeps.
const COMPACT_EVERY: u64 = 8;
const COMPACT_KEEPS_MAX: u64 = 12;
const USAGE: &str = "usage: power_loss write FOLDER SEED TRANSACTIONS [abort] | power_loss check";

type Rows = BTreeMap<String, (Revision, Revision, String)>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Without the driver of sockets: a failed write to its wake-up descriptor, which the store doesn't have, would end no wait.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error {}\n", one_line(&*error)));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    match *arguments {
        ["check"] => check_all().await,
        ["write", folder, seed, transactions] => write_all(folder, seed, transactions, false).await,
        ["write", folder, seed, transactions, "abort"] => write_all(folder, seed, transactions, true).await,
        _ => Err(USAGE.into()),
    }
}

/// Writes lines to the standard output in one system call.
fn say(lines: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

fn one_line(error: &dyn Error) -> String {
    error.to_string().replace('\n', " ")
}

/// Sizes with which segments close, snapshots are written and segments are deleted every few transactions.
fn open(path: &Path) -> Result<Arc<EmbeddedStore>, StoreError> {
    let options = Options {
        segment_bytes_max: 2500,
        snapshot_after_bytes: 6000,
        reserve_bytes: 3000,
        read_first_format: Box::new(|_, body| Record::plain(body)),
        ..Options::default()
    };
    EmbeddedStore::open(path, Env::real(), options)
}

async fn state(store: &EmbeddedStore) -> Result<Rows, StoreError> {
    let range = store.range("/", &prefix_end("/"), None, 0).await?;
    let rows = range.entries.into_iter().map(|entry| {
        let value = String::from_utf8_lossy(&entry.record.body()).into_owned();
        (entry.key.to_string(), (entry.created, entry.modified, value))
    });
    Ok(rows.collect())
}

fn print_state(out: &mut String, store: &EmbeddedStore, state: &Rows) {
    let _ = writeln!(out, "at {} {}", store.revision(), store.compacted());
    for (key, (created, modified, value)) in state {
        let _ = writeln!(out, "row {key} {created} {modified} {value}");
    }
}

/// A transaction of several operations, one of which marks it by a key of its task, and its description.
fn draw(random: &Env, task: u64, id: &str) -> (Txn, String) {
    let key = || format!("/k/{:02}", random.below(KEYS));
    let mut line = format!("try {id}");
    let mut txn = Txn::default();
    if random.below(6) == 0 {
        let key = key();
        let _ = write!(line, " absent:{key}");
        txn.compares.push(Compare { key, modified: 0 });
    }
    let mut put = |ops: &mut Vec<Op>, key: String, bytes: u64| {
        let mut value = format!("{id}.{}.", ops.len());
        value.extend((0..bytes).map(|_| 'x'));
        let _ = write!(line, " put:{key}:{value}");
        ops.push(Op::Put { key, record: Record::plain(value.as_bytes()), ttl: None });
    };
    let mut deleted = Vec::new();
    for _ in 0..random.below(OPS_MAX + 1) {
        if random.below(4) == 0 {
            deleted.push(key());
        } else {
            put(&mut txn.ops, key(), random.below(VALUE_BYTES_MAX));
        }
    }
    put(&mut txn.ops, format!("/t/{task}"), 0);
    for key in deleted {
        let _ = write!(line, " delete:{key}");
        txn.ops.push(Op::Delete { key });
    }
    line.push('\n');
    (txn, line)
}

async fn write_all(folder: &str, seed: &str, transactions: &str, abort: bool) -> Result<(), Box<dyn Error>> {
    let (seed, transactions): (u64, u64) = (seed.parse()?, transactions.parse()?);
    let store = open(folder.as_ref())?;
    let mut lines = String::new();
    print_state(&mut lines, &store, &state(&store).await?);
    say(&format!("{lines}open\n"));
    store.start()?;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| tokio::spawn(write_some(store.clone(), seed, task, transactions / TASKS, abort)))
        .collect();
    for task in tasks {
        task.await?;
    }
    store.close();
    say("closed\n");
    Ok(())
}

/// The transactions of one task, one after another.
async fn write_some(store: Arc<EmbeddedStore>, seed: u64, task: u64, transactions: u64, abort: bool) {
    let (random, _) = Env::seeded(seed * TASKS + task, Timestamp::UNIX_EPOCH);
    let abort_at = if abort && task == 0 { random.below(transactions.max(1)) } else { u64::MAX };
    for n in 0..transactions {
        let id = format!("{seed}-{task}-{n}");
        let (txn, line) = draw(&random, task, &id);
        say(&line);
        if n == abort_at {
            let store = store.clone();
            tokio::spawn(async move { store.txn(txn).await });
            tokio::task::yield_now().await;
            std::process::abort();
        }
        match store.txn(txn).await {
            Ok(Outcome::Committed(revision)) => say(&format!("ack {id} {revision}\n")),
            Ok(Outcome::Conflict(_)) => say(&format!("conflict {id}\n")),
            Err(error) => say(&format!("rejected {id} {}\n", one_line(&error))),
        }
        if task == 0 && n % COMPACT_EVERY == COMPACT_EVERY - 1 {
            let revision = store.revision().saturating_sub(random.below(COMPACT_KEEPS_MAX));
            if revision > store.compacted()
                && let Err(error) = store.compact(revision).await
            {
                say(&format!("uncompacted {}\n", one_line(&error)));
            }
        }
    }
}

async fn check_all() -> Result<(), Box<dyn Error>> {
    for line in io::stdin().lock().lines() {
        let mut out = String::new();
        if let Err(error) = check(&PathBuf::from(line?), &mut out).await {
            let _ = writeln!(out, "error {}", one_line(&error));
        }
        out.push_str("end\n");
        say(&out);
    }
    Ok(())
}

/// Prints what a store holds and what it holds after a write and another start, if that is something else.
async fn check(path: &Path, out: &mut String) -> Result<(), StoreError> {
    let store = open(path)?;
    let (found, compacted) = (state(&store).await?, store.compacted());
    print_state(out, &store, &found);
    store.start()?;
    let put = Op::Put { key: "/check".into(), record: Record::plain(b"written"), ttl: None };
    let Outcome::Committed(written) = store.txn(Txn { compares: vec![], ops: vec![put] }).await? else {
        let _ = writeln!(out, "error an unconditional write was rejected");
        return Ok(());
    };
    let mut watch = store.watch("/", compacted).await?;
    loop {
        let change = watch.next().await?;
        if change.revision >= written {
            break;
        }
        let value = change.entry.map(|entry| String::from_utf8_lossy(&entry.record.body()).into_owned());
        let _ = writeln!(out, "change {} {} {}", change.revision, change.key, value.as_deref().unwrap_or("-"));
    }
    let _ = writeln!(out, "wrote {written}");
    let expected = state(&store).await?;
    store.close();
    drop(store);
    let again = open(path)?;
    if (again.revision(), state(&again).await?) != (written, expected) {
        let _ = writeln!(out, "error another start shows another state");
    }
    Ok(())
}
