//! WASI 0.3 guests written as text: components around a core wasm function, for behaviour that no toolchain produces.

/// The imported types of `wasi:http`, and the few functions that a response takes.
const HTTP: &str = r#"
  (import "wasi:http/types@0.3.0" (instance $types
    (export "fields" (type $fields (sub resource)))
    (export "request" (type $request (sub resource)))
    (export "response" (type $response (sub resource)))
    (type $dns-type (record (field "rcode" (option string)) (field "info-code" (option u16))))
    (export "DNS-error-payload" (type $dns (eq $dns-type)))
    (type $tls-type (record (field "alert-id" (option u8)) (field "alert-message" (option string))))
    (export "TLS-alert-received-payload" (type $tls (eq $tls-type)))
    (type $size-type (record (field "field-name" (option string)) (field "field-size" (option u32))))
    (export "field-size-payload" (type $size (eq $size-type)))
    (type $error-code-type (variant
      (case "DNS-timeout") (case "DNS-error" $dns) (case "destination-not-found") (case "destination-unavailable")
      (case "destination-IP-prohibited") (case "destination-IP-unroutable") (case "connection-refused")
      (case "connection-terminated") (case "connection-timeout") (case "connection-read-timeout")
      (case "connection-write-timeout") (case "connection-limit-reached") (case "TLS-protocol-error")
      (case "TLS-certificate-error") (case "TLS-alert-received" $tls) (case "HTTP-request-denied")
      (case "HTTP-request-length-required") (case "HTTP-request-body-size" (option u64))
      (case "HTTP-request-method-invalid") (case "HTTP-request-URI-invalid") (case "HTTP-request-URI-too-long")
      (case "HTTP-request-header-section-size" (option u32)) (case "HTTP-request-header-size" (option $size))
      (case "HTTP-request-trailer-section-size" (option u32)) (case "HTTP-request-trailer-size" $size)
      (case "HTTP-response-incomplete") (case "HTTP-response-header-section-size" (option u32))
      (case "HTTP-response-header-size" $size) (case "HTTP-response-body-size" (option u64))
      (case "HTTP-response-trailer-section-size" (option u32)) (case "HTTP-response-trailer-size" $size)
      (case "HTTP-response-transfer-coding" (option string)) (case "HTTP-response-content-coding" (option string))
      (case "HTTP-response-timeout") (case "HTTP-upgrade-failed") (case "HTTP-protocol-error") (case "loop-detected")
      (case "configuration-error") (case "internal-error" (option string))))
    (export "error-code" (type $error-code (eq $error-code-type)))
    (type $contents (stream u8))
    (type $trailers (future (result (option (own $fields)) (error $error-code))))
    (type $sent (future (result (error $error-code))))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[static]response.new" (func
      (param "headers" (own $fields)) (param "contents" (option $contents)) (param "trailers" $trailers)
      (result (tuple (own $response) $sent))))))
  (alias export $types "fields" (type $fields))
  (alias export $types "request" (type $request))
  (alias export $types "response" (type $response))
  (alias export $types "error-code" (type $error-code))
  (type $trailers (future (result (option (own $fields)) (error $error-code))))
"#;

/// Imports of either guest: streams and clocks.
const COMMON: &str = r#"
  (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
    (export "wait-for" (func async (param "how-long" u64)))))
  (type $bytes (stream u8))
  (type $signal (future u8))
  (core module $memory (memory (export "memory") 2) (data (i32.const 2048) "partial"))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (core func $stream-new (canon stream.new $bytes))
  (core func $stream-write (canon stream.write $bytes async (memory $mem)))
  (core func $stream-read (canon stream.read $bytes async (memory $mem)))
  (core func $cancel-write (canon stream.cancel-write $bytes))
  (core func $cancel-read (canon stream.cancel-read $bytes))
  (core func $yield (canon thread.yield))
  (core func $stream-close (canon stream.drop-writable $bytes))
  (core func $signal-new (canon future.new $signal))
  (core func $set-new (canon waitable-set.new))
  (core func $set-wait (canon waitable-set.wait (memory $mem)))
  (core func $join (canon waitable.join))
  (core func $wait-for (canon lower (func $clock "wait-for")))
  (core func $wait-for-async (canon lower (func $clock "wait-for") async))
"#;

/// The core imports of either guest.
const COMMON_CORE: &str = r#"
    (import "m" "memory" (memory 2))
    (import "c" "stream-new" (func $stream-new (result i64)))
    (import "c" "stream-write" (func $stream-write (param i32 i32 i32) (result i32)))
    (import "c" "stream-read" (func $stream-read (param i32 i32 i32) (result i32)))
    (import "c" "cancel-write" (func $cancel-write (param i32) (result i32)))
    (import "c" "cancel-read" (func $cancel-read (param i32) (result i32)))
    (import "c" "yield" (func $yield (result i32)))
    (import "c" "stream-close" (func $stream-close (param i32)))
    (import "c" "signal-new" (func $signal-new (result i64)))
    (import "c" "set-new" (func $set-new (result i32)))
    (import "c" "set-wait" (func $set-wait (param i32 i32) (result i32)))
    (import "c" "join" (func $join (param i32 i32)))
    (import "c" "wait-for" (func $wait-for (param i64)))
    (import "c" "wait-for-async" (func $wait-for-async (param i64) (result i32)))
"#;

const COMMON_FUNCTIONS: &str = r#"
    (func (export "callback") (param i32 i32 i32) (result i32) unreachable)
    (func $write-end (param $ends i64) (result i32) (i32.wrap_i64 (i64.shr_u (local.get $ends) (i64.const 32))))
    ;; Waits for a stream or future until its write has ended.
    (global $waited (mut i32) (i32.const 0))
    (func $wait (param $handle i32)
      (if (i32.eqz (global.get $waited)) (then (global.set $waited (call $set-new))))
      (call $join (local.get $handle) (global.get $waited))
      (drop (call $set-wait (global.get $waited) (i32.const 64)))
      (call $join (local.get $handle) (i32.const 0)))
    (func $put (param $stream i32) (param $bytes i32)
      (if (i32.eq (call $stream-write (local.get $stream) (i32.const 2048) (local.get $bytes)) (i32.const -1))
        (then (call $wait (local.get $stream)))))
"#;

const COMMON_INSTANCE: &str = r#"
    (with "m" (instance $memory))
    (with "c" (instance
      (export "stream-new" (func $stream-new)) (export "stream-write" (func $stream-write))
      (export "stream-read" (func $stream-read)) (export "cancel-write" (func $cancel-write))
      (export "cancel-read" (func $cancel-read)) (export "yield" (func $yield))
      (export "stream-close" (func $stream-close))
      (export "signal-new" (func $signal-new)) (export "set-new" (func $set-new)) (export "set-wait" (func $set-wait))
      (export "join" (func $join)) (export "wait-for" (func $wait-for))
      (export "wait-for-async" (func $wait-for-async))))
"#;

/// A server whose handler runs `body`. `$respond` returns a response with an open body, `$say` writes "partial" to it, `$close`
/// ends it, and `$finish` writes no trailers.
pub(super) fn service(body: &str) -> String {
    format!(
        r#"(component {HTTP} {COMMON}
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $response (canon lower (func $types "[static]response.new") (memory $mem)))
  (core func $trailers-new (canon future.new $trailers))
  (core func $trailers-write (canon future.write $trailers async (memory $mem)))
  (core func $return (canon task.return (result (result (own $response) (error $error-code))) (memory $mem)))
  (core module $main {COMMON_CORE}
    (import "h" "fields" (func $fields (result i32)))
    (import "h" "response" (func $response (param i32 i32 i32 i32 i32)))
    (import "h" "trailers-new" (func $trailers-new (result i64)))
    (import "h" "trailers-write" (func $trailers-write (param i32 i32) (result i32)))
    (import "h" "return" (func $return (param i32 i32 i32 i64 i32 i32 i32 i32)))
    {COMMON_FUNCTIONS}
    (global $ends (mut i64) (i64.const 0))
    (global $stream (mut i32) (i32.const 0))
    (global $trailers (mut i32) (i32.const 0))
    (func $respond
      (local $contents i64) (local $ends i64)
      (local.set $contents (call $stream-new))
      (local.set $ends (call $trailers-new))
      (global.set $stream (call $write-end (local.get $contents)))
      (global.set $trailers (call $write-end (local.get $ends)))
      (call $response (call $fields) (i32.const 1) (i32.wrap_i64 (local.get $contents)) (i32.wrap_i64 (local.get $ends))
        (i32.const 16))
      (call $return (i32.const 0) (i32.load (i32.const 16)) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0)))
    (func $say (call $put (global.get $stream) (i32.const 7)))
    (func $close (call $stream-close (global.get $stream)))
    ;; `ok(none)` at 4096, where the memory is zero.
    (func $finish
      (if (i32.eq (call $trailers-write (global.get $trailers) (i32.const 4096)) (i32.const -1))
        (then (call $wait (global.get $trailers)))))
    ;; `error(HTTP-protocol-error)` as the trailers: the tag of the result, then that of the error.
    (func $finish-with-an-error
      (i32.store8 (i32.const 5120) (i32.const 1)) (i32.store8 (i32.const 5128) (i32.const 35))
      (if (i32.eq (call $trailers-write (global.get $trailers) (i32.const 5120)) (i32.const -1))
        (then (call $wait (global.get $trailers)))))
    (func $fail
      (call $return (i32.const 1) (i32.const 35) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0)))
    (func (export "handle") (param $request i32) (result i32) (local $n i32) {body} (i32.const 0)))
  (core instance $main (instantiate $main {COMMON_INSTANCE}
    (with "h" (instance
      (export "fields" (func $fields)) (export "response" (func $response)) (export "return" (func $return))
      (export "trailers-new" (func $trailers-new)) (export "trailers-write" (func $trailers-write))))))
  (func $handle async (param "request" (own $request)) (result (result (own $response) (error $error-code)))
    (canon lift (core func $main "handle") async (memory $mem) (callback (core func $main "callback"))))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/handler@0.3.0" (instance $handler)))"#
    )
}

/// A command whose `run` runs `body`: `$return` returns its result, 0 for `ok` and 1 for `error`; `$print` writes the text at 2048
/// to stdout.
pub(super) fn command(body: &str) -> String {
    command_with(body, "")
}

/// The same with code that runs at each allocation for its arguments.
pub(super) fn command_with(body: &str, realloc: &str) -> String {
    format!(
        r#"(component {COMMON}
  (import "wasi:cli/types@0.3.0" (instance $cli
    (type $code-type (enum "io" "illegal-byte-sequence" "pipe"))
    (export "error-code" (type (eq $code-type)))))
  (alias export $cli "error-code" (type $code))
  (import "wasi:cli/stdout@0.3.0" (instance $stdout
    (alias outer 1 $code (type $code-outer))
    (export "error-code" (type $code (eq $code-outer)))
    (type $data (stream u8))
    (type $done (future (result (error $code))))
    (export "write-via-stream" (func (param "data" $data) (result $done)))))
  (import "wasi:cli/stdin@0.3.0" (instance $stdin
    (alias outer 1 $code (type $code-outer))
    (export "error-code" (type $code (eq $code-outer)))
    (type $data (stream u8))
    (type $done (future (result (error $code))))
    (export "read-via-stream" (func (result (tuple $data $done))))))
  (import "wasi:cli/environment@0.3.0" (instance $environment
    (export "get-arguments" (func (result (list string))))))
  (import "wasi:cli/exit@0.3.0" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
  (core func $stdout (canon lower (func $stdout "write-via-stream")))
  (core func $exit (canon lower (func $exit "exit-with-code")))
  (core func $stdin (canon lower (func $stdin "read-via-stream") (memory $mem)))
  (core module $allocator
    (import "c" "yield" (func $yield (result i32)))
    (import "c" "wait-for" (func $wait-for (param i64)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) {realloc} (i32.const 8192)))
  (core instance $allocator (instantiate $allocator
    (with "c" (instance (export "yield" (func $yield)) (export "wait-for" (func $wait-for))))))
  (core func $arguments (canon lower (func $environment "get-arguments") (memory $mem)
    (realloc (core func $allocator "realloc"))))
  (core func $return (canon task.return (result (result))))
  (core module $main {COMMON_CORE}
    (import "h" "stdout" (func $stdout (param i32) (result i32)))
    (import "h" "exit" (func $exit (param i32)))
    (import "h" "return" (func $return (param i32)))
    (import "h" "stdin" (func $stdin (param i32)))
    (import "h" "arguments" (func $arguments (param i32)))
    {COMMON_FUNCTIONS}
    (global $ends (mut i64) (i64.const 0))
    (func $print
      (local $ends i64)
      (local.set $ends (call $stream-new))
      (drop (call $stdout (i32.wrap_i64 (local.get $ends))))
      (call $put (call $write-end (local.get $ends)) (i32.const 7))
      (call $stream-close (call $write-end (local.get $ends))))
    (func (export "run") (result i32) (local $n i32) {body} (i32.const 0)))
  (core instance $main (instantiate $main {COMMON_INSTANCE}
    (with "h" (instance
      (export "stdout" (func $stdout)) (export "exit" (func $exit)) (export "return" (func $return))
      (export "stdin" (func $stdin)) (export "arguments" (func $arguments))))))
  (func $run async (result (result)) (canon lift (core func $main "run") async (callback (core func $main "callback"))))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $run)))"#
    )
}
