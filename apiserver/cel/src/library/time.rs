//! Accessors of timestamps and durations, such as `getHours`, in UTC or a named time zone.

use jiff::civil::DateTime;

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Res, Value, in_zone};

pub(super) fn find(function: &str, id: &str) -> Option<Implementation> {
    if id.starts_with("duration_to_") && function.starts_with("get") {
        return Some(|call| {
            let Value::Duration(nanoseconds) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
            let unit = match call.function {
                "getHours" => 3_600_000_000_000,
                "getMinutes" => 60_000_000_000,
                "getSeconds" => 1_000_000_000,
                _ => 1_000_000,
            };
            Ok(Value::Int(nanoseconds / unit))
        });
    }
    id.starts_with("timestamp_to_").then_some(part as Implementation).filter(|_| function.starts_with("get"))
}

fn part<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Value::Timestamp(time) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
    let zone = if call.args.len() > 1 { Some(call.text(1)?) } else { None };
    let local: DateTime = in_zone(*time, zone)?;
    let part = match call.function {
        "getFullYear" => i64::from(local.year()),
        "getMonth" => i64::from(local.month()) - 1,
        "getDayOfYear" => i64::from(local.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(local.day()) - 1,
        "getDate" => i64::from(local.day()),
        "getDayOfWeek" => i64::from(local.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(local.hour()),
        "getMinutes" => i64::from(local.minute()),
        "getSeconds" => i64::from(local.second()),
        _ => i64::from(local.millisecond()),
    };
    Ok(Value::Int(part))
}
