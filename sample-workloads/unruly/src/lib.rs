//! A misbehaving server: it sets reserved headers and breaks off bodies. It also prints its files and calls given addresses,
//! so that a test can inspect a pod from the inside.
#![no_std]
use guest::http::{Answer, Broken, Request, Response};
use guest::process::sleep_ms;
use guest::wasip2::filesystem::types::{DescriptorFlags, OpenFlags};
use guest::{String, ToOwned, Vec, fetch, files, format, serve, vec};

const MIB: usize = 1024 * 1024;
/// Far above the limits of the tests, and too little to fill a disk.
const FILE_MIB_MAX: u64 = 64;
/// Longer than any timeout of a pod.
const FOR_EVER_MS: u64 = 2 * 24 * 60 * 60 * 1000;

serve! {
    "GET" "/" => home,
    "GET" "/headers" => headers,
    "GET" "/cut" => cut,
    "GET" "/file" => file,
    "GET" "/fill" => fill,
    "GET" "/call" => call,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text(
        "unruly: GET /headers?set=NAME:VALUE, /cut?how=trap|memory|silence|return, /file?path=P, /fill?path=P&mb=N, /call?to=HOST:PORT\n",
    ))
}

/// `?set=NAME:VALUE,NAME:VALUE`: sets any headers, `content-length` included.
fn headers(request: &Request) -> Answer {
    let all = request.query("set").unwrap_or_default().split(',').filter_map(|pair| pair.split_once(':'));
    Ok(all.fold(Response::text("seven.\n"), |response, (name, value)| response.header(name, value)))
}

/// One line without an end: each way in which a guest can abandon its body.
fn cut(request: &Request) -> Answer {
    let how = request.query("how").unwrap_or_default().to_owned();
    Ok(Response::stream("text/plain; charset=utf-8", move |out| {
        out.send(b"begun\n")?;
        match how.as_str() {
            "trap" => core::arch::wasm32::unreachable(),
            "memory" => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                loop {
                    eaten.push(core::hint::black_box(vec![0xEA; MIB]));
                }
            }
            "silence" => sleep_ms(FOR_EVER_MS),
            _ => {}
        }
        Err(Broken)
    }))
}

/// A file of a volume, read at each request.
fn file(request: &Request) -> Answer {
    let path = request.query("path").unwrap_or_default();
    let content = files::read(path).map_err(|problem| Response::error(404, &format!("{path}: {problem:?}")))?;
    Ok(Response::text(String::from_utf8_lossy(&content)))
}

/// `?path=P&mb=N`: writes a file, which may exceed its volume's limit.
fn fill(request: &Request) -> Answer {
    let path = request.query("path").unwrap_or_default();
    let mb = request.number("mb", FILE_MIB_MAX)?;
    let bad = |problem| Response::error(507, &format!("{path}: {problem:?}"));
    let file = files::open(path, OpenFlags::CREATE, DescriptorFlags::WRITE).map_err(bad)?;
    let (piece, end) = (vec![0xEA; MIB], mb * MIB as u64);
    let mut written = 0;
    while written < end {
        written += file.write(&piece, written).map_err(bad)?;
    }
    Ok(Response::text(format!("{path} has {mb} MiB\n")))
}

/// Another server's response to `GET /`, or the error.
fn call(request: &Request) -> Answer {
    let to = request.query("to").unwrap_or_default();
    let reply = fetch::get(to, &[""]).map_err(|problem| Response::error(502, &problem))?;
    Ok(Response::text(String::from_utf8_lossy(&reply.body)).status(reply.status))
}
