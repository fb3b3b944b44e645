//! Memory of this program's own file. The start of a process runs code that it never needs again, and the kernel maps
//! sixteen pages for each one that is read. [`release_pages`] unmaps all of them; what is still in use comes back with the
//! next access, from the page cache.

#[cfg(target_os = "linux")]
use std::ops::Range;

/// Unmaps the pages of the program's file that no process can have changed: its code and constants. Returns the number of
/// bytes of those mappings. Reads `/proc/self/smaps`, which takes milliseconds: for a thread that may block.
///
/// # Errors
/// If `/proc` can't be read, or the kernel refuses.
#[cfg(target_os = "linux")]
pub fn release_pages() -> std::io::Result<usize> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let own = release_pages as *const () as usize;
    let mut released = 0;
    for range in unchanged(&smaps, own) {
        advise_unneeded(&range)?;
        released += range.len();
    }
    Ok(released)
}

/// Other systems have no such file or call: nothing is released.
#[cfg(not(target_os = "linux"))]
pub fn release_pages() -> std::io::Result<usize> {
    Ok(0)
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no advice on memory")]
fn advise_unneeded(range: &Range<usize>) -> std::io::Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the range is a mapping of a file that is running and therefore can't be written, read-only, and without private
    // copies of pages. The next access reads the same bytes from the file.
    match unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A mapping in `/proc/PID/smaps`.
#[cfg(target_os = "linux")]
struct Mapping<'a> {
    range: Range<usize>,
    permissions: &'a str,
    /// Device and inode; the inode is 0 without a file.
    file: (&'a str, &'a str),
    /// KiB of private copies: pages that were written, by the loader, a debugger or a probe.
    copies: Option<u64>,
}

#[cfg(target_os = "linux")]
impl<'a> Mapping<'a> {
    /// From the first line of an entry: range, permissions, offset, device, inode and path.
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let (permissions, _offset) = (words.next()?, words.next()?);
        Some(Self { range, permissions, file: (words.next()?, words.next()?), copies: None })
    }
}

/// The read-only mappings, without private copies, of the file that is mapped at `own`.
#[cfg(target_os = "linux")]
fn unchanged(smaps: &str, own: usize) -> Vec<Range<usize>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::read(line) {
            mappings.push(mapping);
        } else if let Some(mapping) = mappings.last_mut()
            && let Some(amount) = line.strip_prefix("Anonymous:")
        {
            mapping.copies = amount.trim().strip_suffix(" kB").and_then(|amount| amount.parse().ok());
        }
    }
    let Some(file) = mappings.iter().find(|mapping| mapping.range.contains(&own)).map(|mapping| mapping.file) else {
        return Vec::new();
    };
    let same = mappings.into_iter().filter(|mapping| mapping.file == file && mapping.file.1 != "0");
    let unchanged = same.filter(|mapping| matches!(mapping.permissions, "r--p" | "r-xp") && mapping.copies == Some(0));
    unchanged.map(|mapping| mapping.range).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn entry(head: &str, copies: &str) -> String {
        format!(
            "{head}\nSize:                 40 kB\nRss:                  16 kB\nAnonymous:      {copies}\nVmFlags: rd ex mr\n"
        )
    }

    #[test]
    fn only_unwritten_mappings_of_the_file_are_released() {
        let smaps = [
            entry("1000-2000 r--p 00000000 fe:00 77       /opt/co racle", "0 kB"),
            entry("2000-4000 r-xp 00001000 fe:00 77       /opt/co racle", "0 kB"),
            entry("4000-5000 r--p 00003000 fe:00 77       /opt/co racle", "4 kB"),
            entry("5000-6000 rw-p 00004000 fe:00 77       /opt/co racle", "0 kB"),
            entry("6000-7000 rw-p 00000000 00:00 0 ", "4 kB"),
            entry("7000-8000 r-xp 00000000 fe:00 78       /lib/libc.so", "0 kB"),
            entry("8000-9000 r-xp 00000000 fe:00 77       /opt/co racle", "lots"),
        ]
        .concat();
        assert_eq!(unchanged(&smaps, 0x3fff), [0x1000..0x2000, 0x2000..0x4000]);
        assert_eq!(unchanged(&smaps, 0x7000).first(), Some(&(0x7000..0x8000)));
        assert_eq!(unchanged(&smaps, 0x6000), [], "memory without a file has nowhere to come back from");
        assert_eq!(unchanged(&smaps, 0x9000), []);
        assert_eq!(unchanged("", 0), []);
    }

    #[test]
    fn the_program_goes_on() {
        let text = "constants of the file".to_owned();
        assert!(release_pages().unwrap() > 0);
        assert_eq!(text, "constants of the file");
    }
}
