//! The shop's orders: a small key-value store over files of a claim's volume. Requests have separate, concurrent instances, so
//! all state is in the files. An order is acknowledged when it is on disk under its name: written beside it, flushed, renamed.
//! After a crash of the process or the machine, a name refers to a complete order, the old one or the new one.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::process::now_ms;
use guest::wasip2::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorType, ErrorCode, OpenFlags, PathFlags,
};
use guest::wasip2::random::random::get_random_u64;
use guest::{String, ToOwned, files, format, serve};
use serde_json::{Value, json};

/// The mount path of the volume.
const VOLUME: &str = "/data";
const ORDER_BYTES_MAX: usize = 16 * 1024;
const NAME_BYTES_MAX: usize = 64;
/// Folders that orders are spread over, which bounds their size.
const FOLDERS: u32 = 64;
/// The prefix of an order that is being written.
const NEW: &str = ".new-";
/// After this time an unfinished file is abandoned: its writer has ended.
const NEW_FOR_SECONDS: u64 = 600;

serve! {
    "GET" "/" => home,
    "GET" "/report" => report,
    "GET" "/orders/*" => get,
    "PUT" "/orders/*" => put,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("orders: PUT and GET /orders/NAME, GET /report\n"))
}

fn get(request: &Request) -> Answer {
    let name = name(&request.rest)?;
    match files::read(&format!("{VOLUME}/{}/{name}", folder(name))) {
        Ok(order) => Ok(Response::json(String::from_utf8_lossy(order.trim_ascii_end()))),
        Err(ErrorCode::NoEntry) => Err(Response::error(404, &format!("no order {name}"))),
        Err(problem) => Err(failed(problem)),
    }
}

fn put(request: &Request) -> Answer {
    let name = name(&request.rest)?;
    let order: Value = serde_json::from_slice(&request.bytes(ORDER_BYTES_MAX)?)
        .map_err(|problem| Response::error(400, &format!("the body is not JSON: {problem}")))?;
    if !order.is_object() {
        return Err(Response::error(422, "an order is a JSON object"));
    }
    keep(name, format!("{order}\n").as_bytes()).map_err(failed)?;
    Ok(Response::json(order))
}

/// Writes an order under its name: it is complete and durable when this returns.
fn keep(name: &str, order: &[u8]) -> Result<(), ErrorCode> {
    let volume = files::open(VOLUME, OpenFlags::DIRECTORY, DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY)?;
    let of = folder(name);
    match volume.create_directory_at(&of) {
        Ok(()) => volume.sync()?,
        Err(ErrorCode::Exist) => {}
        Err(problem) => return Err(problem),
    }
    let flags = DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY;
    let folder = volume.open_at(PathFlags::empty(), &of, OpenFlags::DIRECTORY, flags)?;
    let new = format!("{NEW}{:016x}", get_random_u64());
    let kept = write(&folder, &new, order).and_then(|()| folder.rename_at(&new, &folder, name));
    if kept.is_err() {
        let _ = folder.unlink_file_at(&new); // the report removes leftovers
    }
    kept?;
    folder.sync()
}

fn write(folder: &Descriptor, name: &str, order: &[u8]) -> Result<(), ErrorCode> {
    let open = OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
    let file = folder.open_at(PathFlags::empty(), name, open, DescriptorFlags::WRITE)?;
    let mut written = 0;
    while written < order.len() {
        written += file.write(&order[written..], written as u64)? as usize;
    }
    file.sync()
}

/// The number of orders, the number of paid ones, and their sum.
fn report(_: &Request) -> Answer {
    let (mut orders, mut paid, mut cents) = (0u64, 0u64, 0u64);
    let now = now_ms() / 1000;
    for number in 0..FOLDERS {
        let path = format!("{VOLUME}/{number:02x}");
        let flags = DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY;
        let folder = match files::open(&path, OpenFlags::DIRECTORY, flags) {
            Ok(folder) => folder,
            Err(ErrorCode::NoEntry) => continue,
            Err(problem) => return Err(failed(problem)),
        };
        let entries = folder.read_directory().map_err(failed)?;
        while let Some(entry) = entries.read_directory_entry().map_err(failed)? {
            if entry.type_ != DescriptorType::RegularFile {
                continue;
            }
            if entry.name.starts_with(NEW) {
                remove_old(&folder, &entry.name, now);
                continue;
            }
            let order = match folder.open_at(PathFlags::empty(), &entry.name, OpenFlags::empty(), DescriptorFlags::READ) {
                Ok(file) => files::read_open(&file).map_err(failed)?,
                Err(problem) => return Err(failed(problem)),
            };
            let order: Value = serde_json::from_slice(&order)
                .map_err(|problem| Response::error(500, &format!("order {}: {problem}", entry.name)))?;
            orders += 1;
            if order["status"] == "paid" {
                paid += 1;
                cents += (order["total"].as_f64().unwrap_or_default() * 100.0 + 0.5) as u64;
            }
        }
    }
    Ok(Response::json(json!({"orders": orders, "paid": paid, "total": cents as f64 / 100.0})))
}

fn remove_old(folder: &Descriptor, name: &str, now: u64) {
    let changed = folder.stat_at(PathFlags::empty(), name).ok().and_then(|stat| stat.data_modification_timestamp);
    if changed.is_some_and(|changed| changed.seconds.saturating_add(NEW_FOR_SECONDS) < now) {
        let _ = folder.unlink_file_at(name); // the next report retries
    }
}

/// The folder of an order: FNV-1a of its name.
fn folder(name: &str) -> String {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{:02x}", hash % FOLDERS)
}

/// A name that is a plain file name.
fn name(name: &str) -> Result<&str, Response> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        let message = format!("a name has 1 to {NAME_BYTES_MAX} letters, digits and dashes");
        return Err(Response::error(422, &message));
    }
    Ok(name)
}

fn failed(problem: ErrorCode) -> Response {
    let status = match problem {
        ErrorCode::InsufficientSpace | ErrorCode::Quota => 507,
        _ => 500,
    };
    Response::error(status, &format!("the volume: {}", problem.name().to_owned()))
}
