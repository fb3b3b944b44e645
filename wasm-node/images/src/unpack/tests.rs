//! Layers one over the other, and hostile layers.

use std::io::Cursor;

use proptest::prelude::*;

use super::super::manifest::Compression;
use super::*;

#[derive(Clone, Copy)]
enum Item<'a> {
    Dir(&'a str),
    File(&'a str, &'a [u8]),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
}

fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0);
        let (name, kind, target, data): (_, _, &str, &[u8]) = match item {
            Item::Dir(name) => (name, tar::EntryType::Directory, "", b""),
            Item::File(name, data) => (name, tar::EntryType::Regular, "", data),
            Item::Link(name, target) => (name, tar::EntryType::Symlink, target, b""),
            Item::Hard(name, target) => (name, tar::EntryType::Link, target, b""),
            Item::Device(name) => (name, tar::EntryType::Char, "", b""),
        };
        // Bypasses the builder's check of names: these tests use hostile ones.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volume")).unwrap();
        std::fs::write(dir.path().join("secret"), b"secret").unwrap();
        Self { dir }
    }

    fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn unpack(&self, layers: &[(Content, Vec<u8>)]) -> Result<u64, String> {
        let contents: Vec<Content> = layers.iter().map(|(content, _)| content.clone()).collect();
        let mut open = |index: usize| Ok(Cursor::new(layers[index].1.clone()));
        unpack(&contents, &mut open, &self.volume(), &|| Ok(())).map_err(|error| error.to_string())
    }

    fn tars(&self, layers: &[&[Item<'_>]]) -> Result<u64, String> {
        let layers: Vec<_> = layers.iter().map(|items| (Content::Tar(Compression::None), layer(items))).collect();
        self.unpack(&layers)
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.volume().join(name)).ok()
    }

    /// Returns all names in the volume, in order.
    fn names(&self) -> Vec<String> {
        let (mut found, mut todo) = (Vec::new(), vec![self.volume()]);
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(self.volume()).unwrap().display().to_string());
                if path.symlink_metadata().unwrap().is_dir() {
                    todo.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn layers_lie_one_over_the_other() {
    let bench = Bench::new();
    let bottom: &[Item<'_>] = &[
        Item::Dir("etc/"),
        Item::File("etc/a", b"1"),
        Item::File("etc/b", b"1"),
        Item::File("deep/er/c", b"1"),
        Item::File("was-file", b"1"),
        Item::File("was-dir/x", b"1"),
        Item::File("gone/x", b"1"),
        Item::Link("lib", "deep/er"),
    ];
    let top: &[Item<'_>] = &[
        Item::File("etc/a", b"22"),
        Item::File("etc/.wh.b", b""),
        Item::File(".wh.gone", b""),
        Item::File("deep/er/own", b"own"),
        Item::File("deep/.wh..wh..opq", b""),
        Item::File("was-file/now", b"dir"),
        Item::File("was-dir", b"file"),
        Item::Hard("again", "etc/a"),
        Item::File("lib/through", b"link"),
        Item::Device("null"),
    ];
    // A file in place of a folder is the image's own defect, unless the layer replaces it itself.
    assert!(bench.tars(&[bottom, top]).unwrap_err().contains("was-file/now"));
    let bench = Bench::new();
    let fixed = [&[Item::Dir("was-file/")], top].concat();
    assert_eq!(bench.tars(&[bottom, &fixed]), Ok(6 + 2 + 3 + 3 + 4 + 4));
    let own = ["again", "deep", "deep/er", "deep/er/own", "deep/er/through", "etc", "etc/a", "lib", "was-dir"];
    assert_eq!(bench.names(), [&own[..], &["was-file", "was-file/now"]].concat());
    assert_eq!(bench.read("again").as_deref(), Some("22"), "readable, whatever mode the layer gave it");
    assert_eq!(bench.read("lib/through").as_deref(), Some("link"));
}

#[test]
fn nothing_leads_out() {
    for items in [
        &[Item::File("../secret", b"x")][..],
        &[Item::File("a/../../secret", b"x")],
        &[Item::Link("out", ".."), Item::File("out/secret", b"x")],
        &[Item::Link("out", "../"), Item::Dir("out/made")],
        &[Item::Link("out", "/etc"), Item::File("out/made-by-a-test", b"x")],
        &[Item::Link("a", "b"), Item::Link("b", "a"), Item::File("a/x", b"x")],
        &[Item::Hard("stolen", "../secret")],
        &[Item::Link("out", ".."), Item::Hard("stolen", "out/secret")],
        &[Item::Link("out", ".."), Item::File("out/.wh.secret", b"")],
        &[Item::Link("out", ".."), Item::Link("out/link", "x")],
    ] {
        let bench = Bench::new();
        let error = bench.tars(&[items]).unwrap_err();
        assert!(error.starts_with("the image's layers can't be read: "), "{error}");
        assert_eq!(std::fs::read(bench.dir.path().join("secret")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 2);
    }
    // An opaque folder behind a link, and an outward link that is never followed, are harmless.
    let bench = Bench::new();
    bench
        .tars(&[&[Item::Link("out", ".."), Item::File("out/.wh..wh..opq", b"")], &[Item::File("out", b"own")]])
        .unwrap();
    assert_eq!((bench.read("out").as_deref(), bench.names()), (Some("own"), vec!["out".to_owned()]));
    assert!(bench.dir.path().join("secret").exists());
}

#[test]
fn artifacts_are_files() {
    let bench = Bench::new();
    let file = |name: &str, data: &str| (Content::File(name.into()), data.as_bytes().to_vec());
    assert_eq!(bench.unpack(&[file("model/weights.bin", "w"), file("sha256-0", "readme")]), Ok(7));
    assert_eq!(bench.names(), ["model", "model/weights.bin", "sha256-0"]);
    assert!(bench.unpack(&[file("../x", "")]).unwrap_err().contains("leads out"));
}

#[test]
fn expensive_archives_are_rejected() {
    let deep = vec!["d"; DEPTH_MAX + 1].join("/");
    assert!(Bench::new().unpack(&[(Content::File(deep), vec![])]).unwrap_err().contains("64 parts"));
    let mut tree = {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        Tree { root, space: &|| Ok(()), bytes: 0, checked: 0, links: 1000, steps: 0, added: BTreeSet::new() }
    };
    let name = vec!["n".to_owned(); DEPTH_MAX];
    let looks = (0..100_000).take_while(|_| tree.count_lookups(&name).is_ok()).count();
    assert!((20_000..30_000).contains(&looks), "{looks}");
    // A sparse file of a terabyte is a few bytes of its layer.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.as_gnu_mut().unwrap().name[..1].copy_from_slice(b"s");
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 40);
    gnu.sparse[0].set_offset(1 << 40);
    gnu.sparse[0].set_length(0);
    header.set_size(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    let full = std::cell::Cell::new(0);
    let mut open = |_| Ok(Cursor::new(builder.get_ref().clone()));
    let bench = Bench::new();
    let space = || {
        full.set(full.get() + 1);
        if full.get() > 2 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    };
    let refused = unpack(&[Content::Tar(Compression::None)], &mut open, &bench.volume(), &space).unwrap_err();
    assert!(matches!(refused, UnpackError::Disk(_)), "{refused}");
}

proptest! {
    #[test]
    fn any_bytes_are_unpacked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let bench = Bench::new();
        let _ = bench.unpack(&[(Content::Tar(Compression::Zstd), bytes.clone())]);
        let _ = bench.unpack(&[(Content::Tar(Compression::None), bytes)]);
    }

    #[test]
    fn any_names_and_links_stay_inside(items in proptest::collection::vec(("[ab./]{1,6}", "[ab./]{0,6}", 0..5usize), 1..12)) {
        let bench = Bench::new();
        let items: Vec<Item<'_>> = items.iter().map(|(name, target, kind)| match kind {
            0 => Item::Dir(name),
            1 => Item::File(name, b"x"),
            2 => Item::Link(name, target),
            3 => Item::Hard(name, target),
            _ => Item::Device(name),
        }).collect();
        let _ = bench.tars(&[&items]);
        prop_assert_eq!(std::fs::read(bench.dir.path().join("secret")).unwrap(), b"secret");
        prop_assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 2);
    }
}
