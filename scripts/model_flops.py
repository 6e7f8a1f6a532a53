"""What a training step asks of the machine, counted on the tensors of a checkpoint and of its adapter."""
import json
import pathlib
import struct

CHUNK = 64  # tokens that the gated delta rule takes at a time


def headers(directory):
    """Name and shape of every tensor in the safetensors files of a directory."""
    for file in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with open(file, "rb") as f:
            entries = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        yield from ((name, e["shape"]) for name, e in entries.items() if name != "__metadata__")


def product(shape):
    out = 1
    for n in shape:
        out *= n
    return out


def flops_per_token(model, adapter, length):
    """Operations a token of a step whose base is frozen: 4N + 6P + 3(A + G).

    N are the weights of the matrix products that run for a token (no lookup; the active experts only), twice forward and twice for the
    gradient of their input; P those of adapters, with their own gradient; A what attention does over `length` tokens, the causal half;
    G what the chunks of the gated delta rule do.
    """
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    config = config.get("text_config") or config
    active = config.get("num_experts_per_tok", 1) / config.get("num_experts", 1)
    share = lambda name: active if ".experts." in name else 1
    weights = adapters = 0
    for name, shape in headers(model):
        outside = name.startswith("mtp.") or ".visual." in name or name.startswith("visual.")
        if outside or len(shape) < 2 or "conv1d" in name:
            continue
        if "embed_tokens" in name:
            weights += product(shape) if config["tie_word_embeddings"] else 0
        else:
            weights += product(shape) * share(name)
    for name, shape in headers(adapter):
        adapters += product(shape) * share(name)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kinds = config.get("layer_types") or ["full_attention"] * layers
    dim = config.get("head_dim") or config["hidden_size"] // heads
    recurrent = kinds.count("linear_attention")
    core = (layers - recurrent) * 2 * heads * dim * length
    if recurrent:
        keys, values = config["linear_key_head_dim"], config["linear_value_head_dim"]
        head = 6 * keys * values + CHUNK * (3 * keys + 2 * values) + CHUNK**2
        core += recurrent * config["linear_num_value_heads"] * head
    return 4 * weights + 6 * adapters + 3 * core
