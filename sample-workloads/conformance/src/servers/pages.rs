//! `agnhost test-webserver`, a server of files, and the server of upstream's image `nautilus`.
//!
//! A guest has no root file system: `test-webserver` has the files of the container's volumes, the file that probes request, and a
//! first page.
use super::not_listening;
use crate::flags::Flags;
use crate::http::Response;
use crate::web::{self, Call};
use guest::wasip2::filesystem::types::{DescriptorFlags, ErrorCode, OpenFlags};
use guest::{String, Vec, format};
use unix::{Context, Ended, files, words};

const HEADERS: [(&str, &str); 5] = [
    ("Cache-Control", "private"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Credentials", "true"),
    ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "DNT,X-Mx-ReqToken,Keep-Alive,User-Agent,X-Requested-With,Cache-Control,Content-Type",
    ),
];
const READ_BYTES: u64 = 64 * 1024;
/// Maximum bytes of a file in a response.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

pub fn test_webserver(context: &mut Context, args: &[String]) -> Ended {
    super::serve(context, "test-webserver", async || {
        let flags = Flags::read(args, &["port"], &[])?;
        let port = web::port(flags.get("port").unwrap_or("80"))?;
        let respond = web::handler(|call| core::future::ready(with_headers(file(&call))));
        web::listen(port, respond).map_err(|code| not_listening("tcp", port, code))
    })
}

/// The image `nautilus` is a web server with one picture and its name.
pub fn nautilus(context: &mut Context, _: &[String]) -> Ended {
    const PORT: u16 = 80;
    let respond = web::handler(|call| {
        let response = match call.path.as_str() {
            "/data.json" => {
                Response::ok("{\n  \"image\": \"nautilus.jpg\"\n}\n").with("Content-Type", "application/json")
            }
            _ => Response::error(404, "404 page not found"),
        };
        core::future::ready(with_headers(response))
    });
    super::serve(context, "nautilus", async || {
        web::listen(PORT, respond).map_err(|code| not_listening("tcp", PORT, code))
    })
}

fn with_headers(response: Response) -> Response {
    HEADERS.iter().fold(response, |response, (name, value)| response.with(name, value))
}

fn file(call: &Call) -> Response {
    let path = files::absolute("/", &call.path);
    match read(&path) {
        Ok(bytes) => Response::ok(bytes),
        Err(_) if path == "/localhost.crt" => Response::ok("no certificate: this port serves no TLS\n"),
        Err(_) if path == "/" => Response::ok("<pre>\n</pre>\n"),
        Err(ErrorCode::NoEntry | ErrorCode::NotDirectory | ErrorCode::IsDirectory) => {
            Response::error(404, "404 page not found")
        }
        Err(ErrorCode::Access | ErrorCode::NotPermitted) => Response::error(403, "403 Forbidden"),
        Err(error) => Response::error(500, &format!("500 Internal Server Error: {}", words(error))),
    }
}

fn read(path: &str) -> Result<Vec<u8>, ErrorCode> {
    let file = files::open(path, OpenFlags::empty(), DescriptorFlags::READ)?;
    let mut all: Vec<u8> = Vec::new();
    while all.len() <= FILE_BYTES_MAX {
        let (mut bytes, at_end) = file.read(READ_BYTES, all.len() as u64)?;
        all.append(&mut bytes);
        if at_end {
            return Ok(all);
        }
    }
    Err(ErrorCode::FileTooLarge)
}
