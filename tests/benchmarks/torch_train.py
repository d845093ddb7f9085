"""One training step of hone's benchmark models in PyTorch eager, as `hone bench train` runs it.

The same weights' shapes, threads and tokens; attention is scaled_dot_product_attention(is_causal=True),
the loss F.cross_entropy, the optimizer fused AdamW with the gradients' global norm clipped. Sequences of
one length are a [sequences, length] batch, PyTorch's fastest way to hold them. Others are a pack, as hone
has them; it has no fused attention over packs on CPUs, so it attends in each of the ways below, and the
fastest counts.

    python torch_train.py MODEL.json     what `hone bench train --json` printed: shapes, threads, batch

Prints one JSON object.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class RmsNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def attention(q, k, v, **mask):
    return F.scaled_dot_product_attention(q, k, v, **mask, enable_gqa=q.shape[1] != k.shape[1])


def batched(q, k, v, lengths=None):
    return attention(q, k, v, is_causal=True)


def one_by_one(q, k, v, lengths):
    """Each sequence of a pack [1, heads, tokens, dim] by itself."""
    parts = zip(*(x.split(lengths, 2) for x in (q, k, v)))
    return torch.cat([batched(*part) for part in parts], 2)


def padded(q, k, v, lengths):
    """All sequences of a pack at once, each as long as the longest."""
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [sequences, longest]

    def pad(x):
        room = x.new_zeros(*inside.shape, x.shape[1], x.shape[3])
        return room.index_put((inside,), x[0].transpose(0, 1)).transpose(1, 2)

    a = batched(pad(q), pad(k), pad(v))
    return a.transpose(1, 2)[inside].transpose(0, 1)[None]


def masked(q, k, v, lengths):
    """All tokens at once, with a mask of blocks."""
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return attention(q, k, v, attn_mask=(of[:, None] == of).tril())


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        d, f, self.heads, self.groups = m["hidden_size"], m["intermediate_size"], m["heads"], m["kv_heads"]
        self.dim = m["head_dim"]
        self.norm1, self.norm2 = RmsNorm(d, m["eps"]), RmsNorm(d, m["eps"])
        bias = m.get("attention_bias", False)
        self.q = nn.Linear(d, self.heads * self.dim, bias=bias)
        self.k = nn.Linear(d, self.groups * self.dim, bias=bias)
        self.v = nn.Linear(d, self.groups * self.dim, bias=bias)
        self.o = nn.Linear(self.heads * self.dim, d, bias=False)
        self.gate, self.up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.down = nn.Linear(f, d, bias=False)

    def forward(self, x, cos, sin, attend):
        s, t, _ = x.shape
        n = self.norm1(x)
        q = rotate(self.q(n).view(s, t, self.heads, self.dim).transpose(1, 2), cos, sin)
        k = rotate(self.k(n).view(s, t, self.groups, self.dim).transpose(1, 2), cos, sin)
        v = self.v(n).view(s, t, self.groups, self.dim).transpose(1, 2)
        a = attend(q, k, v)
        x = x + self.o(a.transpose(1, 2).reshape(s, t, -1))
        n = self.norm2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Model(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.embedding = nn.Embedding(m["vocab_size"], m["hidden_size"])
        self.blocks = nn.ModuleList(Block(m) for _ in range(m["layers"]))
        self.norm = RmsNorm(m["hidden_size"], m["eps"])

    def forward(self, tokens, cos, sin, attend=batched):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return F.linear(self.norm(x), self.embedding.weight)  # tied


def main():
    with open(sys.argv[1]) as file:
        run = json.load(file)
    m, threads = run["model"], run["threads"]
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    lengths = run["lengths"]
    even = min(lengths) == max(lengths)
    shape = (len(lengths), lengths[0]) if even else (1, sum(lengths))
    model = Model(m)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, m["vocab_size"], shape)
    targets = torch.randint(0, m["vocab_size"], shape)
    position = torch.cat([torch.arange(n) for n in (lengths[:1] if even else lengths)]).float()
    angle = torch.outer(position, 1e4 ** (-torch.arange(0, m["head_dim"], 2) / m["head_dim"]))
    cos, sin = angle.cos(), angle.sin()

    def step(attend):
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens, cos, sin, lambda q, k, v: attend(q, k, v, lengths))
        F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    now = time.process_time if run["clock"] == "cpu" else time.perf_counter
    seconds = {}
    for attend in (batched,) if even else (one_by_one, padded, masked):
        step(attend)
        seconds[attend.__name__] = []
        for _ in range(run["steps"]):
            begin = now()
            step(attend)
            seconds[attend.__name__].append(now() - begin)
    form = min(seconds, key=lambda name: min(seconds[name]))
    count = sum(lengths)
    print(json.dumps({
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "form": form,
        "tokens_per_second": count / min(seconds[form]),
        "tokens_per_second_median": count / statistics.median(seconds[form]),
        "tokens_per_second_of_forms": {name: count / min(s) for name, s in seconds.items()},
    }))


if __name__ == "__main__":
    main()
