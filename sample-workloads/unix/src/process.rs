//! Tools about the session itself: its variables, its time, its name.
use crate::{Context, Ended};
use guest::wasip2::clocks::wall_clock;
use guest::{String, ToOwned, Vec, format};

pub fn yes(_: &mut Context, _: &[String]) -> Ended {
    Ok(0)
}

pub fn no(_: &mut Context, _: &[String]) -> Ended {
    Ok(1)
}

pub fn pwd(context: &mut Context, _: &[String]) -> Ended {
    let cwd = context.cwd.clone();
    context.out.line(&cwd)?;
    Ok(0)
}

pub fn hostname(context: &mut Context, _: &[String]) -> Ended {
    let name = context.variable("HOSTNAME").unwrap_or("localhost").to_owned();
    context.out.line(&name)?;
    Ok(0)
}

/// A module has no user; files belong to the node's process, and a guest has the owner's access.
pub fn id(context: &mut Context, args: &[String]) -> Ended {
    let text = match args.get(1).map(String::as_str) {
        Some("-u" | "-g") => "0",
        Some("-un" | "-gn") => "root",
        _ => "uid=0(root) gid=0(root) groups=0(root)",
    };
    context.out.line(text)?;
    Ok(0)
}

pub fn whoami(context: &mut Context, _: &[String]) -> Ended {
    context.out.line("root")?;
    Ok(0)
}

pub fn printenv(context: &mut Context, args: &[String]) -> Ended {
    if args.len() < 2 {
        return env(context, &args[..1]);
    }
    let mut code = 0;
    for name in &args[1..] {
        match context.variable(name).map(ToOwned::to_owned) {
            Some(value) => context.out.line(&value)?,
            None => code = 1,
        }
    }
    Ok(code)
}

pub fn env(context: &mut Context, args: &[String]) -> Ended {
    let before = context.env.clone();
    let mut at = 1;
    while let Some(arg) = args.get(at) {
        match arg.split_once('=') {
            _ if arg == "-i" || arg == "-" => context.env.clear(),
            Some((name, value)) => set(&mut context.env, name, value),
            None => break,
        }
        at += 1;
    }
    let ended = match args.get(at) {
        None => {
            for (name, value) in context.env.clone() {
                context.out.line(&format!("{name}={value}"))?;
            }
            Ok(0)
        }
        Some(name) => match context.tool(name) {
            Some(tool) => tool(context, &args[at..]),
            None => context.fail("env", &format!("{name}: No such file or directory")).map(|_| 127),
        },
    };
    context.env = before;
    ended
}

/// Sets a variable.
pub fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => value.clone_into(known),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

pub fn sleep(context: &mut Context, args: &[String]) -> Ended {
    if args.len() < 2 {
        return context.fail("sleep", "usage: sleep SECONDS…");
    }
    let mut nanoseconds = 0_u64;
    for text in &args[1..] {
        let (number, unit) = match text.char_indices().next_back() {
            Some((at, 's')) => (&text[..at], 1.0),
            Some((at, 'm')) => (&text[..at], 60.0),
            Some((at, 'h')) => (&text[..at], 3600.0),
            Some((at, 'd')) => (&text[..at], 86_400.0),
            _ => (text.as_str(), 1.0),
        };
        match number.parse::<f64>() {
            Ok(seconds) if seconds >= 0.0 && seconds.is_finite() => {
                nanoseconds = nanoseconds.saturating_add((seconds * unit * 1e9) as u64);
            }
            _ => return context.fail("sleep", &format!("invalid number '{text}'")),
        }
    }
    context.stdin.sleep(nanoseconds)?;
    Ok(0)
}

/// A day's date by days since 1970, of the Gregorian calendar.
pub fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/// A time in the requested format, in UTC.
pub fn time_text(format: &str, seconds: u64, nanoseconds: u32) -> String {
    let days = (seconds / 86_400) as i64;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[(month - 1) as usize], DAYS[((days + 4) % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text.push_str(&match chars.next() {
            Some('Y') => format!("{year}"),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('H') => format!("{hour:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('N') => format!("{nanoseconds:09}"),
            Some('s') => format!("{seconds}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('a') => day_name.to_owned(),
            Some('b') => month_name.to_owned(),
            Some('%') => "%".to_owned(),
            Some('n') => "\n".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    text
}

pub fn date(context: &mut Context, args: &[String]) -> Ended {
    let now = wall_clock::now();
    let (mut format, mut seconds, mut nanoseconds) = ("%a %b %e %T %Z %Y", now.seconds, now.nanoseconds);
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "-u" => {}
            "-Iseconds" => format = "%FT%T+00:00",
            "-d" => match rest.next().and_then(|at| at.strip_prefix('@')?.parse().ok()) {
                Some(at) => (seconds, nanoseconds) = (at, 0),
                None => return context.fail("date", "-d takes @SECONDS"),
            },
            other => match other.strip_prefix('+') {
                Some(wanted) => format = wanted,
                None => return context.fail("date", &format!("unknown option {other}")),
            },
        }
    }
    context.out.line(&time_text(format, seconds, nanoseconds))?;
    Ok(0)
}

/// Arithmetic and comparison of two operands.
pub fn expr(context: &mut Context, args: &[String]) -> Ended {
    let [_, left, operator, right] = args else {
        return context.fail("expr", "usage: expr A OPERATOR B, of + - * / % = != < <= > >=").map(|_| 2);
    };
    let (a, b) = (left.parse::<i64>(), right.parse::<i64>());
    let number = match (operator.as_str(), a, b) {
        ("=", ..) => Some(i64::from(left == right)),
        ("!=", ..) => Some(i64::from(left != right)),
        ("+", Ok(a), Ok(b)) => a.checked_add(b),
        ("-", Ok(a), Ok(b)) => a.checked_sub(b),
        ("*", Ok(a), Ok(b)) => a.checked_mul(b),
        ("/", Ok(a), Ok(b)) => a.checked_div(b),
        ("%", Ok(a), Ok(b)) => a.checked_rem(b),
        ("<", Ok(a), Ok(b)) => Some(i64::from(a < b)),
        ("<=", Ok(a), Ok(b)) => Some(i64::from(a <= b)),
        (">", Ok(a), Ok(b)) => Some(i64::from(a > b)),
        (">=", Ok(a), Ok(b)) => Some(i64::from(a >= b)),
        _ => None,
    };
    let Some(number) = number else { return context.fail("expr", "not a number, or out of range").map(|_| 2) };
    context.out.line(&format!("{number}"))?;
    Ok(i32::from(number == 0))
}
