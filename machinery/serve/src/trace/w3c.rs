//! W3C Trace Context, level 1: `traceparent` and `tracestate` of a request, which any client may send.
//!
//! Input: headers; output: a context, or none for anything invalid. A `tracestate` counts only beside a valid
//! `traceparent`.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The header with trace, parent and sampling.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with the state of tracing systems.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a `traceparent` of version 00: `00-{32 digits}-{16 digits}-{2 digits}`.
const PARENT_BYTES: usize = 55;
/// Maximum bytes of `tracestate` over all its headers: the size that each system must at least pass on. A longer one is dropped.
const STATE_BYTES_MAX: usize = 512;

/// The caller's context; `None` without a valid `traceparent`.
#[must_use]
pub fn read(headers: &HeaderMap) -> Option<SpanContext> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let parent = all.next()?;
    if all.next().is_some() {
        return None;
    }
    let (trace, span, flags) = read_parent(parent.as_bytes())?;
    Some(SpanContext::new(trace, span, flags, true, read_state(headers)))
}

/// Replaces both headers with those of `context`. An invalid context leaves none.
pub fn write(headers: &mut HeaderMap, context: &SpanContext) {
    headers.remove(TRACEPARENT);
    headers.remove(TRACESTATE);
    if !context.is_valid() {
        return;
    }
    let sampled = u8::from(context.is_sampled());
    let parent = format!("00-{}-{}-{sampled:02x}", context.trace_id(), context.span_id());
    if let Ok(parent) = HeaderValue::try_from(parent) {
        headers.insert(TRACEPARENT, parent);
    }
    let state = context.trace_state().header();
    if !state.is_empty()
        && let Ok(state) = HeaderValue::try_from(state)
    {
        headers.insert(TRACESTATE, state);
    }
}

fn read_parent(text: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    // A later version may append fields after another dash.
    let later = text.get(PARENT_BYTES).is_some_and(|next| *next == b'-') && !text.starts_with(b"00");
    if (text.len() != PARENT_BYTES && !later) || text.starts_with(b"ff") {
        return None;
    }
    let part = |from: usize, length: usize| {
        let part = text.get(from..from + length)?;
        let is_hex = part.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
        if is_hex { std::str::from_utf8(part).ok() } else { None }
    };
    let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
    let (_version, trace, span, flags) = (part(0, 2)?, part(3, 32)?, part(36, 16)?, part(53, 2)?);
    let trace = TraceId::from_hex(trace).ok().filter(|id| *id != TraceId::INVALID)?;
    let span = SpanId::from_hex(span).ok().filter(|id| *id != SpanId::INVALID)?;
    let sampled = u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8();
    dashes.then(|| (trace, span, TraceFlags::new(sampled)))
}

/// The state of all headers together; empty if it is too long or invalid.
fn read_state(headers: &HeaderMap) -> TraceState {
    let mut state = String::new();
    for value in headers.get_all(TRACESTATE) {
        let Ok(value) = value.to_str() else { return TraceState::NONE };
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(value);
        if state.len() > STATE_BYTES_MAX {
            return TraceState::NONE;
        }
    }
    state.parse().unwrap_or(TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pair = |(name, value): &(HeaderName, &str)| (name.clone(), HeaderValue::from_str(value).unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    fn of(parent: &str) -> Option<SpanContext> {
        read(&headers(&[(TRACEPARENT, parent)]))
    }

    #[test]
    fn a_valid_parent_is_continued() {
        let context = of(PARENT).unwrap();
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled() && context.is_remote());
        assert!(!of(&PARENT.replace("-01", "-00")).unwrap().is_sampled());
        // Unknown flags are dropped, and later versions may be longer.
        assert_eq!(of(&PARENT.replace("-01", "-ff")).unwrap().trace_flags().to_u8(), 1);
        assert!(of(&PARENT.replace("00-4", "01-4")).is_some());
        assert!(of(&format!("{}-more", PARENT.replace("00-4", "cc-4"))).is_some());
    }

    #[test]
    fn an_invalid_parent_is_none() {
        let longer = format!("{PARENT}-more");
        let huge = "0".repeat(60_000);
        for bad in [
            "",
            "00",
            &PARENT[..54],
            &longer,
            &huge,
            &PARENT.replace("00-4", "ff-4"),
            &PARENT.replace("00-4", "0G-4"),
            &PARENT.to_uppercase(),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace("00f067aa0ba902b7", "+0f067aa0ba902b7"),
            &PARENT.replace('-', "_"),
            &format!("{}more", PARENT.replace("00-4", "cc-4")),
        ] {
            assert!(of(bad).is_none(), "{bad}");
        }
        let bytes = HeaderValue::from_bytes(b"\xff\xfe").unwrap();
        assert!(read(&HeaderMap::from_iter([(TRACEPARENT, bytes)])).is_none());
        assert!(read(&headers(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)])).is_none());
    }

    #[test]
    fn the_state_goes_with_a_valid_parent_alone() {
        let state = |pairs: &[(HeaderName, &str)]| read(&headers(pairs)).map(|found| found.trace_state().header());
        let parent = (TRACEPARENT, PARENT);
        assert_eq!(state(&[parent.clone(), (TRACESTATE, "a=1, b=2")]).unwrap(), "a=1,b=2");
        assert_eq!(state(&[parent.clone(), (TRACESTATE, "a=1"), (TRACESTATE, "b=2")]).unwrap(), "a=1,b=2");
        assert_eq!(state(&[parent.clone(), (TRACESTATE, "nonsense")]).unwrap(), "");
        let long = format!("a={}", "1".repeat(200));
        let four: Vec<_> = (0..4).map(|_| (TRACESTATE, long.as_str())).collect();
        assert_eq!(state(&[&[parent], &four[..]].concat()).unwrap(), "");
        assert_eq!(state(&[(TRACESTATE, "a=1")]), None);
    }

    #[test]
    fn headers_are_replaced() {
        let mut of_request = headers(&[(TRACEPARENT, "garbage"), (TRACESTATE, "stale=1")]);
        write(&mut of_request, &of(PARENT).unwrap());
        assert_eq!(of_request, headers(&[(TRACEPARENT, PARENT)]));
        write(&mut of_request, &SpanContext::empty_context());
        assert!(of_request.is_empty());
    }

    #[test]
    fn parsed_headers_are_written_equally() {
        bolero::check!().with_type::<(Vec<(u8, u8)>, Vec<Vec<u8>>)>().for_each(|(edits, states)| {
            let mut parent = PARENT.as_bytes().to_vec();
            for (at, byte) in edits {
                let at = usize::from(*at) % parent.len();
                parent[at] = *byte;
            }
            let values = states.iter().map(|state| (TRACESTATE, state)).take(100).chain([(TRACEPARENT, &parent)]);
            let mut sent = HeaderMap::new();
            for (name, value) in values {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    sent.append(name, value);
                }
            }
            let found = read(&sent);
            write(&mut sent, found.as_ref().unwrap_or(&SpanContext::NONE));
            assert_eq!(read(&sent), found);
        });
    }
}
