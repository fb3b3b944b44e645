// hello in C: what ../hello does in Rust, with no library at all. It is some 8 kB, and shows what a component is made of.
#include "wasi.h"

enum {
  PIECE_BYTES = 64 * 1024, // of a body that is echoed
  WRITE_BYTES = 4096,      // the most that blocking-write-and-flush takes
  LINES_MAX = 1000000000,
  DAY_MS = 24 * 60 * 60 * 1000,
};

// --- memory: the host and we take it piece by piece, and a request that ends gives all of it back ---

extern char __heap_base; // set by the linker
static char *top;

static void *take(size_t size, size_t align) {
  char *at = (char *)(((uintptr_t)top + align - 1) & ~(align - 1));
  size_t need = (uintptr_t)at + size, have = __builtin_wasm_memory_size(0) * 65536;
  if (need > have && __builtin_wasm_memory_grow(0, (need - have + 65535) / 65536) == (size_t)-1) __builtin_trap();
  top = at + size;
  return at;
}

// The host asks for room here before it hands over a string or a list.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
  char *at = take(size, align);
  __builtin_memcpy(at, old, old_size < size ? old_size : size); // an instruction, like memset (-mbulk-memory)
  return at;
}

// --- text ---

#define TEXT(literal) ((bytes){literal, sizeof(literal) - 1})

static int same(bytes a, bytes b) {
  if (a.length != b.length) return 0;
  for (size_t i = 0; i < a.length; i++)
    if (a.at[i] != b.at[i]) return 0;
  return 1;
}

static bytes joined(const bytes *parts, size_t count) {
  size_t length = 0;
  for (size_t i = 0; i < count; i++) length += parts[i].length;
  char *at = take(length, 1), *end = at;
  for (size_t i = 0; i < count; i++) {
    __builtin_memcpy(end, parts[i].at, parts[i].length);
    end += parts[i].length;
  }
  return (bytes){at, length};
}
#define JOIN(...) joined((bytes[]){__VA_ARGS__}, sizeof((bytes[]){__VA_ARGS__}) / sizeof(bytes))

static bytes digits(uint64_t number) {
  char *end = (char *)take(20, 1) + 20, *at = end;
  do *--at = '0' + number % 10;
  while (number /= 10);
  return (bytes){at, end - at};
}

// The part before the first `at`, and in *rest what follows it.
static bytes split(bytes text, char at, bytes *rest) {
  size_t i = 0;
  while (i < text.length && text.at[i] != at) i++;
  size_t next = i < text.length ? i + 1 : i;
  *rest = (bytes){text.at + next, text.length - next};
  return (bytes){text.at, i};
}

static int hex(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  digit |= 0x20;
  return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

// %41 → A
static bytes decoded(bytes text) {
  char *at = take(text.length, 1);
  size_t length = 0;
  for (size_t i = 0; i < text.length; i++) {
    int escape = text.at[i] == '%' && i + 2 < text.length && hex(text.at[i + 1]) >= 0 && hex(text.at[i + 2]) >= 0;
    at[length++] = escape ? hex(text.at[i + 1]) * 16 + hex(text.at[i + 2]) : text.at[i];
    if (escape) i += 2;
  }
  return (bytes){at, length};
}

// The inside of a JSON string.
static bytes escaped(bytes text) {
  static const char HEX[] = "0123456789abcdef";
  char *at = take(text.length * 6, 1), *end = at;
  for (size_t i = 0; i < text.length; i++) {
    unsigned char byte = text.at[i];
    if (byte < ' ') {
      __builtin_memcpy(end, "\\u00", 4);
      end[4] = HEX[byte >> 4];
      end[5] = HEX[byte & 15];
      end += 6;
    } else {
      if (byte == '"' || byte == '\\') *end++ = '\\';
      *end++ = byte;
    }
  }
  return (bytes){at, end - at};
}

// --- streams ---

// 0 when the reader is gone.
static int write_all(handle stream, bytes text) {
  while (text.length > 0) {
    size_t now = text.length < WRITE_BYTES ? text.length : WRITE_BYTES;
    write_result result;
    output_write(stream, text.at, now, &result);
    if (result.failed) {
      if (!result.problem.closed) error_drop(result.problem.error);
      return 0;
    }
    text = (bytes){text.at + now, text.length - now};
  }
  return 1;
}

static void log_line(bytes line) {
  handle out = get_stdout();
  write_all(out, JOIN(line, TEXT("\n")));
  output_drop(out);
}

static void sleep_ms(uint64_t ms) { // in the host: the instance uses no CPU meanwhile
  handle alarm = subscribe_duration(ms * 1000000);
  pollable_block(alarm);
  pollable_drop(alarm);
}

static int variable_of(bytes name, bytes *value) {
  variable_list all;
  get_environment(&all);
  for (size_t i = 0; i < all.length; i++)
    if (same(all.at[i].name, name)) {
      *value = all.at[i].value;
      return 1;
    }
  return 0;
}

// --- a request and its response ---

typedef struct {
  handle incoming, out; // out: where the response goes
  bytes method, path, query;
} request;

typedef struct { handle body, stream; } sending;

static void append(handle headers, bytes name, bytes value) {
  append_result result;
  fields_append(headers, name.at, name.length, value.at, value.length, &result);
}

// Sends the head; the body is for the caller to write and finish.
static sending begin(const request *r, int status, bytes type, bytes name, bytes value) {
  handle headers = fields_new();
  append(headers, TEXT("content-type"), type);
  if (name.length > 0) append(headers, name, value);
  handle response = response_new(headers);
  response_set_status(response, status);
  handle_result body, stream;
  response_body(response, &body);
  outparam_set(r->out, 0, response, 0, 0, 0, 0, 0, 0);
  outgoing_write(body.value, &stream);
  return (sending){body.value, stream.value};
}

// A body that is not whole is dropped and not finished, so that the client sees that it was cut.
static void end(sending s, int whole) {
  output_drop(s.stream);
  finish_result result;
  if (whole) outgoing_finish(s.body, 0, 0, &result);
  else outgoing_drop(s.body);
}

static void reply_with(const request *r, int status, bytes type, bytes text, bytes name, bytes value) {
  sending s = begin(r, status, type, name, value);
  end(s, same(r->method, TEXT("HEAD")) || write_all(s.stream, text));
}

#define NONE ((bytes){0, 0})
#define PLAIN TEXT("text/plain; charset=utf-8")

static void reply(const request *r, bytes text) { reply_with(r, 200, PLAIN, text, NONE, NONE); }

static void fail_with(const request *r, int status, bytes message, bytes name, bytes value) {
  bytes body = JOIN(TEXT("{\"error\":\""), escaped(message), TEXT("\"}\n"));
  reply_with(r, status, TEXT("application/json"), body, name, value);
}

static void fail(const request *r, int status, bytes message) { fail_with(r, status, message, NONE, NONE); }

static int parameter(const request *r, bytes name, bytes *value) {
  bytes pair, rest = r->query;
  while (rest.length > 0) {
    pair = split(rest, '&', &rest);
    if (same(split(pair, '=', value), name)) return 1;
  }
  return 0;
}

// A number of the query; answers 400 and returns 0 where it is none.
static int number(const request *r, bytes name, uint64_t max, uint64_t *value) {
  bytes text;
  int good = parameter(r, name, &text) && text.length > 0;
  *value = 0;
  for (size_t i = 0; good && i < text.length; i++) {
    *value = *value * 10 + (text.at[i] - '0');
    good = text.at[i] >= '0' && text.at[i] <= '9' && *value <= max;
  }
  if (!good) fail(r, 400, JOIN(name, TEXT(" must be a number from 0 to "), digits(max)));
  return good;
}

// --- the routes ---

static void greet(const request *r, bytes rest) {
  bytes pod;
  if (!variable_of(TEXT("POD_NAME"), &pod) && !variable_of(TEXT("HOSTNAME"), &pod)) pod = TEXT("nobody");
  reply_with(r, 200, PLAIN, JOIN(TEXT("hello from "), pod, TEXT("\n")), TEXT("x-pod"), pod);
}

static void version(const request *r, bytes rest) {
  bytes value;
  if (!variable_of(TEXT("VERSION"), &value)) value = TEXT("unknown");
  reply(r, JOIN(value, TEXT("\n")));
}

static void environment(const request *r, bytes name) {
  bytes value;
  if (variable_of(name, &value)) reply(r, JOIN(value, TEXT("\n")));
  else fail(r, 404, JOIN(name, TEXT(" is not set")));
}

static void echo(const request *r, bytes rest) {
  handle headers = request_headers(r->incoming);
  bytes_list types;
  fields_get(headers, "content-type", 12, &types);
  fields_drop(headers);
  handle_result body, stream;
  request_consume(r->incoming, &body);
  incoming_stream(body.value, &stream);
  sending s = begin(r, 200, types.length > 0 ? types.at[0] : TEXT("application/octet-stream"), NONE, NONE);
  char *mark = top; // each piece takes the room of the one before
  int whole = 0;
  for (;;) {
    read_result piece;
    top = mark;
    input_read(stream.value, PIECE_BYTES, &piece);
    if (piece.failed) {
      whole = piece.problem.closed;
      if (!whole) error_drop(piece.problem.error);
      break;
    }
    if (!write_all(s.stream, piece.value)) break;
  }
  input_drop(stream.value);
  incoming_drop(body.value);
  end(s, whole);
}

static void slow(const request *r, bytes rest) {
  uint64_t ms;
  if (!number(r, TEXT("ms"), DAY_MS, &ms)) return;
  sleep_ms(ms);
  reply(r, JOIN(TEXT("answered after "), digits(ms), TEXT(" ms\n")));
}

static void stream(const request *r, bytes rest) {
  uint64_t lines, pause = 0;
  bytes given;
  if (!number(r, TEXT("n"), LINES_MAX, &lines)) return;
  if (parameter(r, TEXT("ms"), &given) && !number(r, TEXT("ms"), DAY_MS, &pause)) return;
  if (same(r->method, TEXT("HEAD"))) lines = 0;
  sending s = begin(r, 200, PLAIN, NONE, NONE);
  char *mark = top;
  int whole = 1;
  for (uint64_t line = 1; whole && line <= lines; line++) {
    top = mark;
    if (line > 1 && pause > 0) sleep_ms(pause);
    whole = write_all(s.stream, JOIN(TEXT("line "), digits(line), TEXT("\n")));
  }
  end(s, whole);
}

static const struct { bytes method, path; void (*answer)(const request *, bytes rest); } ROUTES[] = {
    {{"GET", 3}, {"/", 1}, greet},
    {{"GET", 3}, {"/version", 8}, version},
    {{"GET", 3}, {"/env/*", 6}, environment},
    {{"POST", 4}, {"/echo", 5}, echo},
    {{"GET", 3}, {"/slow", 5}, slow},
    {{"GET", 3}, {"/stream", 7}, stream},
};

// Whether the path is the pattern's; `*` at its end stands for one segment more, which is then in *rest.
static int matches(bytes pattern, bytes path, bytes *rest) {
  *rest = NONE;
  if (pattern.at[pattern.length - 1] != '*') return same(pattern, path);
  size_t prefix = pattern.length - 1;
  if (path.length <= prefix || !same((bytes){pattern.at, prefix}, (bytes){path.at, prefix})) return 0;
  bytes more, segment = {path.at + prefix, path.length - prefix};
  if (split(segment, '/', &more).length < segment.length) return 0;
  *rest = decoded(segment);
  return 1;
}

static void route(const request *r) {
  bytes wanted = same(r->method, TEXT("HEAD")) ? TEXT("GET") : r->method, rest;
  for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) {
    if (!matches(ROUTES[i].path, r->path, &rest)) continue;
    bytes allowed = ROUTES[i].method; // no path has two
    if (same(allowed, wanted)) ROUTES[i].answer(r, rest);
    else fail_with(r, 405, JOIN(r->path, TEXT(" takes "), allowed), TEXT("allow"), allowed);
    return;
  }
  fail(r, 404, JOIN(TEXT("there is nothing at "), r->path));
}

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void handle_request(handle incoming, handle out) {
  static const bytes METHODS[] = {{"GET", 3},     {"HEAD", 4},    {"POST", 4},  {"PUT", 3},  {"DELETE", 6},
                                  {"CONNECT", 7}, {"OPTIONS", 7}, {"TRACE", 5}, {"PATCH", 5}};
  top = &__heap_base;
  method how;
  string_option target;
  request_method(incoming, &how);
  request_target(incoming, &target);
  request r = {incoming, out, how.index < 9 ? METHODS[how.index] : how.other};
  bytes whole = target.some ? target.value : TEXT("/");
  log_line(JOIN(r.method, TEXT(" "), whole));
  r.path = split(whole, '?', &r.query);
  if (r.path.length == 0) r.path = TEXT("/");
  route(&r);
  request_drop(incoming);
}
