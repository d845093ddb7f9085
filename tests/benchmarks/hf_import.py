"""Imports a synthetic DeepSeek-style folder and measures rate and memory; plain copying beside it.

    python hf_import.py HONE DIR [--gb 20] [--rounds 2] [--fp8]        needs about 2.2 times that much room in DIR

HONE is the program. A round reads and writes the folder's bytes plainly (8 MB at a time, one fsync a file) and
then runs `hone import` on it, each with nothing of the folder in the page cache; a last round exports. What is
written is removed. Prints one JSON object; rates are bytes of the folder a second.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import time

HIDDEN, EXPERTS, MOE, VOCAB, HEADS = 2048, 64, 1408, 102400, 16
NOPE, ROPE, VALUE, KV_RANK = 128, 64, 128, 512
CHUNK = 8 << 20
SHARD = 4 << 30


def config(layers, fp8):
    c = dict(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", hidden_size=HIDDEN,
             intermediate_size=10944, num_hidden_layers=layers, num_attention_heads=HEADS,
             num_key_value_heads=HEADS, vocab_size=VOCAB, max_position_embeddings=4096, rms_norm_eps=1e-6,
             first_k_dense_replace=1, n_routed_experts=EXPERTS, n_shared_experts=2, num_experts_per_tok=6,
             n_group=1, topk_group=1, moe_intermediate_size=MOE, norm_topk_prob=True,
             routed_scaling_factor=1.0, q_lora_rank=None, kv_lora_rank=KV_RANK, qk_nope_head_dim=NOPE,
             qk_rope_head_dim=ROPE, v_head_dim=VALUE, num_nextn_predict_layers=0, hidden_act="silu",
             tie_word_embeddings=False, rope_theta=10000.0, torch_dtype="bfloat16")
    if fp8:
        c["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    return c


def mlp(prefix, width):
    yield prefix + "gate_proj.weight", (width, HIDDEN)
    yield prefix + "up_proj.weight", (width, HIDDEN)
    yield prefix + "down_proj.weight", (HIDDEN, width)


def layer(i):
    p = f"model.layers.{i}."
    yield p + "input_layernorm.weight", (HIDDEN,)
    yield p + "post_attention_layernorm.weight", (HIDDEN,)
    a = p + "self_attn."
    yield a + "q_proj.weight", (HEADS * (NOPE + ROPE), HIDDEN)
    yield a + "kv_a_proj_with_mqa.weight", (KV_RANK + ROPE, HIDDEN)
    yield a + "kv_a_layernorm.weight", (KV_RANK,)
    yield a + "kv_b_proj.weight", (HEADS * (NOPE + VALUE), KV_RANK)
    yield a + "o_proj.weight", (HIDDEN, HEADS * VALUE)
    if i == 0:
        yield from mlp(p + "mlp.", 10944)
        return
    yield p + "mlp.gate.weight", (EXPERTS, HIDDEN)
    yield p + "mlp.gate.e_score_correction_bias", (EXPERTS,)
    for e in range(EXPERTS):
        yield from mlp(f"{p}mlp.experts.{e}.", MOE)
    yield from mlp(p + "mlp.shared_experts.", 2 * MOE)


def tensors(layers, fp8):
    """(name, type, shape, bytes)"""
    def all_names():
        yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
        for i in range(layers):
            yield from layer(i)
        yield "model.norm.weight", (HIDDEN,)
        yield "lm_head.weight", (VOCAB, HIDDEN)
    for name, shape in all_names():
        size = 1
        for n in shape:
            size *= n
        if name.endswith("bias"):
            yield name, "F32", shape, 4 * size
        elif fp8 and "_proj" in name:
            blocks = tuple(-(-n // 128) for n in shape)
            yield name, "F8_E4M3", shape, size
            yield name + "_scale_inv", "F32", blocks, 4 * blocks[0] * blocks[1]
        else:
            yield name, "BF16", shape, 2 * size


def write_shard(path, entries, noise):
    header, at = {}, 0
    for name, dtype, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i, (name, dtype, _, size) in enumerate(entries):
            if dtype == "F32":  # ones: a factor, or a bias
                f.write(struct.pack("<f", 1.0) * (size // 4))
                continue
            begin = (i * 4096) % CHUNK
            while size > 0:
                n = min(size, CHUNK - begin)
                f.write(noise[begin:begin + n])
                size, begin = size - n, 0
        os.fsync(f.fileno())


def make_folder(folder, gigabytes, fp8):
    os.makedirs(folder)
    def size(n):
        return sum(t[3] for t in tensors(n, fp8))
    layers = max(2, 2 + int((gigabytes * 1e9 - size(2)) // (size(3) - size(2))))
    noise = memoryview(os.urandom(CHUNK))
    shards, total, in_shard = [[]], 0, 0
    for t in tensors(layers, fp8):
        if in_shard + t[3] > SHARD:
            shards.append([])
            in_shard = 0
        shards[-1].append(t)
        in_shard += t[3]
        total += t[3]
    weight_map = {}
    for i, entries in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):06}.safetensors"
        write_shard(os.path.join(folder, file), entries, noise)
        weight_map.update({t[0]: file for t in entries})
    for name, value in {"config.json": config(layers, fp8),
                        "model.safetensors.index.json": {"metadata": {"total_size": total},
                                                         "weight_map": weight_map}}.items():
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f)
    return max(t[3] * (2 if t[1] == "F8_E4M3" else 1) for t in tensors(layers, fp8)), total


def forget(folder):
    """Drops a folder's pages from the page cache."""
    for root, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(root, file), "rb") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_plainly(source, target):
    os.makedirs(target)
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    start = time.monotonic()
    for file in sorted(os.listdir(source)):
        with open(os.path.join(source, file), "rb", buffering=0) as a, \
                open(os.path.join(target, file), "wb", buffering=0) as b:
            while n := a.readinto(buffer):
                b.write(view[:n])
            os.fsync(b.fileno())
    return time.monotonic() - start


def run_hone(command):
    """(seconds, peak bytes of memory, mapped files included)"""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    return time.monotonic() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hone")
    parser.add_argument("dir")
    parser.add_argument("--gb", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fp8", action="store_true")
    args = parser.parse_args()
    root = os.path.join(args.dir, "hone-hf-import")
    source, target, checkpoint = (os.path.join(root, n) for n in ("hf", "plain", "checkpoint"))
    try:
        largest, total = make_folder(source, args.gb, args.fp8)
        plain, imported, peaks = [], [], []
        for i in range(args.rounds):
            forget(source)
            plain.append(copy_plainly(source, target))
            shutil.rmtree(target)
            forget(source)
            if os.path.exists(checkpoint):
                shutil.rmtree(checkpoint)
            seconds, peak = run_hone([args.hone, "import", source, checkpoint])
            imported.append(seconds)
            peaks.append(peak)
        shutil.rmtree(source)  # room for what is exported
        forget(checkpoint)
        export_seconds, export_peak = run_hone([args.hone, "export", checkpoint, target])
        print(json.dumps({
            "bytes": total, "largest_tensor": largest,
            "plain_bytes_per_second": [round(total / s) for s in plain],
            "import_bytes_per_second": [round(total / s) for s in imported],
            "import_of_plain": [round(p / s, 3) for p, s in zip(plain, imported)],
            "import_peak_bytes": max(peaks), "export_bytes_per_second": round(total / export_seconds),
            "export_peak_bytes": export_peak, "bound_bytes": 2 * largest + 200_000_000}, indent=1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
