#include "greetings.h"

int write_greetings(FILE *out, char *const *names, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (names[i][0] == '\0') return (int)i + 1;
  if (count == 0) fputs("hello from {{name}}\n", out);
  for (size_t i = 0; i < count; i++) fprintf(out, "hello %s\n", names[i]);
  return 0;
}
