//! Files: descriptors, listings, and CPU time of file work, each charged to its container.

use std::time::Duration;

use super::*;

const LIBRARY: &str = r#"
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "path_open"
      (func $path-open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pwrite" (func $pwrite (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 100) "file")
    ;; Opens (and makes) `file` of the first volume; its number goes to 8.
    (func $open (result i32)
      (call $path-open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 1)
        (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 8)))
    ;; Lists `fd` in pieces of `size` bytes; answers how many names there are.
    (func $list (param $fd i32) (param $size i32) (result i32)
      (local $cookie i64) (local $count i32) (local $at i32) (local $used i32)
      (loop $next
        (if (call $readdir (local.get $fd) (i32.const 4096) (local.get $size) (local.get $cookie) (i32.const 8))
          (then (return (i32.const -1))))
        (local.set $used (i32.load (i32.const 8)))
        (local.set $at (i32.const 0))
        (block $cut
          (loop $entry
            (br_if $cut (i32.gt_u (i32.add (local.get $at) (i32.const 24)) (local.get $used)))
            (br_if $cut (i32.gt_u
              (i32.add (i32.add (local.get $at) (i32.const 24))
                (i32.load (i32.add (i32.const 4096) (i32.add (local.get $at) (i32.const 16)))))
              (local.get $used)))
            (local.set $cookie (i64.load (i32.add (i32.const 4096) (local.get $at))))
            (local.set $count (i32.add (local.get $count) (i32.const 1)))
            (local.set $at (i32.add (i32.add (local.get $at) (i32.const 24))
              (i32.load (i32.add (i32.const 4096) (i32.add (local.get $at) (i32.const 16))))))
            (br $entry)))
        (br_if $next (i32.eq (local.get $used) (local.get $size))))
      (local.get $count))
"#;

fn module(body: &str) -> String {
    format!("(module {LIBRARY} (func (export \"_start\") (local $n i32) {body}))")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_device_discards() {
    let bench = Bench::new();
    let dev = Preopen { guest: "/dev".into(), ..volume(&bench, 0) };
    let host = dev.host.clone();
    // Opens a name of four bytes with these flags: errno.noent is 44.
    let open = |at: usize, flags: usize| {
        format!(
            "(call $path-open (i32.const 3) (i32.const 0) (i32.const {at}) (i32.const 4) (i32.const {flags})
               (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 8))"
        )
    };
    let write = "
      (i32.store (i32.const 16) (i32.const 4096)) (i32.store (i32.const 20) (i32.const 60000))
      (if (call $pwrite (i32.load (i32.const 8)) (i32.const 16) (i32.const 1) (i64.const 0) (i32.const 24))
        (then (call $exit (i32.const 3))))
      (if (i32.ne (i32.load (i32.const 24)) (i32.const 60000)) (then (call $exit (i32.const 4))))
      (if (call $set-times (i32.load (i32.const 8)) (i64.const 0) (i64.const 0) (i32.const 5)) (then (call $exit (i32.const 5))))
      (if (call $close (i32.load (i32.const 8))) (then (call $exit (i32.const 6))))";
    let opens = |at: usize| format!("(if {} (then (call $exit (i32.const 2))))", open(at, 9));
    let absent = format!("(if (i32.ne {} (i32.const 44)) (then (call $exit (i32.const 1))))", open(104, 0));
    let text = format!(
        r#"(module
             (import "wasi_snapshot_preview1" "fd_filestat_set_times" (func $set-times (param i32 i64 i64 i32) (result i32)))
             {LIBRARY} (data (i32.const 104) "null")
             (func (export "_start") {absent} {} {write} {} {write} {} {write}))"#,
        opens(104),
        opens(100),
        opens(104),
    );
    let loaded = bench.load_text(&text, Metering::Epochs).await.unwrap();
    let before = std::fs::metadata("/dev/null").unwrap().modified().unwrap();
    let (container, log) = bench.container(loaded, |spec| spec.preopens.push(dev));
    let outcome = container.run(never()).await;
    assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
    let bytes = |name: &str| host.join(name).metadata().unwrap().len();
    assert_eq!((bytes("null"), bytes("file")), (0, 60_000));
    assert!(std::fs::metadata("/dev/null").unwrap().modified().unwrap() >= before, "the host's device is untouched");
}

fn volume(bench: &Bench, names: usize) -> Preopen {
    let host = bench.dir.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    for name in 0..names {
        std::fs::write(host.join(format!("{name:0>200}")), "").unwrap();
    }
    Preopen { host, sub_paths: Vec::new(), guest: "/data".into(), writable: true }
}

async fn never() -> StopSignal {
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_files_without_end_is_an_error_of_that_guest() {
    let bench = Bench::new();
    let volume = volume(&bench, 0);
    // Exits with the error of the first open that fails: 33 is EMFILE. Closes and renumbers some before.
    let body = "
      (loop (local.set $n (call $open)) (br_if 0 (i32.eqz (local.get $n))))
      (drop (call $close (i32.const 10)))
      (drop (call $renumber (i32.const 11) (i32.const 12)))
      (if (call $open) (then (call $exit (i32.const 1))))
      (if (call $open) (then (call $exit (i32.const 2))))
      (local.set $n (call $open))
      (call $exit (local.get $n))";
    let loaded = bench.load_text(&module(body), Metering::Epochs).await.unwrap();
    let before =
        machinery_serve::descriptors::Descriptors::process().quota(machinery_serve::descriptors::Class::Guests).used();
    let (container, log) = bench.container(loaded, |spec| spec.preopens.push(volume));
    assert_eq!(container.run(never()).await.exit_code, 33, "{}", log.text());
    let quota = machinery_serve::descriptors::Descriptors::process().quota(machinery_serve::descriptors::Class::Guests);
    assert!(quota.used() <= before + 256, "given back: {} of {}", quota.used(), quota.max());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_complete_with_any_buffer_and_holds_a_page() {
    const NAMES: usize = 500;
    let bench = Bench::new();
    let volume = volume(&bench, NAMES);
    // Names of 200 bytes with 24 before each: all but the dots.
    let check = |size: usize| {
        format!(
            "(if (i32.ne (call $list (i32.const 3) (i32.const {size})) (i32.const {})) (then (call $exit (i32.const {}))))",
            NAMES + 2,
            size / 300
        )
    };
    let body = [300, 1000, 4096, 60_000].map(check).concat();
    let loaded = bench.load_text(&module(&body), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |spec| {
        spec.preopens.push(volume);
        spec.limits.memory_bytes = Some(1 << 20);
    });
    assert_eq!(container.run(never()).await.exit_code, 0, "{}", log.text());
    assert!(container.stats().memory_peak_bytes < 512 << 10, "{:?}", container.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn file_work_is_cpu_time_of_its_container() {
    let bench = Bench::new();
    let volume = volume(&bench, 500);
    let body = "(loop (drop (call $list (i32.const 3) (i32.const 60000))) (br 0))";
    let loaded = bench.load_text(&module(body), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |spec| {
        spec.preopens.push(volume);
        spec.limits.cpu_millis = Some(100);
    });
    let env = Env::real();
    let began = env.elapsed();
    let running = container.clone();
    let stop = async {
        Env::real().sleep(Duration::from_secs(2)).await;
        StopSignal::Kill
    };
    assert_eq!(running.run(stop).await.exit_code, 137, "{}", log.text());
    let (took, stats) = (env.elapsed() - began, container.stats());
    assert!(stats.cpu >= Duration::from_millis(50), "it is measured: {stats:?}");
    assert!(stats.cpu <= took / 5, "and held back: {:?} of {took:?}", stats.cpu);
    assert!(stats.cpu_throttled > Duration::ZERO);
}

/// Preview 1's files in memory count as the pod's memory, and end at their limit; a removal frees room.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn files_in_memory_end_at_their_limit() {
    use std::os::unix::fs::MetadataExt as _;

    const LIMIT: u64 = 1 << 20;
    let bench = Bench::new();
    let volume = volume(&bench, 0);
    let (folder, device) = (volume.host.clone(), std::fs::metadata(&volume.host).unwrap().dev());
    let pod = bench.engine.pod_ledger();
    let measured = folder.clone();
    let measure = move || {
        let files = std::fs::read_dir(&measured).into_iter().flatten().flatten();
        Some(files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum())
    };
    let files = Arc::new(runtime_api::MemoryFiles::new(device, LIMIT, pod.clone(), Box::new(measure)));
    // Writes pieces of 64 KiB one after the other, and exits with the error of the first that fails: 51 is ENOSPC.
    let body = "
      (if (call $open) (then (call $exit (i32.const 1))))
      (i32.store (i32.const 0) (i32.const 0))
      (i32.store (i32.const 4) (i32.const 65536))
      (loop
        (local.set $n (call $pwrite (i32.load (i32.const 8)) (i32.const 0) (i32.const 1)
          (i64.load (i32.const 16)) (i32.const 24)))
        (i64.store (i32.const 16) (i64.add (i64.load (i32.const 16)) (i64.const 65536)))
        (br_if 0 (i32.eqz (local.get $n))))
      (call $exit (local.get $n))";
    let loaded = bench.load_text(&module(body), Metering::Epochs).await.unwrap();
    for round in 0..2 {
        let (own, account) = (volume.clone(), files.clone());
        let ledger = pod.clone();
        let (container, log) = bench.container(loaded.clone(), |spec| {
            spec.preopens.push(own);
            spec.pod = ledger;
            spec.memory_files = Some(account);
        });
        assert_eq!(container.run(never()).await.exit_code, 51, "{round}: {}", log.text());
        let size = std::fs::metadata(folder.join("file")).unwrap().len();
        assert!((LIMIT - (64 << 10)..=LIMIT + (64 << 10)).contains(&size), "{round}: {size}");
        assert!(pod.used(runtime_api::ledger::Resource::Memory) >= LIMIT - (64 << 10), "it is the pod's memory");
        std::fs::remove_file(folder.join("file")).unwrap();
    }
    drop(files);
    assert_eq!(pod.used(runtime_api::ledger::Resource::Memory), 0);
}

/// A claim's volume with preview 1: a write that doesn't fit fails as a whole, existing bytes can be overwritten, and no
/// file moves in or out past the quota.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_claims_volume_holds_no_more_than_it_may() {
    use runtime_api::{VOLUME_FILES_MAX, VolumeQuota, VolumeUse};

    const LIMIT: u64 = 1 << 20;
    let bench = Bench::new();
    let volume = volume(&bench, 0);
    let folder = volume.host.canonicalize().unwrap();
    let other = Preopen { host: bench.dir.path().join("other"), guest: "/other".into(), ..volume.clone() };
    std::fs::create_dir(&other.host).unwrap();
    let quota = |files: u64| {
        let used = VolumeUse { bytes: 0, files };
        Arc::new(VolumeQuota::new(folder.clone(), LIMIT, used, Box::new(|_| None)))
    };
    // Exits with the number of the first unexpected step. 51 is ENOSPC, 75 EXDEV.
    let body = "
      (if (call $open) (then (call $exit (i32.const 1))))
      (loop
        (i32.store (i32.add (i32.const 1024) (i32.shl (local.get $n) (i32.const 3))) (i32.const 0))
        (i32.store (i32.add (i32.const 1028) (i32.shl (local.get $n) (i32.const 3))) (i32.const 65536))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if 0 (i32.lt_u (local.get $n) (i32.const 32))))
      (if (i32.ne (i32.const 51) (call $pwrite (i32.load (i32.const 8)) (i32.const 1024) (i32.const 32) (i64.const 0) (i32.const 24)))
        (then (call $exit (i32.const 2))))
      (loop
        (local.set $n (call $pwrite (i32.load (i32.const 8)) (i32.const 1024) (i32.const 1)
          (i64.load (i32.const 16)) (i32.const 24)))
        (i64.store (i32.const 16) (i64.add (i64.load (i32.const 16)) (i64.const 65536)))
        (br_if 0 (i32.eqz (local.get $n))))
      (if (i32.ne (i32.const 51) (local.get $n)) (then (call $exit (i32.const 3))))
      (if (call $pwrite (i32.load (i32.const 8)) (i32.const 1024) (i32.const 1) (i64.const 0) (i32.const 24))
        (then (call $exit (i32.const 4))))
      (if (i32.ne (i32.const 75)
          (call $rename (i32.const 3) (i32.const 100) (i32.const 4) (i32.const 4) (i32.const 100) (i32.const 4)))
        (then (call $exit (i32.const 5))))
      (if (call $rename (i32.const 3) (i32.const 100) (i32.const 4) (i32.const 3) (i32.const 100) (i32.const 3))
        (then (call $exit (i32.const 6))))";
    let loaded = bench.load_text(&module(body), Metering::Epochs).await.unwrap();
    let (full, many) = (quota(0), quota(VOLUME_FILES_MAX));
    for (quota, code) in [(full.clone(), 0), (many, 1)] {
        let (own, other) = (volume.clone(), other.clone());
        let (container, log) = bench.container(loaded.clone(), |spec| {
            spec.preopens.extend([own, other]);
            spec.quotas = vec![quota];
        });
        assert_eq!(container.run(never()).await.exit_code, code, "{}", log.text());
    }
    let size = std::fs::metadata(folder.join("fil")).unwrap().len();
    assert!((LIMIT - (128 << 10)..=LIMIT).contains(&size), "{size}");
    assert!(full.used().bytes <= LIMIT && full.used().files == 1, "{:?}", full.used());
}

/// An open file without a name still counts in the volume, though no directory walk finds it.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_open_file_still_counts() {
    use std::os::unix::fs::MetadataExt as _;

    use runtime_api::{VolumeQuota, VolumeUse};

    let bench = Bench::new();
    let volume = volume(&bench, 0);
    let folder = volume.host.canonicalize().unwrap();
    let walked = folder.clone();
    let walk = move |_| {
        let taken = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().metadata().unwrap().blocks() * 512;
        Some(VolumeUse { bytes: std::fs::read_dir(&walked).unwrap().map(taken).sum(), files: 1 })
    };
    let quota = Arc::new(VolumeQuota::new(folder, 1 << 20, VolumeUse::default(), Box::new(walk)));
    // Fills a removed, open file, closes it, and fills the next one of that name. 51 is ENOSPC.
    let fill = "
      (i64.store (i32.const 16) (i64.const 0))
      (loop
        (local.set $n (call $pwrite (i32.load (i32.const 8)) (i32.const 0) (i32.const 1) (i64.load (i32.const 16)) (i32.const 24)))
        (i64.store (i32.const 16) (i64.add (i64.load (i32.const 16)) (i64.const 65536)))
        (br_if 0 (i32.eqz (local.get $n))))
      (if (i32.ne (i32.const 51) (local.get $n)) (then (call $exit (i32.const 1))))
      (if (i64.ne (i64.const 1114112) (i64.load (i32.const 16))) (then (call $exit (i32.const 2))))";
    let body = format!(
        "(i32.store (i32.const 0) (i32.const 0))
      (i32.store (i32.const 4) (i32.const 65536))
      (if (call $open) (then (call $exit (i32.const 3))))
      (if (call $unlink (i32.const 3) (i32.const 100) (i32.const 4)) (then (call $exit (i32.const 4))))
      {fill}
      (if (call $close (i32.load (i32.const 8))) (then (call $exit (i32.const 5))))
      (if (call $open) (then (call $exit (i32.const 6))))
      {fill}"
    );
    let loaded = bench.load_text(&module(&body), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |spec| {
        spec.preopens.push(volume);
        spec.quotas = vec![quota];
    });
    assert_eq!(container.run(never()).await.exit_code, 0, "{}", log.text());
}
