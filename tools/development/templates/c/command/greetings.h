// Greetings, without any of WASI: tested on the development machine.
#pragma once
#include <stddef.h>
#include <stdio.h>

// Writes one line for each name. Returns 0, or the number of the first empty name, counted from 1, and writes nothing.
int write_greetings(FILE *out, char *const *names, size_t count);
