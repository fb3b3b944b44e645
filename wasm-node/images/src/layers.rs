//! Finds the modules in the layers of a `FROM scratch` image: the file that the entrypoint names once all layers are
//! applied, and every other module by its path. Nothing is unpacked: a first pass builds the tree in memory (names and
//! links only), a second copies the modules.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;

use super::manifest::{Compression, Refusal};
use super::tar_layer::{LayerSize, Parts, check_extended, check_names, decompress, parts, unreadable};
use oci_registry::blobs::{BlobError, BlobWriter};

/// Maximum uncompressed bytes of all layers together.
const UNPACKED_BYTES_MAX: u64 = 512 << 20;
/// Maximum links followed from a name.
const LINKS_MAX: u32 = 40;
/// Maximum path parts compared while links are followed, all links together: each step compares as many parts as the
/// path has by then.
const LINK_STEPS_MAX: usize = 16 << 20;
/// Maximum modules of an image: each is stored as a file of its own.
const MODULES_MAX: usize = 64;
/// Maximum names of modules: many links lead to one module if the program selects its function by argv[0].
const MODULE_NAMES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir,
    /// The layer and the entry number in it.
    File {
        layer: usize,
        entry: u64,
    },
    Symlink(String),
}

/// A destination for extracted modules.
pub(crate) trait ModuleSink {
    /// Begins a module.
    fn begin(&mut self) -> Result<BlobWriter, BlobError>;
    /// Stores the module and returns its digest.
    fn store(&mut self, writer: BlobWriter) -> Result<String, BlobError>;
}

/// The modules of an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Modules {
    /// The entrypoint's digest.
    pub(crate) entrypoint: String,
    /// Digests by absolute path: files called `.wasm`, and links to them under any name.
    pub(crate) by_path: BTreeMap<String, String>,
    /// Whether the image has other files.
    pub(crate) has_other_files: bool,
}

/// Why no modules were extracted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtractError {
    /// The layers are invalid.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// An entry of a layer: the layer's number, and the entry's number in the layer.
type EntryId = (usize, u64);

/// Stores the modules of the layers (`open` reopens each of them): the file `entrypoint` and every other one.
pub(crate) fn extract<R: Read + 'static>(
    compressions: &[Compression],
    open: &mut dyn FnMut(usize) -> io::Result<R>,
    entrypoint: &str,
    sink: &mut dyn ModuleSink,
) -> Result<Modules, ExtractError> {
    let tree = read_tree(compressions, open)?;
    let mut steps = 0;
    let main = find(&tree, entrypoint, &mut steps)?;
    let names = module_names(&tree, main, &mut steps)?;
    let wanted: BTreeSet<EntryId> = names.values().copied().chain([main]).collect();
    if wanted.len() > MODULES_MAX {
        let text = format!("it has {} modules, at most {MODULES_MAX} are accepted", wanted.len());
        return Err(Refusal::TooLarge(text).into());
    }
    let mut digests = BTreeMap::new();
    for (layer, &compression) in compressions.iter().enumerate() {
        let last = wanted.iter().filter(|at| at.0 == layer).map(|at| at.1).max();
        let Some(last) = last else { continue };
        let reader = open(layer).map_err(|error| unreadable(&error))?;
        let mut archive = tar::Archive::new(decompress(reader, compression, UNPACKED_BYTES_MAX)?);
        for (number, entry) in archive.entries().map_err(|error| unreadable(&error))?.enumerate() {
            let mut entry = entry.map_err(|error| unreadable(&error))?;
            let at = (layer, number as u64);
            if wanted.contains(&at) {
                digests.insert(at, copy(&mut entry, sink)?);
            }
            if number as u64 >= last {
                break;
            }
        }
    }
    let digest = |at: &EntryId| {
        let changed = || Refusal::Layers("a layer changed while it was read".into());
        digests.get(at).cloned().ok_or_else(changed)
    };
    let by_path = names.iter().map(|(name, at)| Ok((name.clone(), digest(at)?))).collect::<Result<_, Refusal>>()?;
    let is_other = |node: &Node| matches!(node, Node::File { layer, entry } if !wanted.contains(&(*layer, *entry)));
    Ok(Modules { entrypoint: digest(&main)?, by_path, has_other_files: tree.values().any(is_other) })
}

fn copy(entry: &mut dyn Read, sink: &mut dyn ModuleSink) -> Result<String, ExtractError> {
    let mut out = sink.begin()?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match entry.read(&mut buffer).map_err(|error| unreadable(&error))? {
            0 => return Ok(sink.store(out)?),
            read => match out.write(&buffer[..read]) {
                Ok(()) => {}
                Err(BlobError::TooLarge { max_bytes }) => {
                    return Err(Refusal::TooLarge(format!("a module of more than {max_bytes} bytes")).into());
                }
                Err(error) => return Err(error.into()),
            },
        }
    }
}

/// Applies all layers: names and links, no contents.
fn read_tree<R: Read + 'static>(
    compressions: &[Compression],
    open: &mut dyn FnMut(usize) -> io::Result<R>,
) -> Result<BTreeMap<Parts, Node>, Refusal> {
    let mut tree: BTreeMap<Parts, Node> = BTreeMap::new();
    let mut left = UNPACKED_BYTES_MAX;
    let mut size = LayerSize::default();
    for (layer, &compression) in compressions.iter().enumerate() {
        let reader = open(layer).map_err(|error| unreadable(&error))?;
        check_extended(&mut tar::Archive::new(decompress(reader, compression, left)?))?;
        let reader = open(layer).map_err(|error| unreadable(&error))?;
        let mut archive = tar::Archive::new(decompress(reader, compression, left)?);
        apply(&mut archive, layer, &mut size, &mut tree)?;
        left = archive.into_inner().left;
    }
    Ok(tree)
}

/// Returns the names by which a module of the image can be called. `main` is a module under any name.
fn module_names(
    tree: &BTreeMap<Parts, Node>,
    main: EntryId,
    steps: &mut usize,
) -> Result<BTreeMap<String, EntryId>, Refusal> {
    let is_wasm = |path: &Parts| path.last().is_some_and(|name| name.ends_with(".wasm"));
    let file = |node: &Node| match node {
        Node::File { layer, entry } => Some((*layer, *entry)),
        _ => None,
    };
    let files = tree.iter().filter(|(path, _)| is_wasm(path)).filter_map(|(_, node)| file(node));
    let modules: BTreeSet<EntryId> = files.chain([main]).collect();
    let mut names = BTreeMap::new();
    for (path, node) in tree {
        let text = || format!("/{}", path.join("/"));
        let at = match node {
            Node::Dir => None,
            Node::File { .. } => file(node),
            Node::Symlink(_) => match find(tree, &text(), steps) {
                Err(refusal @ Refusal::TooLarge(_)) => return Err(refusal),
                // A dangling link is ignored.
                found => found.ok(),
            },
        };
        if let Some(at) = at.filter(|at| modules.contains(at)) {
            names.insert(text(), at);
        }
        if names.len() > MODULE_NAMES_MAX {
            return Err(Refusal::TooLarge(format!("its modules have more than {MODULE_NAMES_MAX} names")));
        }
    }
    Ok(names)
}

/// Removes everything below `path`; a subtree is one range of the ordered tree.
fn remove_below(tree: &mut BTreeMap<Parts, Node>, path: &[String]) {
    let below: Vec<Parts> = tree
        .range::<[String], _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded))
        .map(|(known, _)| known)
        .skip_while(|known| known.as_slice() == path)
        .take_while(|known| known.starts_with(path))
        .cloned()
        .collect();
    for known in below {
        tree.remove(&known);
    }
}

fn apply<R: Read>(
    archive: &mut tar::Archive<R>,
    layer: usize,
    size: &mut LayerSize,
    tree: &mut BTreeMap<Parts, Node>,
) -> Result<(), Refusal> {
    let mut added: BTreeMap<Parts, Node> = BTreeMap::new();
    let entries = archive.entries().map_err(|error| unreadable(&error))?;
    for (number, entry) in entries.enumerate() {
        let entry = entry.map_err(|error| unreadable(&error))?;
        check_names(&entry, size)?;
        let path = entry.path().map_err(|error| unreadable(&error))?.into_owned();
        let Some(path) = parts(&path) else {
            return Err(Refusal::Layers(format!("the name {:?} leads out of the image", path.display().to_string())));
        };
        let Some((name, parent)) = path.split_last() else { continue };
        // Whiteouts apply to the layers below, not to this one.
        if name == ".wh..wh..opq" {
            remove_below(tree, parent);
            continue;
        }
        if let Some(hidden) = name.strip_prefix(".wh.") {
            let mut hidden_path = parent.to_vec();
            hidden_path.push(hidden.to_owned());
            remove_below(tree, &hidden_path);
            tree.remove(&hidden_path);
            continue;
        }
        let kind = entry.header().entry_type();
        let node = if kind.is_dir() {
            Node::Dir
        } else if kind.is_symlink() {
            let target = entry.link_name().map_err(|error| unreadable(&error))?;
            let target = target.as_deref().and_then(Path::to_str).unwrap_or_default().to_owned();
            Node::Symlink(target)
        } else if kind.is_hard_link() {
            let target = entry.link_name().map_err(|error| unreadable(&error))?;
            let target = target.as_deref().and_then(parts);
            let known = target.and_then(|target| added.get(&target).or_else(|| tree.get(&target)).cloned());
            match known {
                Some(node) => node,
                None => return Err(Refusal::Layers("a hard link to a file that isn't there".into())),
            }
        } else if kind.is_file() {
            Node::File { layer, entry: number as u64 }
        } else {
            // Devices and pipes are ignored.
            continue;
        };
        added.insert(path, node);
    }
    for (path, node) in added {
        if node != Node::Dir {
            // A file in place of a folder hides the folder's content.
            remove_below(tree, &path);
        }
        tree.insert(path, node);
    }
    Ok(())
}

/// Follows links from `module` to a file, never out of the image.
fn find(tree: &BTreeMap<Parts, Node>, module: &str, steps: &mut usize) -> Result<EntryId, Refusal> {
    let missing = || Refusal::Entrypoint { found: format!("{:?}", module.chars().take(120).collect::<String>()) };
    let mut todo: Vec<String> = module.split('/').rev().map(str::to_owned).collect();
    let mut at = Parts::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        *steps += at.len() + 1;
        if *steps > LINK_STEPS_MAX {
            return Err(Refusal::TooLarge("its links are too many and too long".into()));
        }
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                if at.pop().is_none() {
                    return Err(Refusal::Layers(format!("the entrypoint {module:?} leads out of the image")));
                }
                continue;
            }
            _ => at.push(part),
        }
        if let Some(Node::Symlink(target)) = tree.get(&at) {
            links += 1;
            if links > LINKS_MAX {
                return Err(Refusal::Layers("too many links".into()));
            }
            at.pop();
            if target.starts_with('/') {
                at.clear();
            }
            todo.extend(target.split('/').rev().map(str::to_owned));
        }
    }
    match tree.get(&at) {
        Some(Node::File { layer, entry }) => Ok((*layer, *entry)),
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use proptest::prelude::*;

    use super::*;
    use oci_registry::blobs::{BlobStore, digest};

    enum Item<'a> {
        File(&'a str, &'a [u8]),
        Link(&'a str, &'a str),
        Hard(&'a str, &'a str),
    }

    fn layer(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for item in items {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            let name = match item {
                Item::File(name, _) | Item::Link(name, _) | Item::Hard(name, _) => name,
            };
            // Bypasses the builder's check of names: these tests use hostile ones.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            match item {
                Item::File(_, data) => {
                    header.set_size(data.len() as u64);
                    header.set_cksum();
                    builder.append(&header, *data).unwrap();
                }
                Item::Link(_, target) | Item::Hard(_, target) => {
                    let hard = matches!(item, Item::Hard(..));
                    header.set_entry_type(if hard { tar::EntryType::Link } else { tar::EntryType::Symlink });
                    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
                    header.set_size(0);
                    header.set_cksum();
                    builder.append(&header, io::empty()).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }

    struct Store(std::sync::Arc<BlobStore>, oci_registry::blobs::Pins);

    impl ModuleSink for Store {
        fn begin(&mut self) -> Result<BlobWriter, BlobError> {
            self.0.writer(1 << 30)
        }

        fn store(&mut self, writer: BlobWriter) -> Result<String, BlobError> {
            writer.commit_any(&self.0, &self.1)
        }
    }

    fn modules(layers: &[Vec<u8>], compression: Compression, module: &str) -> Result<Modules, String> {
        let dir = tempfile::tempdir().unwrap();
        let store = std::sync::Arc::new(BlobStore::open(dir.path()).unwrap());
        let pins = store.pins();
        let layers = layers.to_vec();
        let mut open = |index: usize| Ok(Cursor::new(layers[index].clone()));
        let compressions = vec![compression; layers.len()];
        extract(&compressions, &mut open, module, &mut Store(store, pins)).map_err(|error| error.to_string())
    }

    fn run(layers: &[Vec<u8>], compression: Compression, module: &str) -> Result<String, String> {
        modules(layers, compression, module).map(|modules| modules.entrypoint)
    }

    #[test]
    fn every_module_is_known_by_its_names() {
        let base =
            layer(&[Item::File("bin/box.wasm", b"box"), Item::File("bin/gone.wasm", b"g"), Item::File("a.txt", b"t")]);
        let top = layer(&[
            Item::Link("bin/ls", "box.wasm"),
            Item::Link("bin/nowhere", "nothing"),
            Item::File("bin/.wh.gone.wasm", b""),
            Item::File("app", b"app"),
            Item::Hard("again.wasm", "bin/box.wasm"),
        ]);
        let found = modules(&[base, top], Compression::None, "/app").unwrap();
        assert_eq!(found.entrypoint, digest(b"app"));
        let names: Vec<(&str, &str)> = found.by_path.iter().map(|(name, at)| (name.as_str(), at.as_str())).collect();
        let (app, box_) = (digest(b"app"), digest(b"box"));
        assert_eq!(names, [("/again.wasm", &*box_), ("/app", &app), ("/bin/box.wasm", &box_), ("/bin/ls", &box_)]);
        let many: Vec<String> = (0..=MODULES_MAX).map(|number| format!("{number}.wasm")).collect();
        let many: Vec<Item<'_>> = many.iter().map(|name| Item::File(name, b"m")).collect();
        assert!(run(&[layer(&many)], Compression::None, "0.wasm").unwrap_err().contains("65 modules"));
    }

    #[test]
    fn layers_apply_in_order() {
        let base = layer(&[Item::File("app/old.wasm", b"old"), Item::File("./app/new.wasm", b"1")]);
        let top = layer(&[Item::File("app/new.wasm", b"2"), Item::File("app/.wh.old.wasm", b"")]);
        let both = [base.clone(), top];
        assert_eq!(run(&both, Compression::None, "/app/new.wasm").unwrap(), digest(b"2"));
        assert!(run(&both, Compression::None, "app/old.wasm").unwrap_err().contains("entrypoint"));
        let opaque = layer(&[Item::File("app/.wh..wh..opq", b""), Item::File("app/x.wasm", b"x")]);
        assert!(run(&[base.clone(), opaque], Compression::None, "app/new.wasm").is_err());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&base).unwrap();
        assert_eq!(run(&[gzip.finish().unwrap()], Compression::Gzip, "app/new.wasm").unwrap(), digest(b"1"));
    }

    #[test]
    fn links_stay_inside() {
        let links = layer(&[
            Item::File("bin/real", b"m"),
            Item::Link("app.wasm", "/bin/../bin/real"),
            Item::Link("dir", "bin"),
            Item::Hard("hard.wasm", "bin/real"),
            Item::Link("out.wasm", "../../etc/passwd"),
            Item::Link("loop.wasm", "loop.wasm"),
        ]);
        let layers = [links];
        for good in ["app.wasm", "dir/real", "hard.wasm", "/app.wasm"] {
            assert_eq!(run(&layers, Compression::None, good).unwrap(), digest(b"m"), "{good}");
        }
        for bad in ["out.wasm", "loop.wasm", "../x.wasm", "bin"] {
            assert!(run(&layers, Compression::None, bad).is_err(), "{bad}");
        }
        assert!(
            run(&[layer(&[Item::File("../x.wasm", b"")])], Compression::None, "x.wasm").unwrap_err().contains("out")
        );
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("bomb.wasm").unwrap();
        header.set_size(UNPACKED_BYTES_MAX + (1 << 20));
        header.set_cksum();
        let fill = |out: &mut dyn Write| {
            out.write_all(header.as_bytes()).unwrap();
            let zeros = vec![0; 1 << 20];
            (0..=(UNPACKED_BYTES_MAX >> 20)).for_each(|_| out.write_all(&zeros).unwrap());
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        fill(&mut gzip);
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        fill(&mut zstd);
        let bombs = [(gzip.finish().unwrap(), Compression::Gzip), (zstd.finish().unwrap(), Compression::Zstd)];
        for (bomb, compression) in bombs {
            assert!(bomb.len() < 1 << 20);
            let error = run(&[bomb], compression, "bomb.wasm").unwrap_err();
            assert!(error.contains("too large") && error.contains("536870912"), "{error}");
        }
    }

    #[test]
    fn zstd_is_read_frame_by_frame_within_a_window() {
        let tar = layer(&[Item::File("app.wasm", b"m")]);
        let (head, tail) = tar.split_at(700);
        // Several frames and a skippable one, as zstd:chunked writes them.
        let mut frames = zstd::bulk::compress(head, 3).unwrap();
        frames.extend(zstd::bulk::compress(tail, 3).unwrap());
        frames.extend([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(run(&[frames], Compression::Zstd, "app.wasm").unwrap(), digest(b"m"));
        let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(24).unwrap();
        wide.write_all(&tar).unwrap();
        let error = run(&[wide.finish().unwrap()], Compression::Zstd, "app.wasm").unwrap_err();
        assert!(error.contains("memory"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000), which in 0..3usize) {
            let _ = run(&[bytes], [Compression::None, Compression::Gzip, Compression::Zstd][which], "a.wasm");
        }
    }
}
