//! Quantities (`100m`, `1.5Gi`, `1e3`): upstream's grammar, canonical form and arithmetic.
//!
//! A value is `mantissa × 10^exponent` with an `i128` mantissa, never finer than nano. Values that need upstream's
//! unbounded decimals (over [`DIGITS_MAX`] significant digits) are rejected: none is used in practice.

use std::cmp::Ordering;
use std::fmt;

/// Maximum significant decimal digits: leaves headroom in an `i128` for the largest suffix factor.
const DIGITS_MAX: usize = 30;
/// The finest exponent.
const NANO: i32 = -9;
/// The largest accepted decimal exponent; upstream would fill its memory with zeros.
const EXPONENT_MAX: i32 = 1000;
/// Digits of upstream's fast path, which decides whether the text is kept as written.
const FAST_DIGITS: usize = 18;

/// Why a text is no quantity; the messages are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The form is wrong.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is too large.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The suffix family of a quantity's canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// A fixed-point number with its suffix family. Compared by value only.
#[derive(Debug, Clone)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
    format: Format,
    /// The text as written, if upstream keeps it (where it considers it canonical).
    text: Option<Box<str>>,
    /// Whether upstream stores it as an unbounded decimal and not as `int64Amount`: their overflows differ.
    unbounded: bool,
}

struct Parts<'a> {
    positive: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let bytes = text.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let (positive, mut at) = match bytes.first() {
        Some(b'-') => (false, 1),
        Some(b'+') => (true, 1),
        _ => (true, 0),
    };
    at += bytes[at..].iter().take_while(|b| **b == b'0').count();
    let end = digits(at);
    let whole = &text[at..end];
    at = end;
    let mut fraction = "";
    if bytes.get(at) == Some(&b'.') {
        let end = digits(at + 1);
        fraction = &text[at + 1..end];
        at = end;
    }
    let start = at;
    at += bytes[at..].iter().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    if matches!(bytes.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    if digits(at) != bytes.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { positive, whole, fraction, suffix: &text[start..] })
}

/// The exponent (of 2 for the binary family, else of 10) and the family.
fn interpret(suffix: &str) -> Result<(i32, Format), QuantityError> {
    Ok(match suffix {
        "n" => (-9, Format::DecimalSi),
        "u" => (-6, Format::DecimalSi),
        "m" => (-3, Format::DecimalSi),
        "" => (0, Format::DecimalSi),
        "k" => (3, Format::DecimalSi),
        "M" => (6, Format::DecimalSi),
        "G" => (9, Format::DecimalSi),
        "T" => (12, Format::DecimalSi),
        "P" => (15, Format::DecimalSi),
        "E" => (18, Format::DecimalSi),
        "Ki" => (10, Format::BinarySi),
        "Mi" => (20, Format::BinarySi),
        "Gi" => (30, Format::BinarySi),
        "Ti" => (40, Format::BinarySi),
        "Pi" => (50, Format::BinarySi),
        "Ei" => (60, Format::BinarySi),
        other => {
            let number = other.strip_prefix(['e', 'E']).filter(|n| !n.is_empty()).ok_or(QuantityError::Suffix)?;
            let exponent: i64 = number.parse().map_err(|_| QuantityError::Suffix)?;
            let bound = i64::from(EXPONENT_MAX);
            if exponent > bound {
                return Err(QuantityError::Numeric);
            }
            (exponent.max(-bound) as i32, Format::DecimalExponent)
        }
    })
}

fn suffix(exponent: i32) -> &'static str {
    match exponent {
        -9 => "n",
        -6 => "u",
        -3 => "m",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        18 => "E",
        _ => "",
    }
}

fn pow10(n: u32) -> Option<i128> {
    10i128.checked_pow(n)
}

/// Divides rounding away from zero.
fn div_up(n: i128, by: i128) -> i128 {
    let quotient = n / by;
    if n % by == 0 { quotient } else { quotient + n.signum() }
}

impl Quantity {
    /// Parses a quantity as upstream does, odd forms included.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let parts = split(text)?;
        let (suffix_exponent, mut format) = interpret(parts.suffix)?;
        let fraction = parts.fraction.trim_end_matches('0');
        // Digits below nano only matter if any is not 0: the value is rounded up.
        let joined = format!("{}{fraction}", parts.whole);
        let significant = joined.trim_start_matches('0');
        let mut exponent = -(fraction.len() as i32);
        let (kept, sticky) = if significant.len() > DIGITS_MAX {
            let cut = significant.len() - DIGITS_MAX;
            if cut > fraction.len() {
                return Err(QuantityError::Numeric);
            }
            exponent += cut as i32;
            let (kept, rest) = significant.split_at(DIGITS_MAX);
            (kept, rest.bytes().any(|b| b != b'0'))
        } else {
            (significant, false)
        };
        let mut mantissa: i128 = if kept.is_empty() { 0 } else { kept.parse().map_err(|_| QuantityError::Numeric)? };
        let binary = format == Format::BinarySi;
        if binary {
            match mantissa.checked_mul(1i128 << suffix_exponent) {
                Some(product) => mantissa = product,
                None => (mantissa, exponent) = (i128::from(i64::MAX), 0),
            }
        } else {
            exponent += suffix_exponent;
        }
        if mantissa == 0 {
            exponent = 0;
        }
        if exponent < NANO {
            let by = pow10((NANO - exponent).unsigned_abs());
            mantissa = by.map_or(1, |by| div_up(mantissa, by));
            exponent = NANO;
        }
        if sticky && exponent == NANO {
            mantissa += 1;
        }
        let unbounded = text != "0" && !is_fast(&parts, suffix_exponent, binary);
        let mut quantity = Self { mantissa, exponent, format, text: None, unbounded };
        if binary {
            if quantity.cmp_int(i64::MAX) == Ordering::Greater {
                (quantity.mantissa, quantity.exponent) = (i128::from(i64::MAX), 0);
            }
            if mantissa != 0 && quantity.cmp_int(1) == Ordering::Less {
                format = Format::DecimalSi;
            }
        }
        if !parts.positive {
            quantity.mantissa = -quantity.mantissa;
        }
        quantity.format = format;
        if text == "0" || kept_as_written(&parts, suffix_exponent, binary) {
            quantity.text = Some(text.into());
        }
        Ok(quantity)
    }

    /// A whole number.
    #[must_use]
    pub fn from_int(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: 0, format, text: None, unbounded: false }
    }

    /// A number of thousandths.
    #[must_use]
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: -3, format, text: None, unbounded: false }
    }

    /// Zero.
    #[must_use]
    pub fn zero() -> Self {
        Self::from_int(0, Format::DecimalSi)
    }

    /// The suffix family.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the value is 0.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    #[must_use]
    pub fn sign(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The value in units of `10^scale`, rounded away from zero and clamped to `i128`, and whether that was exact.
    fn scaled(&self, scale: i32) -> (i128, bool) {
        let shift = self.exponent - scale;
        if shift >= 0 {
            let product = pow10(shift.unsigned_abs()).and_then(|by| self.mantissa.checked_mul(by));
            let bound = if self.mantissa < 0 { i128::MIN } else { i128::MAX };
            (if self.mantissa == 0 { 0 } else { product.unwrap_or(bound) }, true)
        } else {
            match pow10(shift.unsigned_abs()) {
                Some(by) => (div_up(self.mantissa, by), self.mantissa % by == 0),
                None => (self.mantissa.signum(), self.mantissa == 0),
            }
        }
    }

    /// The value rounded up (away from zero) to a whole number, clamped to `i64`.
    #[must_use]
    pub fn value(&self) -> i64 {
        clamp(self.scaled(0).0)
    }

    /// The value in thousandths, rounded up and clamped to `i64`.
    #[must_use]
    pub fn milli(&self) -> i64 {
        clamp(self.scaled(-3).0)
    }

    /// Whether the value is a whole number.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.scaled(0).1
    }

    /// Whether upstream considers it a whole number: by its thousandths in 64 bits, which overflow to 0 or wrap around.
    #[must_use]
    pub fn is_whole_at_milli(&self) -> bool {
        let shift = self.exponent + 3;
        if shift <= 0 {
            return self.milli() % 1000 == 0;
        }
        let size = self.mantissa.unsigned_abs();
        // Steps of ten yield 0 on overflow; other products wrap around.
        if !self.unbounded && !matches!(shift, 1 | 2 | 3 | 6 | 9) {
            let product = pow10(shift.unsigned_abs()).and_then(|power| self.mantissa.checked_mul(power));
            return product.is_none_or(|product| i64::try_from(product).is_err() || product % 1000 == 0);
        }
        // A wrapped product keeps its low 64 bits, which are 0 in ten to the 64th.
        let power = (0..shift.min(64)).fold(1u64, |power, _| power.wrapping_mul(10));
        (size as u64).wrapping_mul(power).cast_signed() % 1000 == 0
    }

    /// Compares with a whole number.
    #[must_use]
    pub fn cmp_int(&self, value: i64) -> Ordering {
        self.cmp(&Self::from_int(value, Format::DecimalSi))
    }

    /// The sum, clamped; a zero adopts the other's format.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        self.combine(other, i128::saturating_add)
    }

    /// The difference, clamped; a zero adopts the other's format.
    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        self.combine(other, i128::saturating_sub)
    }

    fn combine(&self, other: &Self, apply: fn(i128, i128) -> i128) -> Self {
        let exponent = match (self.is_zero(), other.is_zero()) {
            (true, _) => other.exponent,
            (_, true) => self.exponent,
            _ => self.exponent.min(other.exponent),
        };
        let mantissa = apply(self.scaled(exponent).0, other.scaled(exponent).0);
        let format = if self.is_zero() { other.format } else { self.format };
        Self { mantissa, exponent, format, text: None, unbounded: self.unbounded || other.unbounded }
    }

    fn decimal(&self, format: Format, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.mantissa, self.exponent);
        while mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        let mut zeros = exponent.rem_euclid(3);
        exponent -= zeros;
        if format == Format::DecimalSi && exponent > 18 {
            zeros += exponent - 18;
            exponent = 18;
        }
        write!(f, "{mantissa}{:0<width$}", "", width = zeros.unsigned_abs() as usize)?;
        match format {
            Format::DecimalExponent if exponent != 0 => write!(f, "e{exponent}"),
            Format::DecimalExponent => Ok(()),
            _ => f.write_str(suffix(exponent)),
        }
    }
}

/// Whether upstream's fast parser accepts the text, with a value of 64 bits.
fn is_fast(parts: &Parts<'_>, suffix_exponent: i32, binary: bool) -> bool {
    let whole = if parts.whole.is_empty() { "0" } else { parts.whole };
    if binary {
        let precision = 15 - whole.len() as i32 - (suffix_exponent as f32 * 3.0 / 10.0) as i32 - 1;
        let product = || whole.parse::<i64>().ok()?.checked_mul(1 << suffix_exponent);
        return parts.fraction.is_empty() && precision >= 0 && product().is_some();
    }
    let digits = whole.len() + parts.fraction.len();
    digits <= FAST_DIGITS && suffix_exponent - parts.fraction.len() as i32 >= NANO
}

/// Whether upstream's fast parser considers the text canonical and keeps it.
fn kept_as_written(parts: &Parts<'_>, suffix_exponent: i32, binary: bool) -> bool {
    if !is_fast(parts, suffix_exponent, binary) {
        return false;
    }
    let whole = if parts.whole.is_empty() { "0" } else { parts.whole };
    if binary {
        return whole.parse::<i64>().is_ok_and(|value| value & 7 != 0);
    }
    let digits = format!("{whole}{}", parts.fraction);
    let scale = suffix_exponent - parts.fraction.len() as i32;
    scale % 3 == 0 && !digits.ends_with("000") && !digits.starts_with('0')
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    /// The canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        if self.format != Format::BinarySi {
            return self.decimal(self.format, f);
        }
        let (mut whole, exact) = self.scaled(0);
        if !exact || whole.unsigned_abs() < 1024 {
            return self.decimal(Format::DecimalSi, f);
        }
        let mut step = 0;
        while whole % 1024 == 0 && step < 6 {
            whole /= 1024;
            step += 1;
        }
        write!(f, "{whole}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step])
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.sign() != other.sign() || self.is_zero() {
            return self.sign().cmp(&other.sign());
        }
        // Compare at the finer exponent; a coarser value that doesn't fit there is larger in magnitude.
        let fits = |q: &Self, exponent: i32| {
            pow10((q.exponent - exponent).unsigned_abs()).and_then(|by| q.mantissa.checked_mul(by))
        };
        let exponent = self.exponent.min(other.exponent);
        let by_size = |size: Ordering| if self.sign() < 0 { size.reverse() } else { size };
        match (fits(self, exponent), fits(other, exponent)) {
            (Some(a), Some(b)) => a.cmp(&b),
            (None, _) => by_size(Ordering::Greater),
            (_, None) => by_size(Ordering::Less),
        }
    }
}

#[cfg(test)]
mod tests;
