"""PyTorch and transformers on the GPU, at what gpu_bench did: the other side of gpu_check's ratios.

    python torch_gpu.py SHAPES.json GPU_BENCH.jsonl [--device cpu]

SHAPES.json is what `gpu_bench --shapes` wrote, GPU_BENCH.jsonl what it printed. Training is bf16 with
compiled blocks and loss, scaled_dot_product_attention and fused AdamW, twice: with weights in bf16, which
is PyTorch's fastest and smallest form, and with f32 weights under autocast, which keeps what hone's master
weights keep. Decoding is transformers' generate from prompts almost as long as the context. Prints
one JSON object a line: {"name", "value", "unit", "wanted"}. `--device cpu` with the shapes of `--small`
tests this program; its figures mean nothing.
"""
import argparse
import contextlib
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [here, os.path.join(here, "..", "benchmarks")]
from torch_train import Model  # noqa: E402

NEW_TOKENS = 32


def report(name, value, unit, wanted=""):
    print(json.dumps({"name": name, "value": value, "unit": unit, "wanted": wanted}), flush=True)


def fastest(device, rounds, work):
    best = float("inf")
    for i in range(rounds + 2):  # two to compile and to warm up
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            best = min(best, time.perf_counter() - begin)
    return best


def train(shapes, device, autocast):
    m, length, sequences = shapes["model"], shapes["sequence"], shapes["sequences"]
    torch.manual_seed(1)
    with torch.device(device):
        model = Model(m).to(torch.float32 if autocast else torch.bfloat16)
        for p in model.parameters():
            nn.init.normal_(p, std=0.02) if p.dim() > 1 else None
        tokens = torch.randint(0, m["vocab_size"], (sequences, length))
        targets = torch.randint(0, m["vocab_size"], (sequences, length))
        angle = torch.outer(torch.arange(length).float(),
                            1e6 ** (-torch.arange(0, m["head_dim"], 2).float() / m["head_dim"]))
        cos, sin = (f.to(torch.float32 if autocast else torch.bfloat16) for f in (angle.cos(), angle.sin()))
    for block in model.blocks:
        block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    @torch.compile
    def loss_of(logits, targets):
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = loss_of(model(tokens, cos, sin), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = fastest(device, shapes["rounds"], step)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return length * sequences / seconds, peak


def generate(shapes, device):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    m, batch = shapes["model"], shapes["decode_sequences"]
    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=m["hidden_size"], intermediate_size=m["intermediate_size"], num_hidden_layers=m["layers"],
        num_attention_heads=m["heads"], num_key_value_heads=m["kv_heads"], vocab_size=m["vocab_size"],
        max_position_embeddings=2 * shapes["decode_length"], tie_word_embeddings=True, attn_implementation="sdpa")
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
        prompts = torch.randint(0, m["vocab_size"], (batch, shapes["decode_length"] - NEW_TOKENS))
        mask = torch.ones_like(prompts)

    def seconds_of(tokens):
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompts, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True,
                           temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=None)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    seconds_of(2)
    seconds = min(seconds_of(NEW_TOKENS) - seconds_of(1) for _ in range(2))
    return batch * (NEW_TOKENS - 1) / seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes")
    parser.add_argument("gpu_bench")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    with open(args.shapes) as file:
        shapes = json.load(file)
    with open(args.gpu_bench) as file:
        ours = {row["name"]: row["value"] for row in map(json.loads, file)}

    def compare(name, mine, theirs, unit, wanted):
        if mine in ours:  # else gpu_bench failed at it, and said so
            report(name, ours[mine] / theirs, unit, wanted)

    for form, autocast in (("bf16", False), ("autocast", True)):
        rate, peak = train(shapes, args.device, autocast)
        report(f"torch.train.{form}", rate, "tokens/s")
        report(f"torch.train.{form}.peak_memory", peak / 1e9, "GB")
        compare(f"qwen2_1.5b.over_torch.{form}", "qwen2_1.5b.bf16.tokens", rate, "times PyTorch", ">= 1.15")
        if peak:
            compare(f"qwen2_1.5b.memory_over_torch.{form}", "qwen2_1.5b.bf16.peak_memory", peak / 1e9,
                    "times PyTorch's", "<= 1")
        torch.compiler.reset()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    rate = generate(shapes, args.device)
    report("transformers.generate", rate, "tokens/s")
    for mode in ("fast", "batch_invariant"):
        compare(f"decode.over_generate.{mode}", f"decode.tokens.{mode}", rate, "times generate", ">= 5")


main()
