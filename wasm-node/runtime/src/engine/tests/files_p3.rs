//! `wasi:filesystem` 0.3 with guests written as text: the volumes, limits and accounts of 0.2.

use std::path::Path;

use super::*;
use runtime_api::Outcome;

const WORLD: &str = r#"
  (import "wasi:clocks/system-clock@0.3.0" (instance $clock
    (type $instant-type (record (field "seconds" s64) (field "nanoseconds" u32)))
    (export "instant" (type (eq $instant-type)))))
  (alias export $clock "instant" (type $instant))
  (import "wasi:filesystem/types@0.3.0" (instance $types
    (export "descriptor" (type $descriptor (sub resource)))
    (alias outer 1 $instant (type $instant-outer))
    (export "instant" (type $instant (eq $instant-outer)))
    (type $error-type (variant (case "access") (case "already") (case "bad-descriptor") (case "busy") (case "deadlock")
      (case "quota") (case "exist") (case "file-too-large") (case "illegal-byte-sequence") (case "in-progress")
      (case "interrupted") (case "invalid") (case "io") (case "is-directory") (case "loop") (case "too-many-links")
      (case "message-size") (case "name-too-long") (case "no-device") (case "no-entry") (case "no-lock")
      (case "insufficient-memory") (case "insufficient-space") (case "not-directory") (case "not-empty")
      (case "not-recoverable") (case "unsupported") (case "no-tty") (case "no-such-device") (case "overflow")
      (case "not-permitted") (case "pipe") (case "read-only") (case "invalid-seek") (case "text-file-busy")
      (case "cross-device") (case "other" (option string))))
    (export "error-code" (type $error (eq $error-type)))
    (type $kind-type (variant (case "block-device") (case "character-device") (case "directory") (case "fifo")
      (case "symbolic-link") (case "regular-file") (case "socket") (case "other" (option string))))
    (export "descriptor-type" (type $kind (eq $kind-type)))
    (type $flags-type (flags "read" "write" "file-integrity-sync" "data-integrity-sync" "requested-write-sync"
      "mutate-directory"))
    (export "descriptor-flags" (type $flags (eq $flags-type)))
    (type $path-flags-type (flags "symlink-follow"))
    (export "path-flags" (type $path-flags (eq $path-flags-type)))
    (type $open-flags-type (flags "create" "directory" "exclusive" "truncate"))
    (export "open-flags" (type $open-flags (eq $open-flags-type)))
    (type $entry-type (record (field "type" $kind) (field "name" string)))
    (export "directory-entry" (type $entry (eq $entry-type)))
    (type $time-type (variant (case "no-change") (case "now") (case "timestamp" $instant)))
    (export "new-timestamp" (type $time (eq $time-type)))
    (type $bytes (stream u8))
    (type $entries (stream $entry))
    (type $done (future (result (error $error))))
    (export "[method]descriptor.open-at" (func async
      (param "self" (borrow $descriptor)) (param "path-flags" $path-flags) (param "path" string)
      (param "open-flags" $open-flags) (param "flags" $flags) (result (result (own $descriptor) (error $error)))))
    (export "[method]descriptor.write-via-stream" (func (param "self" (borrow $descriptor)) (param "data" $bytes)
      (param "offset" u64) (result $done)))
    (export "[method]descriptor.read-via-stream" (func (param "self" (borrow $descriptor)) (param "offset" u64)
      (result (tuple $bytes $done))))
    (export "[method]descriptor.read-directory" (func (param "self" (borrow $descriptor))
      (result (tuple $entries $done))))
    (export "[method]descriptor.set-times" (func async (param "self" (borrow $descriptor))
      (param "data-access-timestamp" $time) (param "data-modification-timestamp" $time)
      (result (result (error $error)))))))
  (alias export $types "descriptor" (type $descriptor))
  (alias export $types "directory-entry" (type $entry))
  (import "wasi:filesystem/preopens@0.3.0" (instance $preopens
    (alias outer 1 $descriptor (type $descriptor-outer))
    (export "descriptor" (type $descriptor (eq $descriptor-outer)))
    (export "get-directories" (func (result (list (tuple (own $descriptor) string)))))))
  (import "wasi:cli/exit@0.3.0" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
"#;

/// The memory and the lowered functions.
const LOWERED: &str = r#"
  (type $bytes (stream u8))
  (type $entries (stream $entry))
  (core module $memory
    (memory (export "memory") 32)
    (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3))))
    (data (i32.const 1024) "file") (data (i32.const 2048) "partial"))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (core func $realloc (alias core export $memory "realloc"))
  (core func $directories (canon lower (func $preopens "get-directories") (memory $mem) (realloc $realloc)))
  (core func $open-at (canon lower (func $types "[method]descriptor.open-at") (memory $mem) (realloc $realloc)))
  (core func $write-via (canon lower (func $types "[method]descriptor.write-via-stream")))
  (core func $read-via (canon lower (func $types "[method]descriptor.read-via-stream") (memory $mem)))
  (core func $list (canon lower (func $types "[method]descriptor.read-directory") (memory $mem)))
  (core func $set-times (canon lower (func $types "[method]descriptor.set-times") (memory $mem) (realloc $realloc)))
  (core func $exit (canon lower (func $exit "exit-with-code")))
  (core func $stream-new (canon stream.new $bytes))
  (core func $stream-write (canon stream.write $bytes async (memory $mem)))
  (core func $stream-read (canon stream.read $bytes async (memory $mem)))
  (core func $entries-read (canon stream.read $entries async (memory $mem) (realloc $realloc)))
  (core func $stream-close (canon stream.drop-writable $bytes))
  (core func $set-new (canon waitable-set.new))
  (core func $set-wait (canon waitable-set.wait (memory $mem)))
  (core func $join (canon waitable.join))
  (core func $return (canon task.return (result (result))))
"#;

/// The core imports. `$open` opens "file" with open flags and flags, and returns its handle, or the error's number plus 1,000,000.
/// `$wait` returns the bytes or entries of an awaited stream's event.
const LIBRARY: &str = r#"
    (import "m" "memory" (memory 32))
    (import "h" "directories" (func $directories (param i32)))
    (import "h" "open-at" (func $open-at (param i32 i32 i32 i32 i32 i32 i32)))
    (import "h" "write-via" (func $write-via (param i32 i32 i64) (result i32)))
    (import "h" "read-via" (func $read-via (param i32 i64 i32)))
    (import "h" "list" (func $list (param i32 i32)))
    (import "h" "set-times" (func $set-times (param i32 i32 i64 i32 i32 i64 i32 i32)))
    (import "h" "exit" (func $exit (param i32)))
    (import "h" "stream-new" (func $stream-new (result i64)))
    (import "h" "stream-write" (func $stream-write (param i32 i32 i32) (result i32)))
    (import "h" "stream-read" (func $stream-read (param i32 i32 i32) (result i32)))
    (import "h" "entries-read" (func $entries-read (param i32 i32 i32) (result i32)))
    (import "h" "stream-close" (func $stream-close (param i32)))
    (import "h" "set-new" (func $set-new (result i32)))
    (import "h" "set-wait" (func $set-wait (param i32 i32) (result i32)))
    (import "h" "join" (func $join (param i32 i32)))
    (import "h" "return" (func $return (param i32)))
    (global $root (mut i32) (i32.const 0))
    (global $set (mut i32) (i32.const 0))
    (func (export "callback") (param i32 i32 i32) (result i32) unreachable)
    (func $wait (param $stream i32) (param $code i32) (result i32)
      (if (i32.ne (local.get $code) (i32.const -1)) (then (return (local.get $code))))
      (call $join (local.get $stream) (global.get $set))
      (drop (call $set-wait (global.get $set) (i32.const 64)))
      (call $join (local.get $stream) (i32.const 0))
      (i32.load (i32.const 68)))
    (func $open (param $open-flags i32) (param $flags i32) (result i32)
      (call $open-at (global.get $root) (i32.const 0) (i32.const 1024) (i32.const 4) (local.get $open-flags)
        (local.get $flags) (i32.const 128))
      (if (i32.load8_u (i32.const 128))
        (then (return (i32.add (i32.load8_u (i32.const 132)) (i32.const 1000000)))))
      (i32.load (i32.const 132)))
    ;; Writes the text at 2048 to a file; returns the code of the write.
    (func $put (param $file i32) (param $bytes i32) (result i32) (local $ends i64) (local $end i32)
      (local.set $ends (call $stream-new))
      (local.set $end (i32.wrap_i64 (i64.shr_u (local.get $ends) (i64.const 32))))
      (drop (call $write-via (local.get $file) (i32.wrap_i64 (local.get $ends)) (i64.const 0)))
      (call $wait (local.get $end)
        (call $stream-write (local.get $end) (i32.const 2048) (local.get $bytes)))
      (call $stream-close (local.get $end)))
"#;

const INSTANCE: &str = r#"
  (core instance $main (instantiate $main
    (with "m" (instance $memory))
    (with "h" (instance
      (export "directories" (func $directories)) (export "open-at" (func $open-at))
      (export "write-via" (func $write-via)) (export "read-via" (func $read-via)) (export "list" (func $list))
      (export "set-times" (func $set-times)) (export "exit" (func $exit)) (export "stream-new" (func $stream-new))
      (export "stream-write" (func $stream-write)) (export "stream-read" (func $stream-read))
      (export "entries-read" (func $entries-read)) (export "stream-close" (func $stream-close))
      (export "set-new" (func $set-new)) (export "set-wait" (func $set-wait)) (export "join" (func $join))
      (export "return" (func $return))))))
  (func $run async (result (result)) (canon lift (core func $main "run") async (callback (core func $main "callback"))))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $run)))"#;

/// A command whose `run` runs `body` with the first volume in `$root`.
fn command(body: &str) -> String {
    format!(
        r#"(component {WORLD} {LOWERED} (core module $main {LIBRARY}
    (func (export "run") (result i32) (local $n i32) (local $file i32) (local $code i32)
      (global.set $set (call $set-new))
      (call $directories (i32.const 16))
      (global.set $root (i32.load (i32.load (i32.const 16))))
      {body}
      (call $return (i32.const 0)) (i32.const 0)))
  {INSTANCE}"#
    )
}

fn volume(folder: &Path, writable: bool) -> Preopen {
    Preopen { host: folder.to_owned(), sub_paths: Vec::new(), guest: "/data".into(), writable }
}

async fn run(bench: &Bench, folder: &Path, writable: bool, body: &str) -> (Outcome, Arc<Log>) {
    let loaded = bench.load_text(&command(body), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |spec| {
        spec.preopens = vec![volume(folder, writable)];
    });
    let outcome = container.run(std::future::pending()).await;
    assert_eq!(bench.engine.memory_used_bytes(), 0, "all is given back");
    (outcome, log)
}

/// Creates and truncates "file", for reading and writing.
const CREATE: &str = "(local.set $file (call $open (i32.const 9) (i32.const 3)))";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_and_read_by_streams() {
    let bench = Bench::new();
    let root = tempfile::tempdir().unwrap();
    let body = format!(
        "{CREATE} (drop (call $put (local.get $file) (i32.const 7)))
         (call $read-via (local.get $file) (i64.const 3) (i32.const 16))
         (local.set $code (call $wait (i32.load (i32.const 16))
           (call $stream-read (i32.load (i32.const 16)) (i32.const 4096) (i32.const 100))))
         ;; The count and the first byte: 4 and 't'.
         (call $exit (i32.add (i32.shr_u (local.get $code) (i32.const 4)) (i32.load8_u (i32.const 4096))))"
    );
    let (outcome, log) = run(&bench, root.path(), true, &body).await;
    assert_eq!(outcome.exit_code, 4 + i32::from(b't'), "{outcome:?}: {}", log.text());
    assert_eq!(std::fs::read(root.path().join("file")).unwrap(), b"partial");
    // A read-only volume: `not-permitted` is number 30.
    let other = tempfile::tempdir().unwrap();
    let (outcome, _) = run(
        &bench,
        other.path(),
        false,
        &format!("{CREATE} (call $exit (i32.sub (local.get $file) (i32.const 1000000)))"),
    )
    .await;
    assert_eq!(outcome.exit_code, 30, "{outcome:?}");
    assert!(!other.path().join("file").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_listed_a_page_at_a_time() {
    let bench = Bench::new();
    let root = tempfile::tempdir().unwrap();
    for n in 0..200 {
        std::fs::write(root.path().join(format!("{n}-{}", "x".repeat(200))), "").unwrap();
    }
    let body = "(call $list (global.get $root) (i32.const 16))
        (block $end
          (loop $more
            (local.set $code (call $wait (i32.load (i32.const 16))
              (call $entries-read (i32.load (i32.const 16)) (i32.const 8192) (i32.const 100))))
            (local.set $n (i32.add (local.get $n) (i32.shr_u (local.get $code) (i32.const 4))))
            ;; The low bits are 0 until the other end is dropped.
            (br_if $more (i32.eqz (i32.and (local.get $code) (i32.const 15))))))
        (call $exit (local.get $n))";
    let (outcome, log) = run(&bench, root.path(), false, body).await;
    assert_eq!(outcome.exit_code, 200, "{outcome:?}: {}", log.text());
}

/// GHSA-mr2v-56j5-cmfc: a time before 1970 panics the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_before_1970_is_no_panic() {
    let bench = Bench::new();
    let root = tempfile::tempdir().unwrap();
    for seconds in ["-1", "-62135596801", "-9223372036854775808", "9223372036854775807"] {
        let set = format!(
            "{CREATE} (call $set-times (local.get $file) (i32.const 2) (i64.const {seconds}) (i32.const -1) (i32.const 2)
               (i64.const {seconds}) (i32.const -1) (i32.const 256))"
        );
        let (outcome, log) = run(&bench, root.path(), true, &set).await;
        assert_eq!(outcome.exit_code, 0, "{seconds}: {outcome:?}: {}", log.text());
    }
}

/// Streams of empty writes cost the volume nothing, and open files end at the bound of 0.2.
#[tokio::test(flavor = "multi_thread")]
async fn files_have_the_bounds_of_the_other_version() {
    let bench = Bench::new();
    let root = tempfile::tempdir().unwrap();
    let text = command(&format!("{CREATE} (drop (call $put (local.get $file) (i32.const 0)))"));
    let loaded = bench.load_text(&text, Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |spec| spec.preopens = vec![volume(root.path(), true)]);
    assert_eq!(container.run(std::future::pending()).await.exit_code, 0, "{}", log.text());
    assert_eq!(container.stats().disk_changes, 1, "that of the opening");
    // `quota` is number 5.
    let many = format!(
        "(loop {CREATE} (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if 0 (i32.lt_u (local.get $file) (i32.const 1000000))))
         (if (i32.gt_u (local.get $n) (i32.const 257)) (then unreachable))
         (call $exit (i32.sub (local.get $file) (i32.const 1000000)))"
    );
    let (outcome, log) = run(&bench, root.path(), true, &many).await;
    assert_eq!(outcome.exit_code, 5, "{outcome:?}: {}", log.text());
}
