#!/usr/bin/env bash
# Whole training steps of qwen-tune beside torch + PEFT on this CPU: one table, with everything it needs made on the way.
#
#     scripts/bench_cpu.sh [OUTDIR [FILTER]]        OUTDIR: target/bench-cpu
#
# FILTER is an extended regular expression of lines to run; `scripts/bench_cpu.sh target/bench-cpu '^tiny-f32$'` runs one. The lines are
# {tiny,135m,0.6b,qwen3_5-tiny,moe-small}-{f32,bf16}. A line that fails is named at the end and leaves the others alone. What a line
# found lies in OUTDIR/lines until it is run again; OUTDIR/results.json and OUTDIR/results.md hold all of them. Variables:
#
#     MODEL_135M  directory of SmolLM2-135M; absent: random numbers in its shape
#     BINARY      a built qwen-tune; absent: one is built (PROFILE: dev, as tests and CI use it)
#     PYTHON      an interpreter with scripts/requirements.txt; absent: a virtual environment is made in OUTDIR/venv
#     ROUNDS, THREADS   2 and 2
#     EXTRA       more arguments for scripts/bench_cpu.py, such as `--torch-bf16 plain` or `--only torch`
#
# All of it takes 4 GB of disk, 8 GB of memory and most of an hour on two cores. Run it on a machine that does nothing else: the load
# before each run is in the table.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/bench-cpu}
filter=${2:-.}
profile=${PROFILE:-dev}
mkdir -p "$out/lines" "$out/models"
out=$(realpath "$out")

if [ -z "${PYTHON:-}" ]; then
    PYTHON=$out/venv/bin/python
    if [ ! -x "$PYTHON" ]; then
        python3 -m venv "$out/venv" || exit 1
        # Only what these scripts import. The build without CUDA, a tenth of the download, is in torch's own index.
        index=https://download.pytorch.org/whl/cpu
        extra=()
        if "$PYTHON" -c "import urllib.request as r; r.urlopen('$index', timeout=5)" 2>/dev/null; then
            extra=(--extra-index-url "$index")
        fi
        grep -E '^(torch|transformers|peft|safetensors|tokenizers|pyarrow|numpy|jinja2)==' scripts/requirements.txt >"$out/requirements.txt"
        "$PYTHON" -m pip install --quiet ${extra[@]+"${extra[@]}"} -r "$out/requirements.txt" || exit 1
    fi
fi
if [ -z "${BINARY:-}" ]; then
    cargo build --workspace --locked --profile "$profile" || exit 1
    folder=$profile
    [ "$profile" = dev ] && folder=debug
    BINARY=${CARGO_TARGET_DIR:-target}/$folder/qwen-tune
fi

# made TARGET COMMAND..: runs the command with a temporary name for its last argument unless TARGET is there.
made() {
    local target=$1
    shift
    [ -e "$target" ] && return
    rm -rf "$target.part"
    "$PYTHON" "$@" "$target.part" >&2 && mv "$target.part" "$target"
}

shape() { # SHAPE DTYPE
    made "$out/models/$1-$2" scripts/make_shapes.py --dtype "$2" "$1" && echo "$out/models/$1-$2"
}

model_of() { # NAME DTYPE: its directory
    case $1 in
    tiny)
        if [ "$2" = bf16 ]; then
            echo datasets/tiny-qwen3
        else
            made "$out/models/tiny-f32" scripts/make_shapes.py --cast --dtype f32 datasets/tiny-qwen3 && echo "$out/models/tiny-f32"
        fi
        ;;
    135m)
        if [ -n "${MODEL_135M:-}" ]; then
            made "$out/models/135m-real-$2" scripts/make_shapes.py --cast --dtype "$2" "$MODEL_135M" && echo "$out/models/135m-real-$2"
        else
            shape smollm2-135m "$2"
        fi
        ;;
    0.6b) shape qwen3-0.6b "$2" ;;
    qwen3_5-tiny) shape qwen3_5-tiny "$2" ;;
    moe-small) shape qwen3_moe-small "$2" ;;
    esac
}

tokens_of() { # MODEL ROWSxLENGTH: text where the model has learned some, random tokens elsewhere
    local name
    name=$(basename "$1")
    name=${name%-f32}
    name=${name%-bf16}
    local file=$out/tokens-$name-$2.parquet
    case $name in
    tiny* | 135m-real) made "$file" scripts/make_tokens.py --rows "${2%x*}" --length "${2#*x}" "$1" datasets/shakespeare.parquet ;;
    *) made "$file" scripts/make_shapes.py --tokens "$2" "$1" ;;
    esac && echo "$file"
}

failed=()
# line NAME DTYPE BATCH STEPS [ARGUMENT..]
line() {
    local id=$1-$2 model tokens
    [[ $id =~ $filter ]] || return
    echo "== $id" >&2
    rm -f "$out/lines/$id.json"
    if ! { model=$(model_of "$1" "$2") && tokens=$(tokens_of "$model" "$(($3 * ($4 + 2)))x256") &&
        "$PYTHON" scripts/bench_cpu.py "$model" --tokens "$tokens" --dtype "$2" --batch "$3" --steps "$4" --rounds "${ROUNDS:-2}" \
            --threads "${THREADS:-2}" --binary "$BINARY" --scratch "$out" --out "$out/lines/$id.json" "${@:5}" ${EXTRA:-} >"$out/lines/$id.txt"; }; then
        failed+=("$id")
    fi
}
for dtype in f32 bf16; do
    line tiny "$dtype" 4 30
    line qwen3_5-tiny "$dtype" 4 10
    # The faster of the two in each type, with frozen experts; transformers itself takes grouped_mm in both.
    experts=grouped_mm
    [ "$dtype" = f32 ] && experts=eager
    line moe-small "$dtype" 4 6 --torch-experts "$experts"
    line 135m "$dtype" 2 6
    line 0.6b "$dtype" 1 3
done
"$PYTHON" scripts/bench_table.py "$out" --binary "$BINARY"
cat "$out/results.md"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
