// The routes, without any of WASI: tested on the development machine.
#pragma once
#include <stddef.h>

// Bytes that another object owns; no zero ends them.
typedef struct {
  const char *at;
  size_t length;
} text;

#define TEXT(literal) ((text){literal, sizeof(literal) - 1})

// A response: its status, and the parts of its body.
typedef struct {
  int status;
  text parts[3];
} response;

// Answers a request; the target is a path, perhaps with a query behind it.
response respond(int is_get, text target);
