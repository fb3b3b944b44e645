//! `$((…))`: whole numbers of 64 bits, with C's operators but assignments. Pure.
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

/// Maximum depth of parentheses.
const DEPTH_MAX: usize = 64;

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    value: &'a mut dyn FnMut(&str) -> Option<String>,
}

/// The value of an expression. `value` looks up variables.
pub fn evaluate(text: &str, value: &mut dyn FnMut(&str) -> Option<String>) -> Result<i64, String> {
    let mut reader = Reader { text: text.as_bytes(), at: 0, depth: 0, value };
    let number = if text.trim().is_empty() { 0 } else { reader.choice()? };
    reader.blanks();
    if reader.at < text.len() { Err(format!("arithmetic: unexpected {}", &text[reader.at..])) } else { Ok(number) }
}

/// From the weakest to the strongest precedence; longer operators first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl Reader<'_> {
    fn blanks(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, sign: &str) -> bool {
        self.blanks();
        let found = self.text[self.at..].starts_with(sign.as_bytes());
        if found {
            self.at += sign.len();
        }
        found
    }

    /// `a ? b : c`
    fn choice(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("arithmetic: too deep".to_owned());
        }
        let condition = self.level(0)?;
        let chosen = if self.take("?") {
            let yes = self.choice()?;
            if !self.take(":") {
                return Err("arithmetic: a ? without its :".to_owned());
            }
            let no = self.choice()?;
            if condition != 0 { yes } else { no }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(chosen)
    }

    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        loop {
            self.blanks();
            let rest = &self.text[self.at..];
            let found = operators.iter().find(|operator| rest.starts_with(operator.as_bytes()));
            // `&` is not the first half of `&&`, nor `<` of `<<`.
            let Some(operator) = found.filter(|operator| {
                let doubled = operator.len() == 1 && rest.get(1) == rest.first();
                !(doubled && matches!(**operator, "|" | "&" | "<" | ">"))
            }) else {
                return Ok(left);
            };
            self.at += operator.len();
            let right = self.level(level + 1)?;
            let overflow = || "arithmetic: out of range".to_owned();
            left = match *operator {
                "||" => i64::from(left != 0 || right != 0),
                "&&" => i64::from(left != 0 && right != 0),
                "|" => left | right,
                "^" => left ^ right,
                "&" => left & right,
                "==" => i64::from(left == right),
                "!=" => i64::from(left != right),
                "<=" => i64::from(left <= right),
                ">=" => i64::from(left >= right),
                "<" => i64::from(left < right),
                ">" => i64::from(left > right),
                "<<" => u32::try_from(right).ok().and_then(|by| left.checked_shl(by)).ok_or_else(overflow)?,
                ">>" => u32::try_from(right).ok().and_then(|by| left.checked_shr(by)).ok_or_else(overflow)?,
                "+" => left.wrapping_add(right),
                "-" => left.wrapping_sub(right),
                "*" => left.wrapping_mul(right),
                _ if right == 0 => return Err("arithmetic: division by zero".to_owned()),
                "/" => left.wrapping_div(right),
                _ => left.wrapping_rem(right),
            };
        }
    }

    fn unary(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("arithmetic: too deep".to_owned());
        }
        self.blanks();
        let number = match self.text.get(self.at) {
            Some(b'!') => {
                self.at += 1;
                i64::from(self.unary()? == 0)
            }
            Some(b'~') => {
                self.at += 1;
                !self.unary()?
            }
            Some(b'-') => {
                self.at += 1;
                self.unary()?.wrapping_neg()
            }
            Some(b'+') => {
                self.at += 1;
                self.unary()?
            }
            Some(b'(') => {
                self.at += 1;
                let inner = self.choice()?;
                if !self.take(")") {
                    return Err("arithmetic: a ( without its )".to_owned());
                }
                inner
            }
            _ => self.operand()?,
        };
        self.depth -= 1;
        Ok(number)
    }

    fn operand(&mut self) -> Result<i64, String> {
        let from = self.at;
        while self.text.get(self.at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.text[from..self.at]).into_owned();
        if word.is_empty() {
            return Err("arithmetic: an operand is missing".to_owned());
        }
        let text = if word.as_bytes()[0].is_ascii_digit() { word } else { (self.value)(&word).unwrap_or_default() };
        let text = text.trim();
        let bad = || format!("arithmetic: {text}: not a number");
        match text.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).map_err(|_| bad()),
            None if text.is_empty() => Ok(0),
            None if text.len() > 1 && text.starts_with('0') => i64::from_str_radix(text, 8).map_err(|_| bad()),
            None => text.parse().map_err(|_| bad()),
        }
    }
}
