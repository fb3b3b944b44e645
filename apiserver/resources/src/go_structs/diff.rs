//! Unified diffs in the format of Go's difflib (a port of Python's), which matches the longest blocks first.

use std::collections::HashMap;
use std::ops::Range;

/// Lines of context around a difference.
const CONTEXT: usize = 3;
/// Number of lines from which frequent lines don't start matches.
const OFTEN_FROM: usize = 200;
/// Number of lines from which only common prefixes and suffixes are matched: the time is quadratic.
const MATCHED_MAX: usize = 2000;

struct Block {
    a: usize,
    b: usize,
    size: usize,
}

/// A pair of line ranges, either equal or replaced.
#[derive(Clone)]
struct LineRanges {
    same: bool,
    a: Range<usize>,
    b: Range<usize>,
}

/// The differences between two texts, without file headers.
pub(crate) fn unified(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let mut out = String::new();
    for group in groups(&line_ranges(&a, &b)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        out.push_str(&format!(
            "@@ -{} +{} @@\n",
            range(&(first.a.start..last.a.end)),
            range(&(first.b.start..last.b.end))
        ));
        for LineRanges { same, a: in_a, b: in_b } in group {
            let mut lines =
                |mark, lines: &[&str]| lines.iter().for_each(|line| out.push_str(&format!("{mark}{line}\n")));
            if same {
                lines(' ', &a[in_a]);
            } else {
                lines('-', &a[in_a]);
                lines('+', &b[in_b]);
            }
        }
    }
    out
}

fn range(of: &Range<usize>) -> String {
    match of.len() {
        0 => format!("{},0", of.start),
        1 => format!("{}", of.start + 1),
        length => format!("{},{length}", of.start + 1),
    }
}

fn longest(a: &[&str], b: &[&str], at: &HashMap<&str, Vec<usize>>, in_a: &Range<usize>, in_b: &Range<usize>) -> Block {
    let mut best = Block { a: in_a.start, b: in_b.start, size: 0 };
    // The length of the match that ends at the previous line of `a`, by line of `b`.
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for i in in_a.clone() {
        let mut next = HashMap::new();
        for &j in at.get(a[i]).into_iter().flatten().filter(|j| in_b.contains(j)) {
            let length = j.checked_sub(1).and_then(|before| lengths.get(&before)).copied().unwrap_or(0) + 1;
            next.insert(j, length);
            if length > best.size {
                best = Block { a: i + 1 - length, b: j + 1 - length, size: length };
            }
        }
        lengths = next;
    }
    while best.a > in_a.start && best.b > in_b.start && a[best.a - 1] == b[best.b - 1] {
        best = Block { a: best.a - 1, b: best.b - 1, size: best.size + 1 };
    }
    while best.a + best.size < in_a.end
        && best.b + best.size < in_b.end
        && a[best.a + best.size] == b[best.b + best.size]
    {
        best.size += 1;
    }
    best
}

fn blocks(a: &[&str], b: &[&str]) -> Vec<Block> {
    if a.len().max(b.len()) > MATCHED_MAX {
        let head = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let most = a.len().min(b.len()) - head;
        let tail = a.iter().rev().zip(b.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
        return vec![Block { a: 0, b: 0, size: head }, Block { a: a.len() - tail, b: b.len() - tail, size: tail }];
    }
    let mut at: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, line) in b.iter().enumerate() {
        at.entry(line).or_default().push(j);
    }
    if b.len() >= OFTEN_FROM {
        at.retain(|_, places| places.len() <= b.len() / 100 + 1);
    }
    let mut found = Vec::new();
    let mut left = vec![(0..a.len(), 0..b.len())];
    while let Some((in_a, in_b)) = left.pop() {
        let block = longest(a, b, &at, &in_a, &in_b);
        if block.size > 0 {
            left.push((in_a.start..block.a, in_b.start..block.b));
            left.push((block.a + block.size..in_a.end, block.b + block.size..in_b.end));
            found.push(block);
        }
    }
    found.sort_by_key(|block| (block.a, block.b));
    found
}

fn line_ranges(a: &[&str], b: &[&str]) -> Vec<LineRanges> {
    let (mut i, mut j) = (0, 0);
    let mut out: Vec<LineRanges> = Vec::new();
    let end = Block { a: a.len(), b: b.len(), size: 0 };
    for block in blocks(a, b).into_iter().chain([end]) {
        if i < block.a || j < block.b {
            out.push(LineRanges { same: false, a: i..block.a, b: j..block.b });
        }
        (i, j) = (block.a + block.size, block.b + block.size);
        match out.last_mut() {
            // Adjacent blocks are merged.
            Some(last) if last.same => (last.a.end, last.b.end) = (i, j),
            _ if block.size > 0 => out.push(LineRanges { same: true, a: block.a..i, b: block.b..j }),
            _ => {}
        }
    }
    out
}

/// Groups differences with their context; overlapping ones are merged.
fn groups(stretches: &[LineRanges]) -> Vec<Vec<LineRanges>> {
    let mut groups = Vec::new();
    let mut group: Vec<LineRanges> = Vec::new();
    let tail = |of: &Range<usize>| of.start.max(of.end.saturating_sub(CONTEXT))..of.end;
    let head = |of: &Range<usize>| of.start..of.end.min(of.start + CONTEXT);
    for (i, stretch) in stretches.iter().enumerate() {
        let mut stretch = stretch.clone();
        if stretch.same && i == 0 {
            (stretch.a, stretch.b) = (tail(&stretch.a), tail(&stretch.b));
        }
        if stretch.same && i + 1 == stretches.len() {
            (stretch.a, stretch.b) = (head(&stretch.a), head(&stretch.b));
        }
        if stretch.same && stretch.a.len() > 2 * CONTEXT {
            group.push(LineRanges { same: true, a: head(&stretch.a), b: head(&stretch.b) });
            groups.push(std::mem::take(&mut group));
            (stretch.a, stretch.b) = (tail(&stretch.a), tail(&stretch.b));
        }
        group.push(stretch);
    }
    groups.push(group);
    groups.retain(|group| group.iter().any(|stretch| !stretch.same));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of Go's difflib.
    #[test]
    fn differences_are_gos() {
        let lines = |of: &[&str]| of.join("\n");
        let numbers: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
        let old = numbers.join("\n");
        let mut changed = numbers.clone();
        changed[1] = "two".into();
        changed.remove(17);
        assert_eq!(
            unified(&old, &changed.join("\n")),
            "@@ -1,5 +1,5 @@\n 1\n-2\n+two\n 3\n 4\n 5\n@@ -15,6 +15,5 @@\n 15\n 16\n 17\n-18\n 19\n 20\n"
        );
        assert_eq!(unified(&lines(&["a"]), &lines(&["b"])), "@@ -1 +1 @@\n-a\n+b\n");
        assert_eq!(unified(&lines(&["a", "b"]), &lines(&["a", "c", "a", "b"])), "@@ -1,2 +1,4 @@\n+a\n+c\n a\n b\n");
        assert_eq!(unified(&old, &old), "");
        let many = |n: usize| (0..n).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(unified(&many(MATCHED_MAX), &format!("x\n{}", many(MATCHED_MAX))).lines().count(), 5);
    }
}
