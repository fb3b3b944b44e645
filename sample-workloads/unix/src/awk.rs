//! A subset of `awk`, for columns in shell scripts: `[NR==N] { print A, B … }` of `$N`, `$NF`, `NR`, `NF`, quoted words and
//! numbers. Other programs are rejected.
use crate::{Context, Ended};
use guest::{String, ToOwned, ToString, Vec, format};

enum Value {
    Field(usize),
    LastField,
    Line,
    Fields,
    Text(String),
}

struct Program {
    /// The only line that is processed.
    line: Option<usize>,
    /// The printed columns, separated by a blank; the values of one column are concatenated.
    columns: Vec<Vec<Value>>,
}

fn number(text: &str) -> (usize, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().unwrap_or(usize::MAX), &text[end..])
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn value(text: &str) -> Option<(Value, &str)> {
    if let Some(rest) = text.strip_prefix("$NF") {
        return Some((Value::LastField, rest));
    }
    if let Some(rest) = text.strip_prefix('$').filter(|rest| starts_with_digit(rest)) {
        let (field, rest) = number(rest);
        return Some((Value::Field(field), rest));
    }
    if let Some(rest) = text.strip_prefix("NR") {
        return Some((Value::Line, rest));
    }
    if let Some(rest) = text.strip_prefix("NF") {
        return Some((Value::Fields, rest));
    }
    if let Some(rest) = text.strip_prefix('"') {
        let (quoted, rest) = rest.split_once('"').filter(|(quoted, _)| !quoted.contains('\\'))?;
        return Some((Value::Text(quoted.to_owned()), rest));
    }
    let (_, rest) = Some(number(text)).filter(|_| starts_with_digit(text))?;
    Some((Value::Text(text[..text.len() - rest.len()].to_owned()), rest))
}

fn parse(text: &str) -> Option<Program> {
    let (condition, action) = text.split_once('{')?;
    let line = match condition.trim() {
        "" => None,
        condition => {
            let (line, rest) = number(condition.strip_prefix("NR")?.trim_start().strip_prefix("==")?.trim_start());
            Some(line).filter(|_| rest.is_empty())?.into()
        }
    };
    let mut rest = action.trim().strip_suffix('}')?.trim().trim_end_matches(';').strip_prefix("print")?;
    rest.chars().next().is_none_or(|c| !c.is_alphanumeric()).then_some(())?;
    let mut columns: Vec<Vec<Value>> = Vec::new();
    let mut column = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with(',') {
            if column.is_empty() && !(rest.is_empty() && columns.is_empty()) {
                return None;
            }
            columns.push(core::mem::take(&mut column));
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return Some(Program { line, columns }),
            }
        } else {
            let (value, more) = value(rest)?;
            column.push(value);
            rest = more;
        }
    }
}

fn show(column: &[Value], line: &str, at: usize, fields: &[&str]) -> String {
    let field = |at: usize| if at == 0 { line } else { fields.get(at - 1).copied().unwrap_or_default() };
    if column.is_empty() {
        return line.to_owned();
    }
    let text = |value: &Value| match value {
        Value::Field(at) => field(*at).to_owned(),
        Value::LastField => field(fields.len()).to_owned(),
        Value::Line => at.to_string(),
        Value::Fields => fields.len().to_string(),
        Value::Text(text) => text.clone(),
    };
    column.iter().map(text).collect()
}

pub fn awk(context: &mut Context, args: &[String]) -> Ended {
    let mut rest = &args[1..];
    let mut separator = None;
    while let [option, more @ ..] = rest
        && let Some(value) = option.strip_prefix("-F")
    {
        (separator, rest) = match more {
            [next, more @ ..] if value.is_empty() => (Some(next.clone()), more),
            _ => (Some(value.to_owned()), more),
        };
    }
    let Some((text, operands)) = rest.split_first() else {
        return context.fail("awk", "usage: awk [-F TEXT] PROGRAM [FILE…]").map(|_| 2);
    };
    let Some(program) = parse(text) else {
        return context.fail("awk", &format!("{text}: there is `[NR==N] {{ print A, B … }}`")).map(|_| 2);
    };
    let mut at = 0;
    crate::text::each(context, "awk", operands, |context, _, mut input| {
        while let Some(line) = input.line(&mut context.stdin)? {
            at += 1;
            if program.line.is_some_and(|wanted| wanted != at) {
                continue;
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.strip_suffix('\n').unwrap_or(&line);
            let fields: Vec<&str> = match separator.as_deref() {
                None | Some(" " | "") => line.split_ascii_whitespace().collect(),
                Some(separator) => line.split(separator).collect(),
            };
            let columns: Vec<String> = program.columns.iter().map(|of| show(of, line, at, &fields)).collect();
            context.out.line(&columns.join(" "))?;
        }
        Ok(())
    })
}
