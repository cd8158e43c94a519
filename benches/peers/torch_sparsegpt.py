#!/usr/bin/env python3
"""The peer of `perp-engine prune --criterion sparsegpt`: the published algorithm over transformers, in f32 on the CPU.

Decoder layer by decoder layer: sums H of every linear layer in a hook, one window at a time, prunes, runs the layer again.
Windows are random tokens: time does not depend on them.

    benches/peers/torch_sparsegpt.py --model DIR --samples 128 --seq-len 2048 --threads 2
"""
import argparse
import time

import torch
from torch import nn
from transformers import AutoModelForCausalLM


def prune(linear: nn.Linear, h: torch.Tensor, sparsity: float, block: int = 128) -> None:
    w, cols = linear.weight.data.float(), linear.in_features
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(0.01 * h.diagonal().mean())
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for first in range(0, cols, block):
        last = min(first + block, cols)
        part, errors, within = w[:, first:last].clone(), torch.zeros(w.shape[0], last - first), u[first:last, first:last]
        score = part**2 / within.diagonal() ** 2
        gone = score <= score.flatten().kthvalue(int(score.numel() * sparsity)).values
        for j in range(last - first):
            kept = part[:, j].masked_fill(gone[:, j], 0)
            errors[:, j] = (part[:, j] - kept) / within[j, j]
            part[:, j:] -= errors[:, j, None] * within[j, j:]
            part[:, j] = kept
        w[:, first:last] = part
        w[:, last:] -= errors @ u[first:last, last:]
    linear.weight.data = w


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--samples", type=int, default=128)
    p.add_argument("--seq-len", type=int, default=2048)
    p.add_argument("--sparsity", type=float, default=0.5)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa").eval()
    decoder = getattr(model.model, "decoder", model.model)
    ids = torch.randint(3, model.config.vocab_size, (args.samples, args.seq_len), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    calls = []
    stop = decoder.layers[0].register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
    layers, decoder.layers = decoder.layers, decoder.layers[:1]
    for window in ids:
        decoder(input_ids=window[None], use_cache=False)
    decoder.layers = layers
    stop.remove()
    hidden, others = [a[0] if a else k["hidden_states"] for a, k in calls], {k: v for k, v in calls[0][1].items() if k != "hidden_states"}

    def run(layer: nn.Module) -> list[torch.Tensor]:
        out = [layer(x, **others) for x in hidden]
        return [y[0] if isinstance(y, tuple) else y for y in out]

    summing = pruning = 0.0
    for layer in layers:
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        sums = {m: torch.zeros(m.in_features, m.in_features) for m in linears}
        def add(module: nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
            x = inputs[0].flatten(0, -2)
            sums[module].addmm_(x.T, x, alpha=2 / args.samples)

        handles = [m.register_forward_hook(add) for m in linears]
        begun = time.perf_counter()
        run(layer)
        summed = time.perf_counter()
        for handle in handles:
            handle.remove()
        for linear in linears:
            prune(linear, sums[linear], args.sparsity)
        pruned = time.perf_counter()
        summing, pruning = summing + summed - begun, pruning + pruned - summed
        hidden = run(layer)
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s: {summing:.1f} s with sums, {pruning:.1f} s of pruning, {seconds - summing - pruning:.1f} s without")


if __name__ == "__main__":
    main()
