//! Writes a result as JSON, with a bound on its length.

use std::io::{self, Write};

use base64::engine::general_purpose::STANDARD;
use wasmtime::component::Val;

use super::super::types::{Description, Shape, TypeId};
use super::SAFE_INTEGER_MAX;

/// Writes a call's result; `null` without one. Returns `None` if the text would exceed `max` bytes.
pub(crate) fn result(
    description: &Description,
    ty: Option<TypeId>,
    value: Option<&Val>,
    max: usize,
) -> Option<Vec<u8>> {
    let mut out = Bounded { text: Vec::new(), max };
    match (ty, value) {
        (Some(ty), Some(value)) => write(description, ty, value, &mut out).ok()?,
        _ => out.write_all(b"null").ok()?,
    }
    Some(out.text)
}

/// A buffer that returns an error beyond its maximum.
struct Bounded {
    text: Vec<u8>,
    max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn text(out: &mut Bounded, text: &str) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::from)
}

fn float(
    out: &mut Bounded,
    value: f64,
    shortest: impl FnOnce(&mut Bounded) -> serde_json::Result<()>,
) -> io::Result<()> {
    match value {
        value if value.is_nan() => out.write_all(b"\"NaN\""),
        f64::INFINITY => out.write_all(b"\"inf\""),
        f64::NEG_INFINITY => out.write_all(b"\"-inf\""),
        _ => shortest(out).map_err(io::Error::from),
    }
}

fn write(description: &Description, ty: TypeId, value: &Val, out: &mut Bounded) -> io::Result<()> {
    let shape = description.shape(ty);
    match (shape, value) {
        (_, Val::Bool(value)) => write!(out, "{value}"),
        (_, Val::S8(value)) => write!(out, "{value}"),
        (_, Val::U8(value)) => write!(out, "{value}"),
        (_, Val::S16(value)) => write!(out, "{value}"),
        (_, Val::U16(value)) => write!(out, "{value}"),
        (_, Val::S32(value)) => write!(out, "{value}"),
        (_, Val::U32(value)) => write!(out, "{value}"),
        (_, Val::S64(value)) if value.unsigned_abs() > SAFE_INTEGER_MAX => write!(out, "\"{value}\""),
        (_, Val::S64(value)) => write!(out, "{value}"),
        (_, Val::U64(value)) if *value > SAFE_INTEGER_MAX => write!(out, "\"{value}\""),
        (_, Val::U64(value)) => write!(out, "{value}"),
        (_, Val::Float32(value)) => float(out, (*value).into(), |out| serde_json::to_writer(out, value)),
        (_, Val::Float64(value)) => float(out, *value, |out| serde_json::to_writer(out, value)),
        (_, Val::Char(value)) => text(out, value.encode_utf8(&mut [0; 4])),
        (_, Val::String(value)) | (_, Val::Enum(value)) => text(out, value),
        (Shape::List(of), Val::List(values)) if *description.shape(*of) == Shape::U8 => {
            let byte = |value: &Val| if let Val::U8(byte) = value { *byte } else { 0 };
            let bytes: Vec<u8> = values.iter().map(byte).collect();
            write!(out, "\"{}\"", base64::display::Base64Display::new(&bytes, &STANDARD))
        }
        (Shape::List(of), Val::List(values)) => {
            sequence(out, values.iter(), |out, value| write(description, *of, value, out))
        }
        (Shape::Map(key, of), Val::Map(pairs)) if *description.shape(*key) == Shape::String => {
            out.write_all(b"{")?;
            for (at, (key, value)) in pairs.iter().enumerate() {
                let Val::String(key) = key else { return Err(io::ErrorKind::InvalidData.into()) };
                member(out, at, key)?;
                write(description, *of, value, out)?;
            }
            out.write_all(b"}")
        }
        (Shape::Map(key, of), Val::Map(pairs)) => sequence(out, pairs.iter(), |out, (first, second)| {
            let both = [(key, first), (of, second)];
            sequence(out, both.into_iter(), |out, (ty, value)| write(description, *ty, value, out))
        }),
        (Shape::Tuple(of), Val::Tuple(values)) => {
            sequence(out, of.iter().zip(values), |out, (ty, value)| write(description, *ty, value, out))
        }
        (Shape::Flags(_), Val::Flags(names)) => sequence(out, names.iter(), |out, name| text(out, name)),
        (Shape::Record(_, types), Val::Record(fields)) => {
            out.write_all(b"{")?;
            for (at, ((name, value), ty)) in fields.iter().zip(types).enumerate() {
                member(out, at, name)?;
                write(description, *ty, value, out)?;
            }
            out.write_all(b"}")
        }
        (Shape::Variant(labels, types), Val::Variant(name, payload)) => {
            let ty = labels.find(name).and_then(|at| types[at]);
            only(description, name, ty, payload.as_deref(), out)
        }
        (Shape::Result(ok, err), Val::Result(value)) => match value {
            Ok(value) => only(description, "ok", *ok, value.as_deref(), out),
            Err(value) => only(description, "err", *err, value.as_deref(), out),
        },
        (Shape::Option(_), Val::Option(None)) => out.write_all(b"null"),
        (Shape::Option(of), Val::Option(Some(value))) => match description.shape(*of) {
            Shape::Option(_) => only(description, "some", Some(*of), Some(value), out),
            _ => write(description, *of, value, out),
        },
        // Unreachable: wasmtime creates the value by its function's type.
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn sequence<T>(
    out: &mut Bounded,
    values: impl Iterator<Item = T>,
    mut each: impl FnMut(&mut Bounded, T) -> io::Result<()>,
) -> io::Result<()> {
    out.write_all(b"[")?;
    for (at, value) in values.enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        each(out, value)?;
    }
    out.write_all(b"]")
}

fn member(out: &mut Bounded, at: usize, name: &str) -> io::Result<()> {
    if at > 0 {
        out.write_all(b",")?;
    }
    text(out, name)?;
    out.write_all(b":")
}

/// An object of one member; `null` for an empty payload.
fn only(
    description: &Description,
    name: &str,
    ty: Option<TypeId>,
    payload: Option<&Val>,
    out: &mut Bounded,
) -> io::Result<()> {
    out.write_all(b"{")?;
    member(out, 0, name)?;
    match (ty, payload) {
        (Some(ty), Some(payload)) => write(description, ty, payload, out)?,
        _ => out.write_all(b"null")?,
    }
    out.write_all(b"}")
}
