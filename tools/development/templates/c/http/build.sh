#!/bin/sh
# Builds build/{{name}}.wasm. wasm-component-ld comes with a Rust of rustup; `cargo install wasm-component-ld` installs it alone.
set -eu
cd "$(dirname "$0")"
linker=$(command -v wasm-component-ld || ls "$(rustc --print sysroot)"/lib/rustlib/*/bin/wasm-component-ld 2>/dev/null | head -n 1) || true
[ -n "$linker" ] || { echo "build.sh: there is no wasm-component-ld: cargo install wasm-component-ld" >&2; exit 1; }
mkdir -p build
for file in routes service; do
  clang --target=wasm32-unknown-unknown -std=c11 -O2 -Wall -Wextra -ffreestanding -nostdlib -c "$file.c" -o "build/$file.o"
done
"$linker" --component-type wit/service.wit --no-entry --gc-sections --strip-debug build/routes.o build/service.o -o "build/{{name}}.wasm"
