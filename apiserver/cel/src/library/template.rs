//! Parser of `format` templates: text, and clauses that stand for arguments.

/// The maximum number of decimals.
const DIGITS_MAX: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clause {
    pub(crate) verb: char,
    pub(crate) precision: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece<'t> {
    Text(&'t str),
    /// A clause for the next argument. Its error is reported after a missing argument, as upstream does.
    Argument(Result<Clause, String>),
}

/// Splits a template into pieces; an invalid clause is the last piece.
pub(crate) fn pieces(template: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = template;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(after) = rest.strip_prefix("%%") {
            let percent = &rest[..1];
            rest = after;
            return Some(Piece::Text(percent));
        }
        if !rest.starts_with('%') {
            let (text, after) = rest.split_at(rest.find('%').unwrap_or(rest.len()));
            rest = after;
            return Some(Piece::Text(text));
        }
        let read = clause(&rest[1..]);
        rest = read.as_ref().map_or("", |(_, after)| after);
        Some(Piece::Argument(read.map(|(clause, _)| clause)))
    })
}

fn clause(text: &str) -> Result<(Clause, &str), String> {
    let mut rest = text;
    let mut precision = None;
    if text.is_empty() {
        return Err("unexpected end of string".into());
    }
    let wrong = |what: String| Err(format!("could not parse formatting clause: {what}"));
    if let Some(after) = rest.strip_prefix('.') {
        let end = after.find(|c: char| !c.is_ascii_digit());
        let Some(end) = end else {
            return wrong("error while parsing precision: could not find end of precision specifier".into());
        };
        let (digits, after) = after.split_at(end);
        let number = match digits.parse::<u64>() {
            Ok(number) => number.min(DIGITS_MAX as u64) as usize,
            Err(_) => {
                let why = if digits.is_empty() { "invalid syntax" } else { "value out of range" };
                let what = format!("strconv.Atoi: parsing \"{digits}\": {why}");
                return wrong(format!(
                    "error while parsing precision: error while converting precision to integer: {what}"
                ));
            }
        };
        precision = Some(number);
        rest = after;
    }
    let mut chars = rest.chars();
    match chars.next() {
        Some(verb @ ('s' | 'd' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o')) => {
            Ok((Clause { verb, precision }, chars.as_str()))
        }
        // Upstream reads a byte.
        other => {
            let byte = other.map_or('\0', |c| char::from(c.to_string().as_bytes()[0]));
            wrong(format!("unrecognized formatting clause \"{byte}\""))
        }
    }
}

/// The error for a value that a clause doesn't accept.
pub(crate) fn format_type_error(verb: char, given: &str) -> String {
    let what = match verb {
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'o' => "octal clause can only be used on integers",
        'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
        _ => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, \
             and timestamps"
        }
    };
    format!("error during formatting: {what}, was given {given}")
}
