#!/usr/bin/env python3
"""The peer's dense products: x·Wᵀ and dy·W in f32 at given shapes, as torch (MKL, where it has it) computes them.

Prints one JSON line: for each ROWSxCOLS the seconds of every repetition, forward and backward.

    benches/peers/torch_products.py --tokens 1024 --threads 2 768x768 3072x768
"""
import argparse
import json
import time

import torch

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("shapes", nargs="+")
p.add_argument("--tokens", type=int, default=1024)
p.add_argument("--steps", type=int, default=5)
p.add_argument("--threads", type=int, default=2)
a = p.parse_args()
torch.set_num_threads(a.threads)
times = {}
for shape in a.shapes:
    rows, cols = map(int, shape.split("x"))
    w, x, dy = torch.randn(rows, cols), torch.randn(a.tokens, cols), torch.randn(a.tokens, rows)
    forward, backward = [], []
    for repetition in range(a.steps + 1):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        middle = time.perf_counter()
        dy @ w
        end = time.perf_counter()
        if repetition:
            forward.append(middle - start)
            backward.append(end - middle)
    times[shape] = {"forward": forward, "backward": backward}
print(json.dumps(times))
