#!/usr/bin/env python3
"""Checks that qwen-tune's GGUF files and block formats are, byte for byte, those of llama.cpp and of gguf-py.

    scripts/llama/install.sh target/llama.cpp
    pip install gguf numpy
    python scripts/check_gguf_blocks.py target/llama.cpp/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64

Blocks: --millions of numbers of many distributions are encoded by both, and compared; what ggml encoded, and random bytes,
are decoded by all three. Files: one that gguf-py wrote is read, written again, and must not differ; one divided into several
is read by gguf-py and by ggml. --file, which can be repeated, names a GGUF file of somebody else: every tensor of it is read
as gguf-py reads it, and it is written again without a difference in any tensor's bytes. --time prints numbers encoded and decoded per CPU second instead, each alone on one core.
Exit status 1 when anything differs.
"""
import argparse
import ctypes
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import gguf
import numpy as np

ROW = 4096
BOTH = "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K IQ4_NL MXFP4".split()
READ_ONLY = "Q2_K Q3_K IQ4_XS".split()


class Ggml:
    """The functions of ggml that blocks and files are held against."""

    def __init__(self, directory):
        self.lib = ctypes.CDLL(str(directory / "libggml-base.so"))
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
        self.lib.ggml_get_type_traits.restype = ctypes.c_void_p
        self.lib.gguf_init_from_file.restype = ctypes.c_void_p
        self.lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_bool, ctypes.c_void_p]
        self.lib.gguf_get_n_tensors.restype = ctypes.c_int64
        self.lib.gguf_get_n_tensors.argtypes = [ctypes.c_void_p]

    def encode(self, name, values):
        ty = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[ty]
        out = np.empty(values.size // block * size, np.uint8)
        written = self.lib.ggml_quantize_chunk(int(ty), values.ctypes.data, out.ctypes.data, 0, values.size // ROW, ROW, None)
        assert written == out.size, (name, written, out.size)
        return out

    def decode(self, name, data):
        ty = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[ty]
        # struct ggml_type_traits: name, block size, interleave, bytes, is_quantized, to_float.
        to_float = ctypes.cast(self.lib.ggml_get_type_traits(int(ty)) + 40, ctypes.POINTER(ctypes.c_void_p))[0]
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(to_float)
        out = np.empty(data.size // size * block, np.float32)
        function(data.ctypes.data, out.ctypes.data, out.size)
        return out

    def tensors(self, path):
        context = self.lib.gguf_init_from_file(str(path).encode(), True, None)
        if not context:
            raise SystemExit(f"{path}: refused by ggml")
        return self.lib.gguf_get_n_tensors(context)


class Ours:
    """The example program of the weights crate."""

    def __init__(self, program, directory):
        self.program, self.directory = program, directory

    def convert(self, verb, name, data, times=1):
        source, target = self.directory / "in", self.directory / "out"
        data.tofile(source)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([self.program, verb, name, source, target, str(times)], check=True, env=os.environ | {"RAYON_NUM_THREADS": "1"})
        self.seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return np.fromfile(target, np.uint8 if verb == "encode" else np.float32)

    def copy(self, source, target, *limit):
        subprocess.run([self.program, "copy", source, target, *map(str, limit)], check=True)


def distributions(rng, count):
    """Numbers as weights are and as they should never be; none is infinite or NaN."""
    def scaled(x, low, high):
        """Every 32 numbers at a size of their own."""
        return (x.reshape(-1, 32) * 2.0 ** rng.uniform(low, high, (x.size // 32, 1))).reshape(-1)

    normal = lambda: rng.standard_normal(count)
    outliers = normal()
    outliers[rng.integers(0, count, count // 100)] *= 1000
    sparse = normal() * (rng.random(count) < 0.05)
    near = np.repeat(rng.standard_normal(count // 32), 32).astype(np.float32).view(np.uint32) + rng.integers(0, 40, count).astype(np.uint32)
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    named = {
        "normal": normal() * 0.02, "uniform": rng.uniform(-1, 1, count), "laplace": rng.laplace(0, 0.1, count),
        "cauchy": rng.standard_cauchy(count), "positive": np.abs(normal()), "negative": -np.abs(normal()) - 1, "shifted": normal() * 1e-3 + 5,
        "outliers": outliers, "sparse": sparse, "zeros": np.where(rng.random(count) < 0.5, 0.0, -0.0),
        "zeros and one": (rng.random(count) < 1 / 256) * normal(), "signs": rng.choice([-1.0, 1.0], count), "few": rng.choice([-2.0, -0.5, 0.0, 0.25, 1.0], count),
        "constant": np.repeat(rng.standard_normal(count // 32), 32), "integers": rng.integers(-127, 128, count), "halves": rng.integers(-255, 256, count) / 2,
        "mixed sizes": scaled(normal(), -20, 20), "small": scaled(normal(), -126, -100), "subnormal": scaled(normal(), -150, -120),
        "half subnormal": scaled(normal(), -30, -10), "1e-15": scaled(normal(), -52, -48), "large": scaled(normal(), 10, 30), "huge": scaled(normal(), 100, 126),
        "overflow": np.clip(scaled(normal(), 120, 128), -3.4e38, 3.4e38), "near": np.nan_to_num(near.view(np.float32)), "bits": np.nan_to_num(bits, nan=1.0, posinf=3.4e38, neginf=-3.4e38),
        "bf16": (normal().astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32), "f16": normal().astype(np.float16), "ramp": np.tile(np.arange(count // 8) % 256 / 256 - 0.25, 8),
        "near powers": np.float32(2.0) ** rng.integers(-40, 40, count) * (1 - 6e-8 * rng.integers(-3, 4, count)),
    }
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in named.items()}


def same(ours, theirs):
    """Equal bits, where NaN is any NaN."""
    if ours.dtype == np.uint8:
        return np.array_equal(ours, theirs)
    return ours.size == theirs.size and bool(np.all((ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))))


def check_blocks(ggml, ours, millions):
    rng = np.random.default_rng(7)
    names = len(distributions(rng, ROW))
    named = distributions(rng, int(millions * 1e6) // names // ROW * ROW)
    values = np.concatenate(list(named.values()))
    assert np.isfinite(values).all()
    wrong = 0
    for ty in BOTH + READ_ONLY:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[ty]]
        theirs = ggml.encode(ty, values)
        if ty in BOTH:
            mine = ours.convert("encode", ty, values)
            differ = (mine.reshape(-1, size) != theirs.reshape(-1, size)).any(1)
            for name, differ in zip(named, differ.reshape(len(named), -1)):
                if differ.any():
                    wrong += 1
                    print(f"{ty}: {differ.sum()} of {differ.size} blocks of `{name}` differ, first {differ.argmax()}")
        data = np.concatenate([theirs, rng.integers(0, 256, size * 20000).astype(np.uint8)])
        mine, floats = ours.convert("decode", ty, data), ggml.decode(ty, data)
        with np.errstate(all="ignore"):
            python = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[ty]).astype(np.float32).reshape(-1)
        for other, floats in (("ggml", floats), ("gguf-py", python)):
            if not same(mine, floats):
                wrong += 1
                at = np.flatnonzero(~((mine.view(np.uint32) == floats.view(np.uint32)) | (np.isnan(mine) & np.isnan(floats))))
                print(f"{ty}: {at.size} numbers are not decoded as by {other}, first {at[0]}: {mine[at[0]]} {floats[at[0]]}")
        print(f"{ty}: {values.size / 1e6:.1f} M numbers in {len(named)} distributions, {mine.size / 1e6:.1f} M decoded", flush=True)
    return wrong


def check_files(ggml, ours, directory):
    rng = np.random.default_rng(8)
    theirs = directory / "theirs.gguf"
    writer = gguf.GGUFWriter(theirs, "qwen3")
    writer.add_uint8("a.u8", 200), writer.add_int8("a.i8", -100), writer.add_uint16("a.u16", 60000), writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4000000000), writer.add_int32("a.i32", -2000000000), writer.add_float32("a.f32", 0.1), writer.add_bool("a.bool", True)
    writer.add_uint64("a.u64", 2**63 + 1), writer.add_int64("a.i64", -(2**62)), writer.add_float64("a.f64", 0.1), writer.add_string("a.string", "Ġäß\n" * 9)
    writer.add_array("b.strings", [f"token {n} Ġ" for n in range(1500)]), writer.add_array("b.ints", list(range(-5, 20))), writer.add_array("b.bools", [True, False])
    writer.add_array("b.floats", [0.5, 1.5, -2.0])
    shapes = {"norm": (7,), "matrix": (50, 256), "experts": (3, 4, 64), "four": (2, 3, 2, 32)}
    for number, ty in enumerate(["F32"] + BOTH):
        for name, shape in shapes.items():
            if ty == "F32" or (shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[ty]][0] == 0 and number):
                x = rng.standard_normal(shape).astype(np.float32)
                if ty != "F32":
                    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[ty]]
                    x = rng.integers(0, 256, (*shape[:-1], shape[-1] // block * size)).astype(np.uint8)
                writer.add_tensor(f"{ty}.{name}", x, raw_dtype=gguf.GGMLQuantizationType[ty])
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    ours.copy(theirs, directory / "ours.gguf")
    wrong = int(theirs.read_bytes() != (directory / "ours.gguf").read_bytes())
    count = ggml.tensors(directory / "ours.gguf")

    ours.copy(theirs, directory / "divided.gguf", 60000)
    shards = sorted(directory.glob("divided-*.gguf"))
    found = {t.name: t for shard in shards for t in gguf.GGUFReader(shard).tensors}
    whole = {t.name: t for t in gguf.GGUFReader(theirs).tensors}
    wrong += int(list(found) != list(whole) or any(found[n].data.tobytes() != whole[n].data.tobytes() for n in whole))
    wrong += int(sum(ggml.tensors(shard) for shard in shards) != count or count != len(whole))
    wrong += int(any(shard.stat().st_size > 60000 for shard in shards) or len(shards) < 3)
    ours.copy(shards[1], directory / "joined.gguf")
    wrong += int(theirs.read_bytes() != (directory / "joined.gguf").read_bytes())
    print(f"files: {count} tensors, {len(shards)} shards, {'equal' if not wrong else 'different'}")
    return wrong


def check_file(ours, path, directory):
    """All tensors of a file, of which gguf-py can read every type."""
    subprocess.run([ours.program, "values", path, directory / "values"], check=True)
    ours.copy(path, directory / "again.gguf")
    again = {tensor.name: tensor for tensor in gguf.GGUFReader(directory / "again.gguf").tensors}
    values, begin, wrong, counts = np.memmap(directory / "values", np.float32, "r"), 0, 0, {}
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(-1)
        mine = np.ascontiguousarray(values[begin : begin + theirs.size])
        begin += theirs.size
        if not same(mine, theirs) or tensor.data.tobytes() != again[tensor.name].data.tobytes():
            wrong += 1
            print(f"{path.name}: {tensor.name}, {tensor.tensor_type.name}, is read or written otherwise than by gguf-py")
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    wrong += begin != values.size
    print(f"{path.name}: {begin / 1e6:.1f} M numbers in tensors of {counts}, {'equal' if not wrong else 'different'}", flush=True)
    return wrong


def timed(f, seconds=0.5):
    """CPU seconds of one call, over at least `seconds` of them."""
    f()
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        f()
        count += 1
    return (time.process_time() - start) / count


def print_times(ggml, ours):
    values = (np.random.default_rng(9).standard_normal(64 * ROW) * 0.02).astype(np.float32)
    print("million numbers per CPU second, rows of 4096, one thread")
    print(f"{'':8}{'encode':>9}{'ggml':>8}{'gguf-py':>9}{'ratio':>7}{'decode':>10}{'ggml':>8}{'gguf-py':>9}{'ratio':>7}")
    for ty in BOTH + READ_ONLY:
        kind = gguf.GGMLQuantizationType[ty]
        data = ggml.encode(ty, values)
        rate = lambda seconds: values.size / seconds / 1e6

        def mine(verb, x):
            few, many = (4, 44) if verb == "encode" and ("_K" in ty or "IQ" in ty) else (20, 620)
            ours.convert(verb, ty, x, few)
            base = ours.seconds
            ours.convert(verb, ty, x, many)
            return rate((ours.seconds - base) / (many - few))

        encode = [mine("encode", values) if ty in BOTH else 0, rate(timed(lambda: ggml.encode(ty, values)))]
        try:
            encode.append(rate(timed(lambda: gguf.quants.quantize(values.reshape(-1, ROW), kind))))
        except NotImplementedError:
            encode.append(0)
        decode = [mine("decode", data), rate(timed(lambda: ggml.decode(ty, data))), rate(timed(lambda: gguf.quants.dequantize(data, kind)))]
        print(f"{ty:8}" + "".join(f"{a:9.0f}{b:8.0f}{c:9.0f}{a / b:7.1f} " for a, b, c in (encode, decode)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=pathlib.Path, help="directory with libggml-base.so")
    parser.add_argument("--millions", type=float, default=8, help="numbers to encode (default 8 million)")
    parser.add_argument("--file", type=pathlib.Path, action="append", default=[], help="a GGUF file to read and write again")
    parser.add_argument("--time", action="store_true", help="print speeds instead")
    args = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "qwen-tune-weights", "--example", "blocks"], cwd=root, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    ggml = Ggml(args.llama_cpp)
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        ours = Ours(target / "release/examples/blocks", directory)
        if args.time:
            return print_times(ggml, ours)
        wrong = check_blocks(ggml, ours, args.millions) + check_files(ggml, ours, directory)
        wrong += sum(check_file(ours, path, directory) for path in args.file)
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
