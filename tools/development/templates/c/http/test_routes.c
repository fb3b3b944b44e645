#include <stdio.h>
#include <string.h>

#include "routes.h"

static int failed;

static void expect(int is_get, const char *target, int status, const char *body) {
  response found = respond(is_get, (text){target, strlen(target)});
  char joined[256] = "";
  for (size_t i = 0; i < sizeof found.parts / sizeof *found.parts; i++)
    if (found.parts[i].length > 0) strncat(joined, found.parts[i].at, found.parts[i].length);
  if (found.status == status && strcmp(joined, body) == 0) return;
  fprintf(stderr, "%s: wanted %d \"%s\", got %d \"%s\"\n", target, status, body, found.status, joined);
  failed = 1;
}

int main(void) {
  expect(1, "/", 200, "hello from {{name}}\n");
  expect(1, "/hello/ada?x=1", 200, "hello ada\n");
  expect(1, "/hello/", 404, "nothing is at /hello/\n");
  expect(1, "", 404, "nothing is at \n");
  expect(0, "/", 405, "only GET is answered\n");
  if (!failed) puts("all routes are right");
  return failed;
}
