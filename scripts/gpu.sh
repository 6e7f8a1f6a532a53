#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than ten minutes: tests against references, kernels beside the machine's own
# ceilings, training beside torch + PEFT.
#
#     scripts/gpu.sh OUTDIR
#
# Needs what scripts/gpu_build.sh left in target/gpu (BUILD), an NVIDIA card with its driver, NVRTC and CUDA's headers, and python3 with
# torch, transformers, peft, pyarrow; nothing from outside. OUTDIR gets devices.json, tests.log, ceilings.json, kernels.jsonl,
# train.jsonl, table.md and gpu.log; the tables are printed last. The exit code says what failed: 1 devices, 2 tests, 4 kernels,
# 8 train, added up. Each stage has a time limit, so that one that hangs leaves the others their time. Variables, with their defaults:
#
#     STAGES          "devices tests kernels train", or some of them, in this order
#     DEVICE          cuda:0. `cpu` is a dry run of the script itself: tiny shapes, few steps, the same code
#     SHAPES          the models to train, in this order: scripts/bench_gpu_torch.py has the list
#     AGAIN           shapes whose first step is measured a second time, with the kernels compiled: qwen3-8b
#     SIDES           of torch: plain,strong
#     RECOMPUTE       none; or all
#     TEST_FILTER     of the other tests: parity (the kernels' own all run)
#     BENCH_TOKENS    tokens of a forward in the kernels' bench: 8192
#     WHEELS          a directory of Python wheels to use beside what is installed (liger-kernel, flash-linear-attention, fla-core: without
#                     them `torch strong` is weaker, and Qwen3.5 is not run in torch)
#     BUDGET          seconds for all: 570
#     LIMIT_DEVICES, LIMIT_TESTS, LIMIT_KERNELS, LIMIT_TRAIN       60, 150, 90, 400
#     LIMIT_TORCH, LIMIT_OURS                                      of one shape in `train`: 100, 110
#     BUILD           target/gpu;  WORK: a directory for what is unpacked and cached, made anew (default below /tmp)
set -uo pipefail
cd "$(dirname "$0")/.." || exit
[ $# -eq 1 ] || {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 2
}
mkdir -p "$1"
out=$(realpath "$1")
exec > >(tee "$out/gpu.log") 2>&1

began=$(date +%s)
device=${DEVICE:-cuda:0}
budget=${BUDGET:-570}
build=${BUILD:-target/gpu}
work=${WORK:-/tmp/qwen-tune-gpu}
rm -rf "$work"
mkdir -p "$work/site"
if [ "$device" = cpu ]; then
    shapes=${SHAPES:-tiny tiny-moe tiny-3.5}
    options=(--length 64 --warm 1 --steps 3)
    tokens=${BENCH_TOKENS:-128}
else
    shapes=${SHAPES:-qwen3-0.6b qwen3-8b qwen3-4b qwen3-1.7b qwen3.5-4b qwen3.5-9b qwen3-30b-a3b}
    options=()
    tokens=${BENCH_TOKENS:-8192}
fi
# Compiled kernels of earlier calls would make a cold start warm.
export XDG_CACHE_HOME=$work/cache
export PYTHONUNBUFFERED=1 NO_COLOR=1

left() { echo $((budget - ($(date +%s) - began))); }
say() { echo "== $(($(date +%s) - began)) s: $*"; }

# limited SECONDS COMMAND..: the command, for no longer than that and than there is time.
limited() {
    local most=$1 rest
    shift
    rest=$(left)
    [ "$rest" -lt "$most" ] && most=$rest
    [ "$most" -lt 5 ] && {
        echo "no time left for: $*"
        return 124
    }
    timeout --kill-after=5 "$most" "$@"
}

for packed in "$build"/*.xz; do
    [ -e "$packed" ] || continue
    name=$(basename "$packed" .xz)
    { xz -dc "$packed" || python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$packed"; } >"$work/$name" 2>/dev/null
    chmod +x "$work/$name"
done
# A dry run may have them as cargo left them.
for name in qwen-tune tests-kernels tests-it bench-device; do
    variable=$(echo "$name" | tr 'a-z-' 'A-Z_')
    [ -n "${!variable:-}" ] && ln -sf "$(realpath "${!variable}")" "$work/$name"
done
# Tests look for their files where they were built.
if [ -e "$build/root" ]; then
    root=$(cat "$build/root")
    [ -e "$root" ] || { mkdir -p "$(dirname "$root")" && ln -s "$PWD" "$root"; } || true
fi
if [ -n "${WHEELS:-}" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$WHEELS"/*.whl || echo "the wheels could not be installed"
    export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
fi
say "unpacked: $(cd "$work" && echo *); $(cat "$build/commit" 2>/dev/null || echo 'no commit')"
[ "$device" = cpu ] || nvidia-smi --query-gpu=name,memory.total,memory.used,driver_version --format=csv,noheader

# What is there, what is missing, and the self-test. Test binaries need the variables that the program sets for itself.
stage_devices() {
    limited "${LIMIT_DEVICES:-60}" "$work/qwen-tune" devices --json >"$out/devices.json" || return 1
    python3 - "$out/devices.json" "$device" >"$work/variables" <<'PYTHON'
import json, shlex, sys
entries = {entry["device"]: entry for entry in json.load(open(sys.argv[1]))}
for name, value in ((entries.get("cuda") or {}).get("cuda") or {}).get("environment", {}).items():
    print(f"export {name}={shlex.quote(value)}")
for entry in entries.values():
    print(entry["device"], "|", entry["state"], entry.get("command") or "", file=sys.stderr)
    for check in (entry.get("self_test") or {}).get("checks", []):
        print("   ", check, file=sys.stderr)
own = entries.get(sys.argv[2]) or {"state": "not listed"}
tested = own.get("self_test")
if not tested or tested.get("failure") or any(check["ok"] is False for check in tested["checks"]):
    sys.exit(f"{sys.argv[2]}: {own['state']}; self-test {tested}")
PYTHON
}

stage_tests() {
    local failed=0
    export QWEN_TUNE_TEST_DEVICE=$device
    : >"$out/tests.log"
    for run in "tests-kernels" "tests-it ${TEST_FILTER:-parity}"; do
        # shellcheck disable=SC2086 # a name and its filter
        set -- $run
        say "$run"
        limited "${LIMIT_TESTS:-150}" "$work/$1" "${@:2}" >"$work/test.log" 2>&1 || failed=1
        cat "$work/test.log" >>"$out/tests.log"
        grep -E '^test .*(FAILED|panicked)|^test result|panicked at|off by' "$work/test.log" | head -40
    done
    return "$failed"
}

stage_kernels() {
    local failed=0
    limited 60 python3 -W ignore scripts/bench_gpu_torch.py ceilings "$out/ceilings.json" --tokens "$tokens" --device "${device%%:*}" >"$work/ceilings.log" 2>&1 || {
        tail -5 "$work/ceilings.log"
        failed=1
    }
    QWEN_TUNE_TEST_DEVICE=$device QWEN_TUNE_BENCH_TOKENS=$tokens limited "${LIMIT_KERNELS:-90}" "$work/bench-device" ${BENCH_FILTER:+"$BENCH_FILTER"} >"$out/kernels.jsonl" 2>"$work/kernels.log" || {
        tail -5 "$work/kernels.log"
        failed=1
    }
    return "$failed"
}

stage_train() {
    local most rest
    most=${LIMIT_TRAIN:-400}
    rest=$(left)
    [ "$rest" -lt "$most" ] && most=$rest
    # The tables come after it.
    limited "$most" python3 scripts/bench_gpu.py "$out" --binary "$work/qwen-tune" --shapes "$(echo "$shapes" | tr ' ' ',')" --device "$device" \
        --again "${AGAIN-qwen3-8b}" --sides "${SIDES-plain,strong}" --recompute "${RECOMPUTE:-none}" --scratch "${SCRATCH:-$([ "$device" = cpu ] && echo "$work/scratch" || echo /dev/shm/qwen-tune-bench)}" \
        --limit-torch "${LIMIT_TORCH:-100}" --limit-ours "${LIMIT_OURS:-110}" --until "$(($(date +%s) + most - 30))" "${options[@]}" >"$work/train.log" 2>&1
    local code=$?
    [ "$code" -eq 0 ] || tail -5 "$work/train.log"
    return "$code"
}

run() {
    case $1 in
    devices) stage_devices ;;
    tests) stage_tests ;;
    kernels) stage_kernels ;;
    train) stage_train ;;
    esac
}

code=0
bit=1
for stage in devices tests kernels train; do
    if [[ " ${STAGES:-devices tests kernels train} " == *" $stage "* ]]; then
        say "$stage"
        run "$stage" || {
            say "$stage FAILED"
            code=$((code + bit))
        }
        # shellcheck disable=SC1091 # written by the stage
        [ -e "$work/variables" ] && . "$work/variables"
    fi
    bit=$((bit * 2))
done

{
    echo "$(date -u '+%Y-%m-%d %H:%M UTC'), $(cat "$build/commit" 2>/dev/null || echo 'no commit'), $device"
    [ -s "$out/kernels.jsonl" ] && python3 scripts/bench_gpu.py "$out" --kernels
    [ -s "$out/train.jsonl" ] && python3 scripts/bench_gpu.py "$out" --table
    echo "exit code $code (1 devices, 2 tests, 4 kernels, 8 train)"
} >"$out/table.md" 2>&1
say "done"
cat "$out/table.md"
exit "$code"
