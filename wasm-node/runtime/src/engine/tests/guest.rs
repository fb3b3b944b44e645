//! An HTTP guest written as text: a component around a core wasm handler, for behaviour that no toolchain produces.

/// Imports of the handler: the few functions of wasi:http and wasi:io that a response takes.
const WORLD: &str = r#"
  (import "wasi:io/error@0.2.0" (instance $io-error (export "error" (type (sub resource)))))
  (alias export $io-error "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $output (sub resource)))
    (alias outer 1 $error (type $error-outer))
    (export "error" (type $error (eq $error-outer)))
    (type $stream-error-type (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $stream-error-type)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $output)) (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $output))
  (import "wasi:http/types@0.2.0" (instance $types
    (alias outer 1 $output (type $output-outer))
    (export "output-stream" (type $output (eq $output-outer)))
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "outgoing-body" (type $body (sub resource)))
    (export "outgoing-request" (type $asked (sub resource)))
    (type $header-error-type (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
    (export "header-error" (type $header-error (eq $header-error-type)))
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
    (export "[static]fields.from-list"
      (func (param "entries" (list (tuple string (list u8)))) (result (result (own $fields) (error $header-error)))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[constructor]outgoing-request" (func (param "headers" (own $fields)) (result (own $asked))))
    (export "[method]outgoing-request.body" (func (param "self" (borrow $asked)) (result (result (own $body)))))
    (export "[method]outgoing-response.set-status-code"
      (func (param "self" (borrow $response)) (param "status-code" u16) (result (result))))
    (export "[method]outgoing-response.body" (func (param "self" (borrow $response)) (result (result (own $body)))))
    (export "[method]outgoing-body.write" (func (param "self" (borrow $body)) (result (result (own $output)))))
    (export "[static]outgoing-body.finish"
      (func (param "this" (own $body)) (param "trailers" (option (own $fields))) (result (result (error $error-code)))))
    (export "[static]response-outparam.set"
      (func (param "param" (own $outparam)) (param "response" (result (own $response) (error $error-code)))))))
"#;

/// Helpers of the handler: `$fields` from the header list at 1024, `$start` sets a response with an open body.
const LIBRARY: &str = r#"
    (import "h" "from-list" (func $from-list (param i32 i32 i32)))
    (import "h" "response" (func $response (param i32) (result i32)))
    (import "h" "status" (func $status (param i32 i32) (result i32)))
    (import "h" "body" (func $body (param i32 i32)))
    (import "h" "write" (func $write (param i32 i32)))
    (import "h" "set" (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "h" "finish" (func $finish (param i32 i32 i32 i32)))
    (import "h" "flush" (func $flush (param i32 i32 i32 i32)))
    (import "h" "drop-output" (func $drop-output (param i32)))
    (import "h" "request" (func $request (param i32) (result i32)))
    (import "h" "request-body" (func $request-body (param i32 i32)))
    (import "m" "memory" (memory 1))
    (global $open (mut i32) (i32.const 0))
    (global $stream (mut i32) (i32.const 0))
    (func $headers (param $count i32) (result i32)
      (call $from-list (i32.const 1024) (local.get $count) (i32.const 16))
      (i32.load (i32.const 20)))
    (func $begin (param $out i32) (param $count i32) (param $code i32)
      (local $r i32)
      (local.set $r (call $response (call $headers (local.get $count))))
      (drop (call $status (local.get $r) (local.get $code)))
      (call $body (local.get $r) (i32.const 16))
      (global.set $open (i32.load (i32.const 20)))
      (call $write (global.get $open) (i32.const 16))
      (global.set $stream (i32.load (i32.const 20)))
      (call $set (local.get $out) (i32.const 0) (local.get $r)
        (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
    (func $say (call $flush (global.get $stream) (i32.const 2048) (i32.const 7) (i32.const 64)))
    ;; A body of a request that is never sent, finished.
    (func $ask
      (call $request-body (call $request (call $headers (i32.const 0))) (i32.const 16))
      (call $finish (i32.load (i32.const 20)) (i32.const 0) (i32.const 0) (i32.const 64)))
    ;; The same of a response that is nobody's.
    (func $other
      (call $body (call $response (call $headers (i32.const 0))) (i32.const 16))
      (call $finish (i32.load (i32.const 20)) (i32.const 0) (i32.const 0) (i32.const 64)))
    (func $end
      (call $drop-output (global.get $stream))
      (call $finish (global.get $open) (i32.const 0) (i32.const 0) (i32.const 64)))
"#;

/// A component whose handler runs `body`; the outparam is local 1. The header list at 1024 has `coracle-x: 1`, then
/// `content-length: 100`, then `x: ` and 16 KiB; 7 bytes of text are at 2048.
pub(super) fn component(body: &str) -> String {
    format!(
        r#"(component {WORLD}
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  (core module $memory
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (data (i32.const 512) "coracle-xcontent-length100x")
    (data (i32.const 2048) "partial")
    (data (i32.const 1024) "\00\02\00\00\09\00\00\00\17\02\00\00\01\00\00\00")
    (data (i32.const 1040) "\09\02\00\00\0e\00\00\00\17\02\00\00\03\00\00\00")
    (data (i32.const 1056) "\1a\02\00\00\01\00\00\00\00\40\00\00\00\40\00\00"))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (core func $realloc (alias core export $memory "realloc"))
  (core func $from-list (canon lower (func $types "[static]fields.from-list") (memory $mem)))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $status (canon lower (func $types "[method]outgoing-response.set-status-code")))
  (core func $body (canon lower (func $types "[method]outgoing-response.body") (memory $mem)))
  (core func $request (canon lower (func $types "[constructor]outgoing-request")))
  (core func $request-body (canon lower (func $types "[method]outgoing-request.body") (memory $mem)))
  (core func $write (canon lower (func $types "[method]outgoing-body.write") (memory $mem)))
  (core func $set (canon lower (func $types "[static]response-outparam.set") (memory $mem)))
  (core func $finish (canon lower (func $types "[static]outgoing-body.finish") (memory $mem) (realloc $realloc)))
  (core func $flush
    (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $mem)))
  (core func $drop-output (canon resource.drop $output))
  (core module $main {LIBRARY}
    (func (export "handle") (param i32 i32) (local $n i32) {body}))
  (core instance $main (instantiate $main
    (with "m" (instance $memory))
    (with "h" (instance
      (export "from-list" (func $from-list)) (export "response" (func $response)) (export "status" (func $status))
      (export "body" (func $body)) (export "write" (func $write)) (export "set" (func $set))
      (export "finish" (func $finish)) (export "flush" (func $flush)) (export "drop-output" (func $drop-output))
      (export "request" (func $request)) (export "request-body" (func $request-body))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (component $shim
    (import "request" (type $request (sub resource)))
    (import "outparam" (type $outparam (sub resource)))
    (import "handle" (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))))
    (export "handle" (func $handle)))
  (instance $handler (instantiate $shim
    (with "request" (type $request)) (with "outparam" (type $outparam)) (with "handle" (func $handle))))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
    )
}
