// A command, for Jobs and CronJobs: it greets the names in its arguments.
#include "greetings.h"

int main(int count, char **arguments) {
  size_t names = count > 0 ? (size_t)count - 1 : 0;
  int empty = write_greetings(stdout, arguments + 1, names);
  if (empty == 0) return 0;
  fprintf(stderr, "{{name}}: name %d is empty\n", empty);
  return 1;
}
