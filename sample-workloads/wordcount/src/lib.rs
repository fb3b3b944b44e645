//! Counts the words of the files under its arguments and prints one line of JSON. A command: `wasi:cli/run`, exit, done.
#![no_std]
extern crate alloc;
use alloc::collections::BTreeMap;
use guest::process::{arguments, print, print_error};
use guest::wasip2::filesystem::types::{Descriptor, DescriptorFlags, DescriptorType, ErrorCode, OpenFlags, PathFlags};
use guest::{String, ToOwned, Vec, files, format};
use serde_json::{Value, json};

const TOP: usize = 5;
/// Maximum depth of folders: it bounds the recursion and the stack.
const DEPTH_MAX: usize = 64;

struct Wordcount;
guest::wasip2::cli::command::export!(Wordcount);

impl guest::wasip2::exports::cli::run::Guest for Wordcount {
    fn run() -> Result<(), ()> {
        let paths = arguments();
        if paths.is_empty() {
            print_error("usage: wordcount FILE-OR-FOLDER…");
            return Err(());
        }
        let mut count = Count::default();
        for path in &paths {
            count.tree(path).map_err(|problem| print_error(&format!("wordcount: {path}: {problem}")))?;
        }
        print(&format!("{}", count.report()));
        Ok(())
    }
}

#[derive(Default)]
struct Count {
    files: u64,
    lines: u64,
    words: u64,
    bytes: u64,
    by_word: BTreeMap<String, u64>,
}

impl Count {
    /// One argument: a file, or a folder with all files below it.
    fn tree(&mut self, path: &str) -> Result<(), ErrorCode> {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let open = files::open(&path, OpenFlags::empty(), DescriptorFlags::READ)?;
        match open.get_type()? {
            DescriptorType::Directory => self.folder(&open, 0),
            _ => self.file(&open),
        }
    }

    fn folder(&mut self, folder: &Descriptor, depth: usize) -> Result<(), ErrorCode> {
        if depth == DEPTH_MAX {
            return Err(ErrorCode::Loop);
        }
        let entries = folder.read_directory()?;
        while let Some(entry) = entries.read_directory_entry()? {
            // Names with a dot are hidden. In a ConfigMap's volume these are `..data` and its target folder, which contain the files
            // that the visible names link to: no file is counted twice.
            if entry.name.starts_with('.') {
                continue;
            }
            let open = folder.open_at(PathFlags::SYMLINK_FOLLOW, &entry.name, OpenFlags::empty(), DescriptorFlags::READ)?;
            match open.get_type()? {
                // A link to a folder may form a cycle, so only real folders are walked.
                DescriptorType::Directory if entry.type_ == DescriptorType::SymbolicLink => {}
                DescriptorType::Directory => self.folder(&open, depth + 1)?,
                DescriptorType::RegularFile => self.file(&open)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &Descriptor) -> Result<(), ErrorCode> {
        let content = files::read_open(file)?;
        let text = String::from_utf8_lossy(&content);
        self.files += 1;
        self.bytes += content.len() as u64;
        self.lines += text.lines().count() as u64;
        for word in text.split_whitespace() {
            self.words += 1;
            let bare = word.trim_matches(|letter: char| !letter.is_alphanumeric()).to_lowercase();
            if !bare.is_empty() {
                *self.by_word.entry(bare).or_default() += 1;
            }
        }
        Ok(())
    }

    fn report(&self) -> Value {
        let mut words: Vec<_> = self.by_word.iter().collect();
        words.sort_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b))); // by frequency, then alphabetically
        let top: Vec<Value> = words.iter().take(TOP).map(|(word, n)| json!({"word": word, "count": n})).collect();
        json!({"files": self.files, "lines": self.lines, "words": self.words, "bytes": self.bytes, "top": top})
    }
}
