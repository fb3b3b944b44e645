// The functions of server.wit as C sees them, by the component model's canonical ABI: a resource is a number; a string or
// a list is a pointer and a length; a result that doesn't fit one value is written through a pointer, `out`.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name))) extern
#define IO "wasi:io/"
#define HTTP "wasi:http/types@0.2.0"

typedef int32_t handle;
typedef struct { const char *at; size_t length; } bytes; // a string or a list of bytes, not ended by a zero

// result<own<…>>: 0 and a handle, or 1
typedef struct { uint8_t failed; handle value; } handle_result;
// option<string>
typedef struct { uint8_t some; bytes value; } string_option;
// variant method: an index in the order of server.wit, and a name where it is `other`
typedef struct { uint8_t index; bytes other; } method;
// list<list<u8>> and list<tuple<string, string>>
typedef struct { const bytes *at; size_t length; } bytes_list;
typedef struct { bytes name, value; } variable;
typedef struct { const variable *at; size_t length; } variable_list;
// result<list<u8>, stream-error>: the error is 0 with a handle (`last-operation-failed`) or 1 (`closed`)
typedef struct { uint8_t failed; union { bytes value; struct { uint8_t closed; handle error; } problem; }; } read_result;
// result<_, stream-error>
typedef struct { uint8_t failed; struct { uint8_t closed; handle error; } problem; } write_result;
// result<_, error-code>: only whether it failed is of interest; the rest is room for the longest error
typedef struct { uint8_t failed; uint64_t room[5]; } finish_result;
// result<_, header-error>
typedef struct { uint8_t failed, problem; } append_result;

IMPORT("wasi:cli/environment@0.2.0", "get-environment") void get_environment(variable_list *out);
IMPORT("wasi:cli/stdout@0.2.0", "get-stdout") handle get_stdout(void);
IMPORT("wasi:clocks/monotonic-clock@0.2.0", "subscribe-duration") handle subscribe_duration(uint64_t ns);
IMPORT(IO "poll@0.2.0", "[method]pollable.block") void pollable_block(handle self);
IMPORT(IO "poll@0.2.0", "[resource-drop]pollable") void pollable_drop(handle self);
IMPORT(IO "error@0.2.0", "[resource-drop]error") void error_drop(handle self);
IMPORT(IO "streams@0.2.0", "[method]input-stream.blocking-read") void input_read(handle self, uint64_t length, read_result *out);
IMPORT(IO "streams@0.2.0", "[resource-drop]input-stream") void input_drop(handle self);
IMPORT(IO "streams@0.2.0", "[method]output-stream.blocking-write-and-flush") void output_write(handle self, const char *at, size_t length, write_result *out);
IMPORT(IO "streams@0.2.0", "[resource-drop]output-stream") void output_drop(handle self);

IMPORT(HTTP, "[constructor]fields") handle fields_new(void);
IMPORT(HTTP, "[method]fields.get") void fields_get(handle self, const char *name, size_t length, bytes_list *out);
IMPORT(HTTP, "[method]fields.append") void fields_append(handle self, const char *name, size_t length, const char *value, size_t value_length, append_result *out);
IMPORT(HTTP, "[resource-drop]fields") void fields_drop(handle self);
IMPORT(HTTP, "[method]incoming-request.method") void request_method(handle self, method *out);
IMPORT(HTTP, "[method]incoming-request.path-with-query") void request_target(handle self, string_option *out);
IMPORT(HTTP, "[method]incoming-request.headers") handle request_headers(handle self);
IMPORT(HTTP, "[method]incoming-request.consume") void request_consume(handle self, handle_result *out);
IMPORT(HTTP, "[resource-drop]incoming-request") void request_drop(handle self);
IMPORT(HTTP, "[method]incoming-body.stream") void incoming_stream(handle self, handle_result *out);
IMPORT(HTTP, "[resource-drop]incoming-body") void incoming_drop(handle self);
IMPORT(HTTP, "[constructor]outgoing-response") handle response_new(handle headers);
IMPORT(HTTP, "[method]outgoing-response.set-status-code") int32_t response_set_status(handle self, int32_t status);
IMPORT(HTTP, "[method]outgoing-response.body") void response_body(handle self, handle_result *out);
IMPORT(HTTP, "[method]outgoing-body.write") void outgoing_write(handle self, handle_result *out);
IMPORT(HTTP, "[static]outgoing-body.finish") void outgoing_finish(handle self, int32_t some, handle trailers, finish_result *out);
IMPORT(HTTP, "[resource-drop]outgoing-body") void outgoing_drop(handle self);
// result<own<outgoing-response>, error-code> as arguments: `failed`, the handle, and room for the longest error
IMPORT(HTTP, "[static]response-outparam.set") void outparam_set(handle self, int32_t failed, handle response, int32_t, uint64_t, int32_t, int32_t, int32_t, int32_t);
