//! Writes a result as WAVE, with a bound on its length.

use std::borrow::Cow;
use std::fmt;

use wasm_wave::wasm::{WasmType, WasmTypeKind, WasmValue};
use wasm_wave::writer::Writer;
use wasmtime::component::Val;

/// Writes a call's result; `()` without one. Returns `None` if the text would exceed `max` bytes.
pub(crate) fn result(value: Option<&Val>, max: usize) -> Option<Vec<u8>> {
    let mut out = Bounded { text: String::new(), max };
    match value {
        Some(value) => Writer::new(&mut out).write_value(&WaveValue::Value(value)).ok()?,
        None => fmt::Write::write_str(&mut out, "()").ok()?,
    }
    Some(out.text.into_bytes())
}

/// A buffer that returns an error beyond its maximum.
struct Bounded {
    text: String,
    max: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > self.max {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// A read-only value for `wasm-wave`'s writer.
#[derive(Clone, Debug)]
enum WaveValue<'a> {
    Value(&'a Val),
    /// An entry of a map: WAVE has no form for maps but a list of pairs.
    Pair(&'a (Val, Val)),
}

/// The writer uses values alone.
#[derive(Clone)]
struct NoType;

impl WasmType for NoType {
    fn kind(&self) -> WasmTypeKind {
        WasmTypeKind::Unsupported
    }
}

/// Extracts a variant that [`WasmValue::kind`] has reported.
macro_rules! extract {
    ($value:expr, $variant:path) => {
        match $value {
            WaveValue::Value($variant(value)) => value,
            other => unreachable!("{other:?} was requested as {}", stringify!($variant)),
        }
    };
}

impl<'v> WasmValue for WaveValue<'v> {
    type Type = NoType;

    fn kind(&self) -> WasmTypeKind {
        let WaveValue::Value(value) = self else { return WasmTypeKind::Tuple };
        match value {
            Val::Bool(_) => WasmTypeKind::Bool,
            Val::S8(_) => WasmTypeKind::S8,
            Val::U8(_) => WasmTypeKind::U8,
            Val::S16(_) => WasmTypeKind::S16,
            Val::U16(_) => WasmTypeKind::U16,
            Val::S32(_) => WasmTypeKind::S32,
            Val::U32(_) => WasmTypeKind::U32,
            Val::S64(_) => WasmTypeKind::S64,
            Val::U64(_) => WasmTypeKind::U64,
            Val::Float32(_) => WasmTypeKind::F32,
            Val::Float64(_) => WasmTypeKind::F64,
            Val::Char(_) => WasmTypeKind::Char,
            Val::List(_) | Val::FixedLengthList(_) | Val::Map(_) => WasmTypeKind::List,
            Val::Record(_) => WasmTypeKind::Record,
            Val::Tuple(_) => WasmTypeKind::Tuple,
            Val::Variant(..) => WasmTypeKind::Variant,
            Val::Enum(_) => WasmTypeKind::Enum,
            Val::Option(_) => WasmTypeKind::Option,
            Val::Result(_) => WasmTypeKind::Result,
            Val::Flags(_) => WasmTypeKind::Flags,
            // The others are of types that no plugin has; resources have become strings.
            Val::String(_) | Val::Resource(_) | Val::Future(_) | Val::Stream(_) | Val::ErrorContext(_) => {
                WasmTypeKind::String
            }
        }
    }

    fn unwrap_bool(&self) -> bool {
        *extract!(self, Val::Bool)
    }

    fn unwrap_s8(&self) -> i8 {
        *extract!(self, Val::S8)
    }

    fn unwrap_s16(&self) -> i16 {
        *extract!(self, Val::S16)
    }

    fn unwrap_s32(&self) -> i32 {
        *extract!(self, Val::S32)
    }

    fn unwrap_s64(&self) -> i64 {
        *extract!(self, Val::S64)
    }

    fn unwrap_u8(&self) -> u8 {
        *extract!(self, Val::U8)
    }

    fn unwrap_u16(&self) -> u16 {
        *extract!(self, Val::U16)
    }

    fn unwrap_u32(&self) -> u32 {
        *extract!(self, Val::U32)
    }

    fn unwrap_u64(&self) -> u64 {
        *extract!(self, Val::U64)
    }

    fn unwrap_f32(&self) -> f32 {
        *extract!(self, Val::Float32)
    }

    fn unwrap_f64(&self) -> f64 {
        *extract!(self, Val::Float64)
    }

    fn unwrap_char(&self) -> char {
        *extract!(self, Val::Char)
    }

    fn unwrap_string(&self) -> Cow<'_, str> {
        match self {
            WaveValue::Value(Val::String(text)) => Cow::Borrowed(text),
            _ => Cow::Borrowed(""),
        }
    }

    fn unwrap_list(&self) -> Box<dyn Iterator<Item = Cow<'_, Self>> + '_> {
        match self {
            WaveValue::Value(Val::FixedLengthList(values)) => Box::new(values.iter().map(wave_value)),
            WaveValue::Value(Val::Map(pairs)) => Box::new(pairs.iter().map(|pair| Cow::Owned(WaveValue::Pair(pair)))),
            list => Box::new(extract!(list, Val::List).iter().map(wave_value)),
        }
    }

    fn unwrap_record(&self) -> Box<dyn Iterator<Item = (Cow<'_, str>, Cow<'_, Self>)> + '_> {
        let fields = extract!(self, Val::Record).iter();
        Box::new(fields.map(|(name, value)| (Cow::Borrowed(name.as_str()), wave_value(value))))
    }

    fn unwrap_tuple(&self) -> Box<dyn Iterator<Item = Cow<'_, Self>> + '_> {
        match self {
            WaveValue::Pair((key, value)) => Box::new([key, value].into_iter().map(wave_value)),
            tuple => Box::new(extract!(tuple, Val::Tuple).iter().map(wave_value)),
        }
    }

    fn unwrap_variant(&self) -> (Cow<'_, str>, Option<Cow<'_, Self>>) {
        match self {
            WaveValue::Value(Val::Variant(name, payload)) => (Cow::Borrowed(name), payload.as_deref().map(wave_value)),
            other => unreachable!("{other:?} was requested as a variant"),
        }
    }

    fn unwrap_enum(&self) -> Cow<'_, str> {
        Cow::Borrowed(extract!(self, Val::Enum))
    }

    fn unwrap_option(&self) -> Option<Cow<'_, Self>> {
        extract!(self, Val::Option).as_deref().map(wave_value)
    }

    fn unwrap_result(&self) -> Result<Option<Cow<'_, Self>>, Option<Cow<'_, Self>>> {
        match extract!(self, Val::Result) {
            Ok(value) => Ok(value.as_deref().map(wave_value)),
            Err(value) => Err(value.as_deref().map(wave_value)),
        }
    }

    fn unwrap_flags(&self) -> Box<dyn Iterator<Item = Cow<'_, str>> + '_> {
        Box::new(extract!(self, Val::Flags).iter().map(|name| Cow::Borrowed(name.as_str())))
    }
}

fn wave_value<'a, 'v>(value: &'v Val) -> Cow<'a, WaveValue<'v>> {
    Cow::Owned(WaveValue::Value(value))
}
