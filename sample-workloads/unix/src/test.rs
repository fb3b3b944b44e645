//! `test`, `[`, and `[[`, an alias here: its words are expanded as those of any command.
use crate::{Context, Ended, files};
use guest::wasip2::filesystem::types::DescriptorType;
use guest::{String, format};

pub fn test(context: &mut Context, args: &[String]) -> Ended {
    let mut operands = &args[1..];
    let closing = match args.first().map(|name| name.rsplit('/').next().unwrap_or(name)) {
        Some("[") => Some("]"),
        Some("[[") => Some("]]"),
        _ => None,
    };
    if let Some(closing) = closing {
        match operands {
            [rest @ .., last] if last == closing => operands = rest,
            _ => return context.fail("[", &format!("missing {closing}")).map(|_| 2),
        }
    }
    match any(context, operands, 0) {
        Ok(holds) => Ok(i32::from(!holds)),
        Err(why) => context.fail("test", &why).map(|_| 2),
    }
}

/// The nesting is bounded by the number of arguments.
const DEPTH_MAX: usize = 32;

fn any(context: &Context, operands: &[String], depth: usize) -> Result<bool, String> {
    if depth > DEPTH_MAX {
        return Err("too many operators".into());
    }
    // -o binds weaker than -a, ! stronger than both.
    if operands.len() > 3 {
        for operator in ["-o", "-a"] {
            if let Some(at) = operands.iter().position(|operand| operand == operator)
                && at > 0
            {
                let left = any(context, &operands[..at], depth + 1)?;
                let right = any(context, &operands[at + 1..], depth + 1)?;
                return Ok(if operator == "-o" { left || right } else { left && right });
            }
        }
    }
    match operands {
        [] => Ok(false),
        [one] => Ok(!one.is_empty()),
        [not, rest @ ..] if not == "!" => any(context, rest, depth + 1).map(|holds| !holds),
        [operator, operand] => one(context, operator, operand),
        [left, operator, right] => two(context, left, operator, right),
        _ => Err("too many arguments".into()),
    }
}

fn one(context: &Context, operator: &str, operand: &str) -> Result<bool, String> {
    let look = |follow| files::stat(&context.absolute(operand), follow);
    let is = |kind| look(true).is_ok_and(|stat| stat.kind == kind);
    Ok(match operator {
        "-n" => !operand.is_empty(),
        "-z" => operand.is_empty(),
        "-e" | "-r" | "-w" => look(true).is_ok(),
        "-x" => is(DescriptorType::Directory),
        "-f" => is(DescriptorType::RegularFile),
        "-d" => is(DescriptorType::Directory),
        "-h" | "-L" => look(false).is_ok_and(|stat| stat.is_link()),
        "-s" => look(true).is_ok_and(|stat| stat.size > 0),
        "-t" => operand == "0" && context.stdin.is_terminal(),
        other => return Err(format!("{other}: unknown operator")),
    })
}

fn two(context: &Context, left: &str, operator: &str, right: &str) -> Result<bool, String> {
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("{text}: bad number"));
    let modified = |path: &str| files::stat(&context.absolute(path), true).map_or(0, |stat| stat.modified);
    Ok(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "-eq" => number(left)? == number(right)?,
        "-ne" => number(left)? != number(right)?,
        "-lt" => number(left)? < number(right)?,
        "-le" => number(left)? <= number(right)?,
        "-gt" => number(left)? > number(right)?,
        "-ge" => number(left)? >= number(right)?,
        "-nt" => modified(left) > modified(right),
        "-ot" => modified(left) < modified(right),
        other => return Err(format!("{other}: unknown operator")),
    })
}
