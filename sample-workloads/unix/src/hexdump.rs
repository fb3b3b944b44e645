//! `hexdump -C`: prints bytes as hexadecimal numbers and characters.
use crate::{Context, Ended, letters};
use guest::{String, Vec, format};

const ROW_BYTES: usize = 16;

fn row(at: usize, bytes: &[u8]) -> String {
    let mut numbers = String::new();
    for (column, byte) in bytes.iter().enumerate() {
        numbers.push_str(if column == ROW_BYTES / 2 { "  " } else { " " });
        numbers.push_str(&format!("{byte:02x}"));
    }
    let shown: String = bytes.iter().map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '.' }).collect();
    format!("{at:08x} {numbers:<50} |{shown}|")
}

pub fn hexdump(context: &mut Context, args: &[String]) -> Ended {
    let operands = match letters(args, "C") {
        Ok((options, operands)) if options == "C" => operands.to_vec(),
        Ok(_) => return context.fail("hexdump", "usage: hexdump -C [FILE…]").map(|_| 2),
        Err(why) => return context.fail("hexdump", &why).map(|_| 2),
    };
    let (mut at, mut rest, mut last): (usize, Vec<u8>, Vec<u8>) = (0, Vec::new(), Vec::new());
    let mut is_repeated = false;
    let mut show = |context: &mut Context, bytes: &[u8]| {
        let is_same = bytes.len() == ROW_BYTES && last == bytes;
        let shown = if !is_same {
            context.out.line(&row(at, bytes))
        } else if is_repeated {
            Ok(())
        } else {
            context.out.line("*")
        };
        is_repeated = is_same;
        last = bytes.to_vec();
        at += bytes.len();
        shown
    };
    let ended = crate::text::each(context, "hexdump", &operands, |context, _, mut input| {
        loop {
            let mut bytes = input.read(&mut context.stdin)?;
            if bytes.is_empty() {
                return Ok(());
            }
            rest.append(&mut bytes);
            let whole = rest.len() / ROW_BYTES * ROW_BYTES;
            for bytes in rest[..whole].chunks(ROW_BYTES) {
                show(context, bytes)?;
            }
            rest.drain(..whole);
        }
    })?;
    if !rest.is_empty() {
        show(context, &rest)?;
    }
    if at > 0 {
        context.out.line(&format!("{at:08x}"))?;
    }
    Ok(ended)
}
