#!/usr/bin/env bash
# Builds what scripts/gpu.sh runs on a machine with a GPU, where nothing can be built: no GPU and no CUDA are needed here.
#
#     scripts/gpu_build.sh [OUTDIR]        OUTDIR: target/gpu
#
# OUTDIR then holds, stripped and compressed: qwen-tune; tests-kernels and tests-it, the test binaries of the kernels and of everything
# else, of which scripts/gpu.sh runs what has to do with a device; bench-device. Copy OUTDIR to the same place in a checkout of the same
# commit there. Variables:
#
#     FEATURES   cuda; for example "cuda,wgpu"
#     PROFILE    dev, as tests and CI use it: one build for all four. `release` links longer and runs the host's part a little faster
#     PARTS      "qwen-tune tests-kernels tests-it bench-device", or some of them
#     JOBS       2
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/gpu}
profile=${PROFILE:-dev}
parts=${PARTS:-qwen-tune tests-kernels tests-it bench-device}
# Which version's names to bind; libraries are opened when the program runs, whatever is installed here.
export CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-13000}
common=(--workspace --locked --profile "$profile" --features "${FEATURES:-cuda}" -j "${JOBS:-2}")
mkdir -p "$out"

# built KIND NAME ARGUMENT..: runs cargo; prints the executable of the target of this kind and name.
built() {
    local kind=$1 name=$2
    shift 2
    "$@" --message-format=json-render-diagnostics | python3 -c '
import json, sys
kind, name = sys.argv[1:]
found = None
for line in sys.stdin:
    message = json.loads(line)
    if message["reason"] == "compiler-artifact" and message.get("executable"):
        target = message["target"]
        if kind in target["kind"] and target["name"] == name:
            found = message["executable"]
if found is None:
    sys.exit(f"cargo built no {kind} {name}")
print(found)' "$kind" "$name"
}

pack() { # EXECUTABLE NAME
    strip -o "$out/$2" "$1"
    xz -T0 -6 -f "$out/$2"
    echo "$2: $(du -h "$out/$2.xz" | cut -f1)" >&2
}

for part in $parts; do
    case $part in
    qwen-tune) pack "$(built bin qwen-tune cargo build "${common[@]}")" qwen-tune ;;
    tests-kernels) pack "$(built lib qwen_tune_kernels cargo test "${common[@]}" --lib --no-run)" tests-kernels ;;
    tests-it) pack "$(built test it cargo test "${common[@]}" --test it --no-run)" tests-it ;;
    bench-device) pack "$(built bench device cargo bench "${common[@]}" --bench device --no-run)" bench-device ;;
    *)
        echo "no part \`$part\`" >&2
        exit 2
        ;;
    esac
done
# Tests look for their files where they were built.
pwd >"$out/root"
git describe --always --dirty >"$out/commit" 2>/dev/null || true
du -sh "$out" >&2
