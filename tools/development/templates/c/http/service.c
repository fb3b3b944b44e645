// Between the host and the routes: the functions of wit/service.wit by the canonical ABI of the component model. A resource is a
// number, a string or a list is a pointer and a length, and a result that doesn't fit one value is written through a pointer.
#include <stdint.h>

#include "routes.h"

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name))) extern
#define STREAMS "wasi:io/streams@{{wasi}}"
#define HTTP "wasi:http/types@{{wasi}}"

typedef int32_t handle;
// result<own<…>>: 0 and a handle, or 1.
typedef struct { uint8_t failed; handle value; } handle_result;
// option<string>
typedef struct { uint8_t some; text value; } text_option;
// variant method: 0 is GET, 1 is HEAD.
typedef struct { uint8_t index; text other; } method;
// result<_, stream-error>: the error is 0 with a handle, or 1 for a reader that is gone.
typedef struct { uint8_t failed; struct { uint8_t closed; handle error; } problem; } write_result;
// Results whose error is not read; there is space for the longest one.
typedef struct { uint8_t failed; uint64_t space[5]; } other_result;

IMPORT("wasi:io/error@{{wasi}}", "[resource-drop]error") void error_drop(handle self);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush") void output_write(handle self, const char *at, size_t length, write_result *out);
IMPORT(STREAMS, "[resource-drop]output-stream") void output_drop(handle self);
IMPORT(HTTP, "[constructor]fields") handle fields_new(void);
IMPORT(HTTP, "[method]fields.append") void fields_append(handle self, const char *name, size_t length, const char *value, size_t value_length, other_result *out);
IMPORT(HTTP, "[method]incoming-request.method") void request_method(handle self, method *out);
IMPORT(HTTP, "[method]incoming-request.path-with-query") void request_target(handle self, text_option *out);
IMPORT(HTTP, "[resource-drop]incoming-request") void request_drop(handle self);
IMPORT(HTTP, "[constructor]outgoing-response") handle response_new(handle headers);
IMPORT(HTTP, "[method]outgoing-response.set-status-code") int32_t response_set_status(handle self, int32_t status);
IMPORT(HTTP, "[method]outgoing-response.body") void response_body(handle self, handle_result *out);
IMPORT(HTTP, "[method]outgoing-body.write") void body_write(handle self, handle_result *out);
IMPORT(HTTP, "[static]outgoing-body.finish") void body_finish(handle self, int32_t some, handle trailers, other_result *out);
IMPORT(HTTP, "[resource-drop]outgoing-body") void body_drop(handle self);
// result<own<outgoing-response>, error-code> as arguments: `failed`, the handle, and space for the longest error.
IMPORT(HTTP, "[static]response-outparam.set") void outparam_set(handle self, int32_t failed, handle response, int32_t, uint64_t, int32_t, int32_t, int32_t, int32_t);

enum { WRITE_BYTES_MAX = 4096 }; // of one blocking-write-and-flush

extern char __heap_base; // set by the linker
static char *top;

// The host allocates here what it passes: texts of the request. Each request begins with an empty heap.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
  char *at = (char *)(((uintptr_t)top + align - 1) & ~(align - 1));
  size_t need = (uintptr_t)at + size, have = __builtin_wasm_memory_size(0) * 65536;
  if (need > have && __builtin_wasm_memory_grow(0, (need - have + 65535) / 65536) == (size_t)-1) __builtin_trap();
  for (size_t i = 0; i < old_size && i < size; i++) at[i] = ((char *)old)[i];
  top = at + size;
  return at;
}

// Returns 0 if the reader is gone.
static int write_all(handle stream, text rest) {
  while (rest.length > 0) {
    size_t now = rest.length < WRITE_BYTES_MAX ? rest.length : WRITE_BYTES_MAX;
    write_result result;
    output_write(stream, rest.at, now, &result);
    if (result.failed) {
      if (!result.problem.closed) error_drop(result.problem.error);
      return 0;
    }
    rest = (text){rest.at + now, rest.length - now};
  }
  return 1;
}

static void send(handle out, response r, int has_body) {
  static const text TYPE = {"content-type", 12}, PLAIN = {"text/plain; charset=utf-8", 25};
  handle headers = fields_new();
  other_result result;
  fields_append(headers, TYPE.at, TYPE.length, PLAIN.at, PLAIN.length, &result);
  handle answer = response_new(headers);
  response_set_status(answer, r.status);
  handle_result body, stream;
  response_body(answer, &body);
  outparam_set(out, 0, answer, 0, 0, 0, 0, 0, 0);
  body_write(body.value, &stream);
  int whole = 1;
  for (size_t i = 0; has_body && whole && i < sizeof r.parts / sizeof *r.parts; i++) whole = write_all(stream.value, r.parts[i]);
  output_drop(stream.value);
  // A body that is not finished is cut: its reader sees that.
  if (whole) body_finish(body.value, 0, 0, &result);
  else body_drop(body.value);
}

__attribute__((export_name("wasi:http/incoming-handler@{{wasi}}#handle"))) void handle_request(handle incoming, handle out) {
  top = &__heap_base;
  method how;
  text_option target;
  request_method(incoming, &how);
  request_target(incoming, &target);
  send(out, respond(how.index < 2, target.some ? target.value : TEXT("/")), how.index != 1);
  request_drop(incoming);
}
