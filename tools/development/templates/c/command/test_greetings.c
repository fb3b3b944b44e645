#include <stdlib.h>
#include <string.h>

#include "greetings.h"

static int failed;

static void expect(int result, const char *lines, char *const *names, size_t count) {
  char found[256] = "";
  FILE *out = fmemopen(found, sizeof found, "w");
  if (!out) abort();
  int returned = write_greetings(out, names, count);
  fclose(out);
  if (returned == result && strcmp(found, lines) == 0) return;
  fprintf(stderr, "wanted %d and \"%s\", got %d and \"%s\"\n", result, lines, returned, found);
  failed = 1;
}

int main(void) {
  expect(0, "hello from {{name}}\n", NULL, 0);
  expect(0, "hello ada\nhello bob\n", (char *[]){"ada", "bob"}, 2);
  expect(2, "", (char *[]){"ada", ""}, 2);
  if (!failed) puts("all greetings are right");
  return failed;
}
