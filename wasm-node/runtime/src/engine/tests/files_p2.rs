//! `wasi:filesystem` 0.2 with hostile guests, written as text: a command that records the result of each call in one byte, and
//! writes them to the file `out` of its first volume.

use std::path::Path;
use std::time::Duration;

use super::*;

const WORLD: &str = r#"
  (import "wasi:filesystem/types@0.2.0" (instance $types
    (export "descriptor" (type $descriptor (sub resource)))
    (export "directory-entry-stream" (type $entries (sub resource)))
    (type $error-type (enum "access" "would-block" "already" "bad-descriptor" "busy" "deadlock" "quota" "exist"
      "file-too-large" "illegal-byte-sequence" "in-progress" "interrupted" "invalid" "io" "is-directory" "loop"
      "too-many-links" "message-size" "name-too-long" "no-device" "no-entry" "no-lock" "insufficient-memory"
      "insufficient-space" "not-directory" "not-empty" "not-recoverable" "unsupported" "no-tty" "no-such-device"
      "overflow" "not-permitted" "pipe" "read-only" "invalid-seek" "text-file-busy" "cross-device"))
    (export "error-code" (type $error (eq $error-type)))
    (type $kind-type (enum "unknown" "block-device" "character-device" "directory" "fifo" "symbolic-link"
      "regular-file" "socket"))
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
    (export "[method]descriptor.open-at" (func
      (param "self" (borrow $descriptor)) (param "path-flags" $path-flags) (param "path" string)
      (param "open-flags" $open-flags) (param "flags" $flags) (result (result (own $descriptor) (error $error)))))
    (export "[method]descriptor.write" (func (param "self" (borrow $descriptor)) (param "buffer" (list u8))
      (param "offset" u64) (result (result u64 (error $error)))))
    (export "[method]descriptor.symlink-at" (func (param "self" (borrow $descriptor)) (param "old-path" string)
      (param "new-path" string) (result (result (error $error)))))
    (export "[method]descriptor.rename-at" (func (param "self" (borrow $descriptor)) (param "old-path" string)
      (param "new-descriptor" (borrow $descriptor)) (param "new-path" string) (result (result (error $error)))))
    (export "[method]descriptor.read-directory" (func (param "self" (borrow $descriptor))
      (result (result (own $entries) (error $error)))))
    (export "[method]directory-entry-stream.read-directory-entry" (func (param "self" (borrow $entries))
      (result (result (option $entry) (error $error)))))))
  (alias export $types "descriptor" (type $descriptor))
  (alias export $types "directory-entry-stream" (type $entries))
  (import "wasi:filesystem/preopens@0.2.0" (instance $preopens
    (alias outer 1 $descriptor (type $descriptor-outer))
    (export "descriptor" (type $descriptor (eq $descriptor-outer)))
    (export "get-directories" (func (result (list (tuple (own $descriptor) string)))))))
"#;

/// Path number `n` is at `4096 + 64n`, its length at `3072 + 4n`. Results are 0, or one more than the error's number.
const LIBRARY: &str = r#"
    (import "h" "open" (func $open-at (param i32 i32 i32 i32 i32 i32 i32)))
    (import "h" "write" (func $write-at (param i32 i32 i32 i64 i32)))
    (import "h" "symlink" (func $symlink-at (param i32 i32 i32 i32 i32 i32)))
    (import "h" "rename" (func $rename-at (param i32 i32 i32 i32 i32 i32 i32)))
    (import "h" "list" (func $read-directory (param i32 i32)))
    (import "h" "next" (func $read-entry (param i32 i32)))
    (import "h" "directories" (func $directories (param i32)))
    (import "h" "drop-descriptor" (func $close (param i32)))
    (import "h" "drop-entries" (func $end-list (param i32)))
    (import "m" "memory" (memory 1))
    (import "m" "reset" (func $reset))
    (global $fd (mut i32) (i32.const 0))
    (global $notes (mut i32) (i32.const 0))
    (func $path (param $n i32) (result i32) (i32.add (i32.const 4096) (i32.mul (local.get $n) (i32.const 64))))
    (func $length (param $n i32) (result i32) (i32.load (i32.add (i32.const 3072) (i32.mul (local.get $n) (i32.const 4)))))
    (func $dir (param $n i32) (result i32)
      (i32.load (i32.add (i32.load (i32.const 64)) (i32.mul (local.get $n) (i32.const 12)))))
    (func $note (param $byte i32)
      (i32.store8 (i32.add (i32.const 2048) (global.get $notes)) (local.get $byte))
      (global.set $notes (i32.add (global.get $notes) (i32.const 1))))
    ;; Opens a path below a folder: with flags of the path (1 follows links), of the open (1 creates) and of the descriptor.
    (func $open (param $dir i32) (param $n i32) (param $follow i32) (param $how i32) (param $flags i32) (result i32)
      (call $open-at (local.get $dir) (local.get $follow) (call $path (local.get $n)) (call $length (local.get $n))
        (local.get $how) (local.get $flags) (i32.const 16))
      (global.set $fd (i32.load (i32.const 20)))
      (if (result i32) (i32.load8_u (i32.const 16))
        (then (i32.add (i32.load8_u (i32.const 20)) (i32.const 1))) (else (i32.const 0))))
    (func $answer (result i32)
      (if (result i32) (i32.load8_u (i32.const 16))
        (then (i32.add (i32.load8_u (i32.const 17)) (i32.const 1))) (else (i32.const 0))))
    (func $symlink (param $dir i32) (param $to i32) (param $n i32) (result i32)
      (call $symlink-at (local.get $dir) (call $path (local.get $to)) (call $length (local.get $to))
        (call $path (local.get $n)) (call $length (local.get $n)) (i32.const 16))
      (call $answer))
    (func $rename (param $dir i32) (param $n i32) (param $to-dir i32) (param $to i32) (result i32)
      (call $rename-at (local.get $dir) (call $path (local.get $n)) (call $length (local.get $n)) (local.get $to-dir)
        (call $path (local.get $to)) (call $length (local.get $to)) (i32.const 16))
      (call $answer))
    ;; How many names a folder has now.
    (func $count (param $dir i32) (result i32)
      (local $list i32) (local $count i32)
      (call $read-directory (local.get $dir) (i32.const 16))
      (if (i32.load8_u (i32.const 16)) (then (return (i32.const -1))))
      (local.set $list (i32.load (i32.const 20)))
      (block $end
        (loop $next
          (call $reset)
          (call $read-entry (local.get $list) (i32.const 16))
          (if (i32.load8_u (i32.const 16)) (then (local.set $count (i32.const -1)) (br $end)))
          (br_if $end (i32.eqz (i32.load8_u (i32.const 20))))
          (local.set $count (i32.add (local.get $count) (i32.const 1)))
          (br $next)))
      (call $end-list (local.get $list))
      (local.get $count))
"#;

fn command(paths: &[&str], body: &str) -> String {
    let text = |at: usize, bytes: &[u8]| {
        let escaped: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
        format!("(data (i32.const {at}) \"{escaped}\")")
    };
    let data: String = ["out"].iter().chain(paths).enumerate().fold(String::new(), |data, (n, path)| {
        assert!(path.len() <= 64);
        data + &text(4096 + 64 * n, path.as_bytes()) + &text(3072 + 4 * n, &(path.len() as u32).to_le_bytes())
    });
    let lowered = [
        ("open", "[method]descriptor.open-at"),
        ("write", "[method]descriptor.write"),
        ("symlink", "[method]descriptor.symlink-at"),
        ("rename", "[method]descriptor.rename-at"),
        ("list", "[method]descriptor.read-directory"),
        ("next", "[method]directory-entry-stream.read-directory-entry"),
    ];
    let lower = |(name, of): (&str, &str)| {
        format!("(core func ${name} (canon lower (func $types \"{of}\") (memory $mem) (realloc $realloc)))")
    };
    let lowers: String = lowered.into_iter().map(lower).collect();
    let exports: String = lowered.iter().map(|(name, _)| format!("(export \"{name}\" (func ${name}))")).collect();
    format!(
        r#"(component {WORLD}
  (core module $memory
    (memory (export "memory") 128)
    (global $next (mut i32) (i32.const 65536))
    (func (export "reset") (global.set $next (i32.const 69632)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    {data})
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (core func $realloc (alias core export $memory "realloc"))
  {lowers}
  (core func $directories (canon lower (func $preopens "get-directories") (memory $mem) (realloc $realloc)))
  (core func $drop-descriptor (canon resource.drop $descriptor))
  (core func $drop-entries (canon resource.drop $entries))
  (core module $main {LIBRARY}
    (func (export "run") (result i32) (local $n i32) (local $m i32)
      (call $directories (i32.const 64))
      {body}
      (if (call $open (call $dir (i32.const 0)) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 3))
        (then (return (i32.const 1))))
      (call $write-at (global.get $fd) (i32.const 2048) (global.get $notes) (i64.const 0) (i32.const 16))
      (i32.const 0)))
  (core instance $main (instantiate $main
    (with "m" (instance $memory))
    (with "h" (instance {exports}
      (export "directories" (func $directories)) (export "drop-descriptor" (func $drop-descriptor))
      (export "drop-entries" (func $drop-entries))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exported)))"#
    )
}

/// Runs it with folders `a` and `b`, the second one writable or not; returns its results.
async fn run(bench: &Bench, text: &str, b_writable: bool) -> Vec<u8> {
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    let folder = |name: &str, writable: bool| {
        let host = bench.dir.path().join(name);
        std::fs::create_dir_all(&host).unwrap();
        Preopen { host, sub_paths: Vec::new(), guest: format!("/{name}"), writable }
    };
    let preopens = vec![folder("a", true), folder("b", b_writable)];
    let (container, log) = bench.container(loaded, |spec| spec.preopens = preopens);
    let outcome = container.run(std::future::pending()).await;
    assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
    std::fs::read(bench.dir.path().join("a/out")).unwrap()
}

/// Runs it with writable folders of the bench by their path in the guest; returns its results.
async fn run_in(bench: &Bench, text: &str, guests: &[&str], change: impl FnOnce(&mut ContainerSpec)) -> Vec<u8> {
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    let folder = |guest: &&str| {
        let host = bench.dir.path().join(guest.trim_start_matches('/'));
        std::fs::create_dir_all(&host).unwrap();
        Preopen { host, sub_paths: Vec::new(), guest: (*guest).to_owned(), writable: true }
    };
    let (container, log) = bench.container(loaded, |spec| {
        spec.preopens = guests.iter().map(folder).collect();
        change(spec);
    });
    let outcome = container.run(std::future::pending()).await;
    assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
    std::fs::read(bench.dir.path().join(guests[0].trim_start_matches('/')).join("out")).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const OK: u8 = 0;
const QUOTA: u8 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_written_in_part() {
    let bench = Bench::new();
    // 3 MiB at once from 1 MiB of memory on, then the rest of it, with the number of calls as the result.
    let body = "
      (drop (call $open (call $dir (i32.const 0)) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 3)))
      (i32.store8 (i32.const 4194303) (i32.const 77))
      (loop $more
        (call $write-at (global.get $fd) (i32.add (i32.const 1048576) (local.get $n))
          (i32.sub (i32.const 3145728) (local.get $n)) (i64.extend_i32_u (local.get $n)) (i32.const 16))
        (if (i32.load8_u (i32.const 16)) (then unreachable))
        (local.set $n (i32.add (local.get $n) (i32.load (i32.const 24))))
        (local.set $m (i32.add (local.get $m) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $n) (i32.const 3145728))))
      (call $note (local.get $m))";
    assert_eq!(run(&bench, &command(&["long"], body), true).await, [3]);
    let written = std::fs::read(bench.dir.path().join("a/long")).unwrap();
    assert_eq!((written.len(), written[0], written[written.len() - 1]), (3 << 20, 0, 77));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_device_discards() {
    let bench = Bench::new();
    let (null, beside) = (bench.dir.path().join("dev/null"), bench.dir.path().join("dev/beside"));
    // Opens a path of /dev, writes 60,000 bytes and notes how many were taken, in 256.
    let write = |path: usize| {
        format!(
            "(call $note (call $open (call $dir (i32.const 1)) (i32.const {path}) (i32.const 0) (i32.const 9) (i32.const 3)))
             (call $write-at (global.get $fd) (i32.const 65536) (i32.const 60000) (i64.const 0) (i32.const 16))
             (call $note (call $answer))
             (call $note (i32.div_u (i32.load (i32.const 24)) (i32.const 256)))"
        )
    };
    let body = [write(1), write(2), write(3)].concat();
    let notes = run_in(&bench, &command(&["null", "./null", "beside"], &body), &["/a", "/dev"], |_| {}).await;
    assert_eq!(notes, [OK, OK, 234].repeat(3));
    assert_eq!((null.metadata().unwrap().len(), beside.metadata().unwrap().len()), (0, 60_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn relative_paths_begin_at_the_working_directory() {
    let bench = Bench::new();
    // Makes the file of path 1 in each folder whose name has one character, as C libraries do for a relative path; notes how
    // many folders there are.
    let body = "
      (loop $next
        (if (i32.eq (i32.load (i32.add (i32.load (i32.const 64)) (i32.add (i32.mul (local.get $n) (i32.const 12)) (i32.const 8))))
            (i32.const 1))
          (then (call $note
            (call $open (call $dir (local.get $n)) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 3)))))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $n) (i32.load (i32.const 68)))))
      (call $note (local.get $n))";
    let text = command(&["made"], body);
    let (first, below) = (bench.dir.path().join("data/made"), bench.dir.path().join("data/sub/made"));
    std::fs::create_dir_all(bench.dir.path().join("data/sub")).unwrap();
    assert_eq!(run_in(&bench, &text, &["/data"], |_| {}).await, [1]);
    assert_eq!(run_in(&bench, &text, &["/data"], |spec| spec.cwd = Some("/none".into())).await, [1]);
    assert!(!first.exists());
    assert_eq!(run_in(&bench, &text, &["/data"], |spec| spec.cwd = Some("/data".into())).await, [OK, 2]);
    assert!(first.exists() && !below.exists());
    assert_eq!(run_in(&bench, &text, &["/data"], |spec| spec.cwd = Some("/data/sub".into())).await, [OK, 3]);
    assert!(below.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_of_a_guest_leads_out_of_its_volumes() {
    let bench = Bench::new();
    let (root, a) = (bench.dir.path(), bench.dir.path().join("a"));
    std::fs::create_dir_all(a.join("d")).unwrap();
    std::fs::write(root.join("secret"), "secret").unwrap();
    for (to, link) in [("../secret", "out1"), ("out1", "out2"), ("d/../../secret", "out3"), ("loop", "loop")] {
        std::os::unix::fs::symlink(to, a.join(link)).unwrap();
    }
    std::os::unix::fs::symlink(root.join("secret"), a.join("absolute")).unwrap();
    std::os::unix::fs::symlink("..", a.join("up")).unwrap();
    let absolute = root.join("secret").to_str().unwrap().to_owned();
    assert!(absolute.len() <= 64, "{absolute}");
    let paths = [
        "../secret",
        "/etc/passwd",
        &absolute,
        "d/../../secret",
        "./../secret",
        "d/../d/../../secret",
        "..",
        "/",
        "out1",
        "out2",
        "out3",
        "loop",
        "absolute",
        "up/secret",
        "up/../secret",
        "secret\0",
        "../new",
        "up/new",
        "made",
        "made/secret",
    ];
    // Opens each path, to read with links followed and to create; then creates a link out and follows it.
    let opens = "
        (local.set $n (i32.const 1))
        (loop $each
          (call $note (call $open (call $dir (i32.const 0)) (local.get $n) (i32.const 1) (i32.const 0) (i32.const 1)))
          (call $note (call $open (call $dir (i32.const 0)) (local.get $n) (i32.const 1) (i32.const 9) (i32.const 3)))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $each (i32.le_u (local.get $n) (i32.const 18))))
        (drop (call $symlink (call $dir (i32.const 0)) (i32.const 7) (i32.const 19)))
        (call $note (call $open (call $dir (i32.const 0)) (i32.const 20) (i32.const 1) (i32.const 0) (i32.const 1)))
        (call $note (call $symlink (call $dir (i32.const 0)) (i32.const 2) (i32.const 17)))";
    let notes = run(&bench, &command(&paths, opens), true).await;
    assert_eq!(notes.len(), 38);
    assert!(notes.iter().all(|note| *note != OK), "{notes:?}");
    assert_eq!(std::fs::read_to_string(root.join("secret")).unwrap(), "secret");
    assert!(!root.join("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn renames_stay_within_volumes_that_may_be_written() {
    let renames = "
      (call $note (call $rename (call $dir (i32.const 0)) (i32.const 1) (call $dir (i32.const 1)) (i32.const 2)))
      (call $note (call $rename (call $dir (i32.const 1)) (i32.const 3) (call $dir (i32.const 0)) (i32.const 2)))
      (call $note (call $rename (call $dir (i32.const 0)) (i32.const 4) (call $dir (i32.const 0)) (i32.const 2)))
      (call $note (call $rename (call $dir (i32.const 0)) (i32.const 1) (call $dir (i32.const 0)) (i32.const 4)))";
    let paths = ["f", "g", "h", "../h"];
    for writable in [true, false] {
        let bench = Bench::new();
        for (folder, file) in [("a", "f"), ("b", "h"), (".", "h")] {
            std::fs::create_dir_all(bench.dir.path().join(folder)).unwrap();
            std::fs::write(bench.dir.path().join(folder).join(file), folder).unwrap();
        }
        let notes = run(&bench, &command(&paths, renames), writable).await;
        let (a, b) = (names(&bench.dir.path().join("a")), names(&bench.dir.path().join("b")));
        if writable {
            assert_eq!((notes[0], notes[1]), (OK, OK), "{notes:?}");
            assert_eq!((a, b), (vec!["g".to_owned(), "out".to_owned()], vec!["g".to_owned()]));
        } else {
            assert!(notes.iter().all(|note| *note != OK), "{notes:?}");
            assert_eq!((a, b), (vec!["f".to_owned(), "out".to_owned()], vec!["h".to_owned()]));
        }
        assert!(notes[2] != OK && notes[3] != OK, "{notes:?}");
        assert_eq!(std::fs::read_to_string(bench.dir.path().join("h")).unwrap(), ".");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_without_end_is_an_error_of_the_guest() {
    let bench = Bench::new();
    // Opens until an error and records it; one handle is closed again for the results.
    let body = "
      (loop $more
        (local.set $n (call $open (call $dir (i32.const 0)) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 3)))
        (if (i32.eqz (local.get $n)) (then (local.set $m (global.get $fd)) (br $more))))
      (call $note (local.get $n))
      (call $close (local.get $m))";
    assert_eq!(run(&bench, &command(&["file"], body), true).await, [QUOTA]);
    let used = bench.engine.ledger().used(ledger::Resource::Descriptors);
    assert!(used <= 2, "{used} descriptors of a guest that has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_may_change_while_it_is_listed() {
    const STABLE: u8 = 100;
    let bench = Bench::new();
    let a = bench.dir.path().join("a");
    std::fs::create_dir(&a).unwrap();
    for name in 0..STABLE {
        std::fs::write(a.join(format!("stable-{name}")), "").unwrap();
    }
    let body = "
      (loop $again
        (local.set $m (call $count (call $dir (i32.const 0))))
        (call $note (i32.lt_s (local.get $m) (i32.const 100)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $n) (i32.const 200))))";
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stopped, folder) = (stop.clone(), a.clone());
    let changing = std::thread::spawn(move || {
        let mut round = 0_u32;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let name = folder.join(format!("passing-{}", round % 50));
            let _ = if round % 100 < 50 { std::fs::write(&name, "") } else { std::fs::remove_file(&name) };
            round += 1;
        }
    });
    let notes = run(&bench, &command(&[], body), true).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    changing.join().unwrap();
    assert_eq!(notes, vec![0; 200], "every name that was there all the time is listed, each time");
}

/// A folder `a` with a pipe without a writer, and a command that opens it for reading: it blocks for ever, as on a disk that
/// doesn't respond.
async fn staller(bench: &Bench) -> (std::path::PathBuf, Arc<PreparedModule>) {
    let a = bench.dir.path().join("a");
    std::fs::create_dir(&a).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, a.join("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let body = "(drop (call $open (call $dir (i32.const 0)) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 1)))";
    (a, bench.load_text(&command(&["pipe"], body), Metering::Epochs).await.unwrap())
}

/// Unblocks all readers of the pipe.
async fn release(folder: &Path, stalled: Vec<tokio::task::JoinHandle<runtime_api::Outcome>>) {
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(folder.join("pipe")).unwrap();
    for one in stalled {
        let _ = Env::real().timeout(Duration::from_secs(20), one).await.unwrap();
    }
    drop(writer);
}

/// Blocked file work uses up its own container's share only; requests are unaffected.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_file_operation_blocks_no_other_guest() {
    let bench = Bench::new();
    let (a, loaded) = staller(&bench).await;
    let mut stalled = Vec::new();
    for writable in [true, false, true, false] {
        let preopen = Preopen { host: a.clone(), sub_paths: Vec::new(), guest: "/a".into(), writable };
        let (container, _) = bench.container(loaded.clone(), |spec| spec.preopens = vec![preopen]);
        stalled.push(tokio::spawn(async move { container.run(std::future::pending()).await }));
    }
    let hello = bench.load_sample("hello", Metering::Epochs).await;
    let (hello, _) = bench.container(hello, |_| {});
    let server = hello.serve().unwrap();
    for _ in 0..50 {
        let answer = Env::real().timeout(Duration::from_secs(20), server.http(get("/"))).await;
        assert_eq!(answer.expect("others are served").status(), 200);
    }
    release(&a, stalled).await;
}

/// Pods that block all concurrent file work leave another pod its own.
#[tokio::test(flavor = "multi_thread")]
async fn pods_with_stalled_volumes_do_not_block_others() {
    let bench = Bench::new();
    let (a, loaded) = staller(&bench).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let preopen = Preopen { host: a.clone(), sub_paths: Vec::new(), guest: "/a".into(), writable: true };
        let (container, _) = bench.container(loaded.clone(), |spec| spec.preopens = vec![preopen]);
        for _ in 0..3 {
            let container = container.clone();
            stalled.push(tokio::spawn(async move { container.run(std::future::pending()).await }));
        }
    }
    // Each is counted as soon as it works; those without a thread wait.
    while bench.engine.disk().threads_held() < 40 {
        Env::real().sleep(Duration::from_millis(20)).await;
    }
    let victim = bench.dir.path().join("victim");
    std::fs::create_dir_all(&victim).unwrap();
    let counts = command(&[], "(call $note (call $count (call $dir (i32.const 0))))");
    let loaded = bench.load_text(&counts, Metering::Epochs).await.unwrap();
    let preopen = Preopen { host: victim.clone(), sub_paths: Vec::new(), guest: "/victim".into(), writable: true };
    let (container, log) = bench.container(loaded, |spec| spec.preopens = vec![preopen]);
    let outcome = Env::real().timeout(Duration::from_secs(20), container.run(std::future::pending())).await;
    assert_eq!(outcome.expect("its files are its own").exit_code, 0, "{}", log.text());
    assert_eq!(std::fs::read(victim.join("out")).unwrap(), [0]);
    release(&a, stalled).await;
}
