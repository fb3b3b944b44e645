//! `head` and `tail`: the first or last lines or bytes of each input; `tail -f` polls for appended data.
use crate::io::{Input, Stop};
use crate::text::each;
use crate::{Context, Ended};
use guest::{String, ToOwned, Vec, format};

/// The poll interval of `tail -f`.
const FOLLOW_PERIOD: u64 = 1_000_000_000;

/// The amount that `head` and `tail` print.
struct Amount {
    bytes: bool,
    /// `tail -n +N`: from line N on.
    from: bool,
    /// `tail -f`: also appended data.
    follow: bool,
    number: u64,
}

fn amount(args: &[String]) -> Result<(Amount, Vec<String>), String> {
    let mut amount = Amount { bytes: false, from: false, follow: false, number: 10 };
    let mut operands = Vec::new();
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        let value = match arg.strip_prefix('-') {
            Some(option) if !option.is_empty() => match (option.strip_prefix('n'), option.strip_prefix('c')) {
                (Some(value), _) | (_, Some(value)) => {
                    amount.bytes = option.starts_with('c');
                    if value.is_empty() { rest.next().cloned().unwrap_or_default() } else { value.to_owned() }
                }
                _ if option == "q" => continue,
                _ if matches!(option, "f" | "F") => {
                    amount.follow = true;
                    continue;
                }
                _ => option.to_owned(),
            },
            _ => {
                operands.push(arg.clone());
                continue;
            }
        };
        amount.from = value.starts_with('+');
        let digits = value.trim_start_matches(['+', '-']);
        amount.number = digits.parse().map_err(|_| format!("invalid number '{value}'"))?;
    }
    Ok((amount, operands))
}

pub fn head(context: &mut Context, args: &[String]) -> Ended {
    let (amount, operands) = match amount(args) {
        Ok(read) => read,
        Err(why) => return context.fail("head", &why),
    };
    each(context, "head", &operands, |context, _, mut input| {
        let mut left = amount.number;
        while left > 0 {
            if amount.bytes {
                let bytes = input.read(&mut context.stdin)?;
                if bytes.is_empty() {
                    break;
                }
                let some = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                context.out.write(some)?;
                left -= some.len() as u64;
            } else {
                let Some(line) = input.line(&mut context.stdin)? else { break };
                context.out.write(&line)?;
                left -= 1;
            }
        }
        Ok(())
    })
}

pub fn tail(context: &mut Context, args: &[String]) -> Ended {
    let (amount, operands) = match amount(args) {
        Ok(read) => read,
        Err(why) => return context.fail("tail", &why),
    };
    each(context, "tail", &operands, |context, _, mut input| {
        if amount.from {
            tail_from(context, &mut input, &amount)?;
            return if amount.follow { follow(context, &mut input) } else { Ok(()) };
        }
        let number = usize::try_from(amount.number).unwrap_or(usize::MAX);
        let mut kept: Vec<u8> = Vec::new();
        loop {
            let mut bytes = input.read(&mut context.stdin)?;
            let ended = bytes.is_empty();
            kept.append(&mut bytes);
            let from = if amount.bytes {
                kept.len().saturating_sub(number)
            } else {
                let ends = kept.len().saturating_sub(1);
                let newlines = (0..ends).rev().filter(|at| kept[*at] == b'\n');
                if number == 0 { kept.len() } else { newlines.map(|at| at + 1).nth(number - 1).unwrap_or(0) }
            };
            kept.drain(..from);
            if ended {
                context.out.write(&kept)?;
                return if amount.follow { follow(context, &mut input) } else { Ok(()) };
            }
        }
    })
}

fn tail_from(context: &mut Context, input: &mut Input, amount: &Amount) -> Result<(), Stop> {
    let mut skip = amount.number.saturating_sub(1);
    if !amount.bytes {
        while skip > 0 && input.line(&mut context.stdin)?.is_some() {
            skip -= 1;
        }
    }
    loop {
        let bytes = input.read(&mut context.stdin)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let from = if amount.bytes { bytes.len().min(usize::try_from(skip).unwrap_or(usize::MAX)) } else { 0 };
        skip -= from as u64;
        context.out.write(&bytes[from..])?;
    }
}

/// Prints appended data until the session ends.
fn follow(context: &mut Context, input: &mut Input) -> Result<(), Stop> {
    loop {
        let bytes = input.read(&mut context.stdin)?;
        if bytes.is_empty() {
            context.stdin.sleep(FOLLOW_PERIOD)?;
        } else {
            context.out.write(&bytes)?;
        }
    }
}
