#include "routes.h"

static int equal(text a, text b) {
  if (a.length != b.length) return 0;
  for (size_t i = 0; i < a.length; i++)
    if (a.at[i] != b.at[i]) return 0;
  return 1;
}

// The target's part before its query.
static text path_of(text target) {
  size_t length = 0;
  while (length < target.length && target.at[length] != '?') length++;
  return (text){target.at, length};
}

// Whether the path begins with the prefix and has more; the rest is stored.
static int has_prefix(text path, text prefix, text *rest) {
  if (path.length <= prefix.length || !equal((text){path.at, prefix.length}, prefix)) return 0;
  *rest = (text){path.at + prefix.length, path.length - prefix.length};
  return 1;
}

response respond(int is_get, text target) {
  text path = path_of(target), name = {0};
  int is_root = equal(path, TEXT("/"));
  if (!is_root && !has_prefix(path, TEXT("/hello/"), &name)) return (response){404, {TEXT("nothing is at "), path, TEXT("\n")}};
  if (!is_get) return (response){405, {TEXT("only GET is answered\n")}};
  if (is_root) return (response){200, {TEXT("hello from {{name}}\n")}};
  return (response){200, {TEXT("hello "), name, TEXT("\n")}};
}
