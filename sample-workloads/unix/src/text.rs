//! Tools for text: `cat`, `grep`, `sort`, `cut`, `tr` and others, over inputs of any length.
use crate::io::Input;
use crate::{Context, Ended, files, letters};
use guest::{String, ToOwned, Vec, format};

/// Applies a function to each input operand, or to the tool's input; an error is reported, and the next input follows.
pub fn each(
    context: &mut Context,
    tool: &str,
    operands: &[String],
    mut act: impl FnMut(&mut Context, &str, Input) -> Result<(), crate::io::Stop>,
) -> Ended {
    if operands.is_empty() {
        let input = context.input.clone();
        act(context, "", input)?;
        return Ok(0);
    }
    let mut code = 0;
    for name in operands {
        match context.open(name) {
            Ok(input) => act(context, name, input)?,
            Err(why) => {
                context.say(tool, &why)?;
                code = 1;
            }
        }
    }
    Ok(code)
}

pub fn cat(context: &mut Context, args: &[String]) -> Ended {
    let (_, operands) = match letters(args, "u") {
        Ok(read) => read,
        Err(why) => return context.fail("cat", &why),
    };
    each(context, "cat", operands, |context, _, mut input| {
        loop {
            let bytes = input.read(&mut context.stdin)?;
            if bytes.is_empty() {
                return Ok(());
            }
            context.out.write(&bytes)?;
        }
    })
}

/// The characters of backslash escapes; whether the output ends (`\c`).
fn unescape(text: &str) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next() {
            Some('n') => out.push(b'\n'),
            Some('t') => out.push(b'\t'),
            Some('r') => out.push(b'\r'),
            Some('a') => out.push(7),
            Some('b') => out.push(8),
            Some('e') => out.push(27),
            Some('f') => out.push(12),
            Some('v') => out.push(11),
            Some('\\') => out.push(b'\\'),
            Some('"') => out.push(b'"'),
            Some('c') => return (out, true),
            Some('x') => {
                let mut value = 0_u32;
                let mut digits = 0;
                while let Some(digit) = chars.peek().and_then(|c| c.to_digit(16)).filter(|_| digits < 2) {
                    value = value * 16 + digit;
                    digits += 1;
                    chars.next();
                }
                out.push(value as u8);
            }
            Some(first @ '0'..='7') => {
                let mut value = first.to_digit(8).unwrap_or(0);
                let mut digits = u32::from(first != '0');
                while let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)).filter(|_| digits < 3) {
                    value = value * 8 + digit;
                    digits += 1;
                    chars.next();
                }
                out.push(value as u8);
            }
            Some(other) => {
                out.push(b'\\');
                out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
            }
            None => out.push(b'\\'),
        }
    }
    (out, false)
}

pub fn echo(context: &mut Context, args: &[String]) -> Ended {
    let (mut newline, mut escapes, mut at) = (true, false, 1);
    while let Some(option) = args.get(at).filter(|arg| matches!(arg.as_str(), "-n" | "-e" | "-E" | "-ne" | "-en")) {
        newline &= !option.contains('n');
        escapes |= option.contains('e');
        at += 1;
    }
    let mut bytes = args[at.min(args.len())..].join(" ").into_bytes();
    if escapes {
        let (unescaped, ends) = unescape(&String::from_utf8_lossy(&bytes));
        bytes = unescaped;
        newline &= !ends;
    }
    if newline {
        bytes.push(b'\n');
    }
    context.out.write(&bytes)?;
    Ok(0)
}

pub fn printf(context: &mut Context, args: &[String]) -> Ended {
    let Some(format) = args.get(1) else { return context.fail("printf", "usage: printf FORMAT [ARGUMENT…]") };
    let mut operands = args[2..].iter();
    loop {
        let before = operands.len();
        let (bytes, ends) = formatted(format, &mut operands);
        context.out.write(&bytes)?;
        if ends || operands.len() == 0 || operands.len() == before {
            return Ok(0);
        }
    }
}

fn formatted<'a>(format: &str, operands: &mut impl Iterator<Item = &'a String>) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (text, ends) = unescape(&rest[..at]);
        out.extend_from_slice(&text);
        if ends {
            return (out, true);
        }
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| c.is_ascii_alphabetic() || c == '%').unwrap_or(rest.len());
        let (flags, conversion) = (&rest[..end], rest[end..].chars().next());
        rest = rest.get(end + 1..).unwrap_or("");
        let left = flags.starts_with('-');
        let zero = flags.starts_with('0');
        let width = flags.trim_start_matches(['-', '0', '+', ' ']).split('.').next().and_then(|w| w.parse().ok());
        let width: usize = width.unwrap_or(0).min(1000);
        let precision = flags.split_once('.').and_then(|(_, precision)| precision.parse::<usize>().ok());
        let mut operand = || operands.next().cloned().unwrap_or_default();
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        let shown = match conversion {
            Some('%') => "%".to_owned(),
            Some('s') => {
                let text = operand();
                precision.map_or(text.clone(), |most| text.chars().take(most).collect())
            }
            Some('b') => String::from_utf8_lossy(&unescape(&operand()).0).into_owned(),
            Some('d' | 'i' | 'u') => format!("{}", number(&operand())),
            Some('x') => format!("{:x}", number(&operand())),
            Some('X') => format!("{:X}", number(&operand())),
            Some('o') => format!("{:o}", number(&operand())),
            Some('c') => operand().chars().take(1).collect(),
            _ => String::new(),
        };
        let pad = width.saturating_sub(shown.chars().count());
        let filler = if zero && !left { '0' } else { ' ' };
        let filled: String = core::iter::repeat_n(filler, pad).collect();
        out.extend_from_slice(if left { shown.as_bytes() } else { filled.as_bytes() });
        out.extend_from_slice(if left { filled.as_bytes() } else { shown.as_bytes() });
    }
    let (text, ends) = unescape(rest);
    out.extend_from_slice(&text);
    (out, ends)
}

pub fn wc(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = match letters(args, "lwcm") {
        Ok(read) => read,
        Err(why) => return context.fail("wc", &why),
    };
    let mut all = [0_u64; 3];
    let row = |counts: [u64; 3], name: &str| {
        let mut shown: Vec<String> = Vec::new();
        for (letter, count) in ['l', 'w', 'c'].into_iter().zip(counts) {
            if options.is_empty() || options.contains(letter) || letter == 'c' && options.contains('m') {
                shown.push(format!("{count}"));
            }
        }
        if !name.is_empty() {
            shown.push(name.to_owned());
        }
        shown.join(" ")
    };
    let code = each(context, "wc", operands, |context, name, mut input| {
        let (mut counts, mut in_word) = ([0_u64; 3], false);
        loop {
            let bytes = input.read(&mut context.stdin)?;
            if bytes.is_empty() {
                break;
            }
            counts[2] += bytes.len() as u64;
            for byte in bytes {
                counts[0] += u64::from(byte == b'\n');
                let space = byte.is_ascii_whitespace();
                counts[1] += u64::from(!space && !in_word);
                in_word = !space;
            }
        }
        for (sum, count) in all.iter_mut().zip(counts) {
            *sum += count;
        }
        context.out.line(&row(counts, name))
    })?;
    if operands.len() > 1 {
        context.out.line(&row(all, "total"))?;
    }
    Ok(code)
}

/// Fixed strings, or expressions with `^`, `$`, `.`, `*`, `[…]` and `\`: the common part of basic regular expressions.
pub fn grep(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = match letters(args, "ivcnqlFEsHhoe") {
        Ok(read) => read,
        Err(why) => return context.fail("grep", &why).map(|_| 2),
    };
    let Some((pattern, operands)) = operands.split_first() else {
        return context.fail("grep", "usage: grep [-ivcnqlFE] PATTERN [FILE…]").map(|_| 2);
    };
    let has = |letter: char| options.contains(letter);
    let fold = |text: &str| if has('i') { text.to_lowercase() } else { text.to_owned() };
    let pattern = fold(pattern);
    let alternatives: Vec<&str> = if has('E') { pattern.split('|').collect() } else { pattern.split('\n').collect() };
    let named = operands.len() > 1 || has('H');
    let mut found = false;
    let code = each(context, "grep", operands, |context, name, mut input| {
        let (mut count, mut number) = (0_u64, 0_u64);
        while let Some(line) = input.line(&mut context.stdin)? {
            number += 1;
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
            let folded = fold(&text);
            let fits = alternatives.iter().any(|one| {
                if has('F') { folded.contains(one) } else { expression::found(one.as_bytes(), folded.as_bytes()) }
            });
            if fits == has('v') {
                continue;
            }
            found = true;
            count += 1;
            if has('q') || has('l') {
                break;
            }
            if !has('c') {
                let before = if named && !has('h') { format!("{name}:") } else { String::new() };
                let number = if has('n') { format!("{number}:") } else { String::new() };
                context.out.line(&format!("{before}{number}{text}"))?;
            }
        }
        if has('l') && count > 0 {
            context.out.line(name)?;
        } else if has('c') && !has('q') {
            let before = if named { format!("{name}:") } else { String::new() };
            context.out.line(&format!("{before}{count}"))?;
        }
        Ok(())
    })?;
    Ok(if code != 0 { 2 } else { i32::from(!found) })
}

mod expression {
    /// Maximum matching steps for one line: a hostile expression ends.
    const STEPS_MAX: u32 = 1_000_000;

    /// Whether the expression matches somewhere in the text.
    pub fn found(expression: &[u8], text: &[u8]) -> bool {
        let mut steps = 0;
        if let [b'^', rest @ ..] = expression {
            return here(rest, text, &mut steps);
        }
        (0..=text.len()).any(|from| here(expression, &text[from..], &mut steps))
    }

    /// The length of the first element.
    fn element(expression: &[u8]) -> usize {
        match expression {
            [b'\\', _, ..] => 2,
            [b'[', rest @ ..] => {
                let first = usize::from(matches!(rest.first(), Some(b'^')));
                let end = rest.iter().skip(first + 1).position(|byte| *byte == b']');
                end.map_or(1, |end| end + first + 3)
            }
            _ => 1,
        }
    }

    fn fits(element: &[u8], byte: u8) -> bool {
        match element {
            [b'\\', b's'] => byte.is_ascii_whitespace(),
            [b'\\', other] => *other == byte,
            [b'.'] => true,
            [b'[', set @ .., b']'] if !set.is_empty() => {
                let (not, set) = match set {
                    [b'^', rest @ ..] => (true, rest),
                    set => (false, set),
                };
                let mut at = 0;
                let mut inside = false;
                while at < set.len() {
                    if at + 2 < set.len() && set[at + 1] == b'-' {
                        inside |= (set[at]..=set[at + 2]).contains(&byte);
                        at += 3;
                    } else {
                        inside |= set[at] == byte;
                        at += 1;
                    }
                }
                inside != not
            }
            [only] => *only == byte,
            _ => false,
        }
    }

    fn here(mut expression: &[u8], mut text: &[u8], steps: &mut u32) -> bool {
        loop {
            *steps += 1;
            if *steps > STEPS_MAX {
                return false;
            }
            if expression.is_empty() {
                return true;
            }
            if expression == b"$" {
                return text.is_empty();
            }
            let length = element(expression);
            let (first, rest) = expression.split_at(length);
            if let Some(sign @ (b'*' | b'+')) = rest.first().filter(|sign| **sign == b'*' || **sign == b'+') {
                // The longest match first; the recursion is bounded by the number of elements.
                let most = text.iter().take_while(|byte| fits(first, **byte)).count();
                let least = usize::from(*sign == b'+');
                return (least..=most).rev().any(|taken| here(&rest[1..], &text[taken..], steps));
            }
            match text.split_first() {
                Some((byte, more)) if fits(first, *byte) => (expression, text) = (rest, more),
                _ => return false,
            }
        }
    }
}

/// All lines of all inputs.
fn lines(context: &mut Context, tool: &str, operands: &[String]) -> Result<(Vec<String>, i32), crate::io::Stop> {
    let mut all = Vec::new();
    let code = each(context, tool, operands, |context, _, mut input| {
        while let Some(line) = input.line(&mut context.stdin)? {
            all.push(String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned());
        }
        Ok(())
    })?;
    Ok((all, code))
}

pub fn sort(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = match letters(args, "rnu") {
        Ok(read) => read,
        Err(why) => return context.fail("sort", &why),
    };
    let (mut all, code) = lines(context, "sort", operands)?;
    let number = |line: &String| {
        let line = line.trim_start();
        let digits = line.char_indices().find(|(at, c)| !(c.is_ascii_digit() || *at == 0 && *c == '-'));
        line[..digits.map_or(line.len(), |(at, _)| at)].parse::<i64>().unwrap_or(0)
    };
    if options.contains('n') {
        all.sort_by(|a, b| number(a).cmp(&number(b)).then_with(|| a.cmp(b)));
    } else {
        all.sort();
    }
    if options.contains('u') {
        all.dedup();
    }
    if options.contains('r') {
        all.reverse();
    }
    for line in all {
        context.out.line(&line)?;
    }
    Ok(code)
}

pub fn uniq(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = match letters(args, "cd") {
        Ok(read) => read,
        Err(why) => return context.fail("uniq", &why),
    };
    let (all, code) = lines(context, "uniq", operands)?;
    for group in all.chunk_by(|a, b| a == b) {
        let Some(line) = group.first().filter(|_| group.len() > 1 || !options.contains('d')) else { continue };
        let count = if options.contains('c') { format!("{:7} ", group.len()) } else { String::new() };
        context.out.line(&format!("{count}{line}"))?;
    }
    Ok(code)
}

/// `1,3-5,7-` as ranges of positions from 1.
fn ranges(list: &str) -> Option<Vec<(usize, usize)>> {
    let one = |part: &str| match part.split_once('-') {
        None => part.parse().ok().map(|at| (at, at)),
        Some((from, "")) => Some((from.parse().ok()?, usize::MAX)),
        Some(("", to)) => Some((1, to.parse().ok()?)),
        Some((from, to)) => Some((from.parse().ok()?, to.parse().ok()?)),
    };
    list.split(',').map(one).collect()
}

pub fn cut(context: &mut Context, args: &[String]) -> Ended {
    let (mut delimiter, mut wanted, mut fields, mut operands) = ("\t".to_owned(), None, false, Vec::new());
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        let mut value =
            |inline: &str| if inline.is_empty() { rest.next().cloned().unwrap_or_default() } else { inline.to_owned() };
        if let Some(inline) = arg.strip_prefix("-d") {
            delimiter = value(inline);
        } else if let Some(inline) = arg.strip_prefix("-f") {
            (fields, wanted) = (true, ranges(&value(inline)));
        } else if let Some(inline) = arg.strip_prefix("-c") {
            (fields, wanted) = (false, ranges(&value(inline)));
        } else {
            operands.push(arg.clone());
        }
    }
    let Some(wanted) = wanted.filter(|_| !delimiter.is_empty()) else {
        return context.fail("cut", "usage: cut -c LIST | -f LIST [-d DELIMITER] [FILE…]");
    };
    let is_wanted = |at: usize| wanted.iter().any(|(from, to)| (*from..=*to).contains(&(at + 1)));
    let (all, code) = lines(context, "cut", &operands)?;
    for line in all {
        let kept: String = if !fields {
            line.chars().enumerate().filter(|(at, _)| is_wanted(*at)).map(|(_, c)| c).collect()
        } else if line.contains(&delimiter) {
            let parts = line.split(&delimiter).enumerate().filter(|(at, _)| is_wanted(*at));
            parts.map(|(_, part)| part).collect::<Vec<_>>().join(&delimiter)
        } else {
            line
        };
        context.out.line(&kept)?;
    }
    Ok(code)
}

/// `a-z` and backslashes, expanded.
fn spelled(set: &str) -> Vec<u8> {
    let plain = match set {
        "[:upper:]" => "A-Z",
        "[:lower:]" => "a-z",
        "[:digit:]" => "0-9",
        "[:space:]" => " \t\n\r",
        other => other,
    };
    let bytes = unescape(plain).0;
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if at + 2 < bytes.len() && bytes[at + 1] == b'-' {
            out.extend(bytes[at]..=bytes[at + 2]);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

pub fn tr(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = match letters(args, "dsc") {
        Ok(read) => read,
        Err(why) => return context.fail("tr", &why),
    };
    let has = |letter| options.contains(letter);
    let (from, to) = match operands {
        [from, to] => (spelled(from), spelled(to)),
        [from] if has('d') || has('s') => (spelled(from), Vec::new()),
        _ => return context.fail("tr", "usage: tr [-dsc] SET [SET]"),
    };
    let mut input = context.input.clone();
    let mut last = None;
    loop {
        let bytes = input.read(&mut context.stdin)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            let at = from.iter().position(|one| *one == byte);
            let at = if has('c') { at.is_none().then_some(usize::MAX) } else { at };
            let changed = match at {
                None => byte,
                Some(_) if has('d') => continue,
                Some(at) => to.get(at.min(to.len().wrapping_sub(1))).copied().unwrap_or(byte),
            };
            if has('s') && at.is_some() && last == Some(changed) {
                continue;
            }
            last = Some(changed);
            out.push(changed);
        }
        context.out.write(&out)?;
    }
}

pub fn tee(context: &mut Context, args: &[String]) -> Ended {
    let (options, operands) = match letters(args, "ai") {
        Ok(read) => read,
        Err(why) => return context.fail("tee", &why),
    };
    let (mut files, mut code) = (Vec::new(), 0);
    for name in operands {
        match context.create(name, options.contains('a')) {
            Ok(file) => files.push(file),
            Err(why) => code = context.fail("tee", &why)?,
        }
    }
    let mut input = context.input.clone();
    loop {
        let bytes = input.read(&mut context.stdin)?;
        if bytes.is_empty() {
            return Ok(code);
        }
        context.out.write(&bytes)?;
        for file in &mut files {
            file.write(&bytes)?;
        }
    }
}

pub fn seq(context: &mut Context, args: &[String]) -> Ended {
    let numbers: Option<Vec<i64>> = args[1..].iter().map(|text| text.parse().ok()).collect();
    let (first, step, last) = match numbers.as_deref() {
        Some([last]) => (1, 1, *last),
        Some([first, last]) => (*first, 1, *last),
        Some([first, step, last]) if *step != 0 => (*first, *step, *last),
        _ => return context.fail("seq", "usage: seq [FIRST [STEP]] LAST, of whole numbers"),
    };
    let (mut number, mut text) = (first, String::new());
    while if step > 0 { number <= last } else { number >= last } {
        text.push_str(&format!("{number}\n"));
        if text.len() > 32_000 {
            context.out.write(text.as_bytes())?;
            text.clear();
        }
        match number.checked_add(step) {
            Some(next) => number = next,
            None => break,
        }
    }
    context.out.write(text.as_bytes())?;
    Ok(0)
}

pub fn basename(context: &mut Context, args: &[String]) -> Ended {
    let Some(path) = args.get(1) else { return context.fail("basename", "usage: basename PATH [SUFFIX]") };
    let (_, name) = files::split(path);
    let name = if name.is_empty() { "/" } else { name };
    let cut = args.get(2).and_then(|suffix| name.strip_suffix(suffix.as_str())).filter(|cut| !cut.is_empty());
    context.out.line(cut.unwrap_or(name))?;
    Ok(0)
}

pub fn dirname(context: &mut Context, args: &[String]) -> Ended {
    let Some(path) = args.get(1) else { return context.fail("dirname", "usage: dirname PATH") };
    let folder = if path.starts_with('/') && files::split(path).1.is_empty() { "/" } else { files::split(path).0 };
    context.out.line(folder)?;
    Ok(0)
}
