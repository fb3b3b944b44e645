//! Visits the resources within a value: strings in text, resources for the guest.

use wasmtime::component::Val;

use super::error_path::{ErrorPath, PathSegment};
use super::maps;
use super::types::{Description, Function, Shape, TypeId};

/// Callback that replaces one resource of a value.
pub(crate) type Exchange<'a> = dyn FnMut(&Shape, &mut Val) -> Result<(), String> + 'a;

/// Replaces each resource of a call's arguments.
///
/// # Errors
/// The error of `exchange`, after the argument's name and the path within it.
pub(crate) fn in_arguments(
    description: &Description,
    function: &Function,
    arguments: &mut [Val],
    exchange: &mut Exchange<'_>,
) -> Result<(), String> {
    let place = ErrorPath::default();
    let names = function.parameters.names();
    for ((name, ty), value) in names.iter().zip(&function.parameter_types).zip(arguments) {
        in_value(description, *ty, value, exchange, &place).map_err(|why| {
            place.within(PathSegment::Argument(name.clone()));
            place.message(&why)
        })?;
    }
    Ok(())
}

/// Replaces each resource of a result.
///
/// # Errors
/// The error of `exchange`.
pub(crate) fn in_result(
    description: &Description,
    ty: TypeId,
    value: &mut Val,
    exchange: &mut Exchange<'_>,
) -> Result<(), String> {
    in_value(description, ty, value, exchange, &ErrorPath::default())
}

fn in_value(
    description: &Description,
    ty: TypeId,
    value: &mut Val,
    exchange: &mut Exchange<'_>,
    place: &ErrorPath,
) -> Result<(), String> {
    if !description.has_resources(ty) {
        return Ok(());
    }
    let mut of = |ty: TypeId, value: &mut Val, step: &dyn Fn() -> PathSegment| {
        in_value(description, ty, value, exchange, place).inspect_err(|_| place.within(step()))
    };
    let label = |name: &str| PathSegment::Label(name.to_owned());
    match (description.shape(ty), value) {
        (shape @ (Shape::Own(_) | Shape::Borrow(_)), value) => return exchange(shape, value),
        (Shape::List(ty), Val::List(values)) => {
            for (at, value) in values.iter_mut().enumerate() {
                of(*ty, value, &|| PathSegment::Index(at))?;
            }
        }
        (Shape::Map(_, ty), Val::Map(pairs)) => {
            for (key, value) in pairs {
                of(*ty, value, &|| PathSegment::Key(maps::display_key(key)))?;
            }
        }
        (Shape::Tuple(types), Val::Tuple(values)) => {
            for (at, (ty, value)) in types.iter().zip(values).enumerate() {
                of(*ty, value, &|| PathSegment::Index(at))?;
            }
        }
        (Shape::Record(_, types), Val::Record(fields)) => {
            for (ty, (name, value)) in types.iter().zip(fields) {
                of(*ty, value, &|| label(name))?;
            }
        }
        (Shape::Variant(labels, types), Val::Variant(name, Some(value))) => {
            if let Some(ty) = labels.find(name).and_then(|at| types[at]) {
                of(ty, value, &|| label(name))?;
            }
        }
        (Shape::Option(of), Val::Option(Some(value))) => return in_value(description, *of, value, exchange, place),
        (Shape::Result(Some(ty), _), Val::Result(Ok(Some(value)))) => of(*ty, value, &|| label("ok"))?,
        (Shape::Result(_, Some(ty)), Val::Result(Err(Some(value)))) => of(*ty, value, &|| label("err"))?,
        _ => {}
    }
    Ok(())
}
