#!/usr/bin/env python3
"""Reads a packed model as docs/formats.md describes it, and holds it against its dense twin, bit for bit.

    perp-engine convert --model DENSE --out PACKED --out-format packed
    tests/interop/read_packed.py --packed PACKED --dense DENSE
"""
import argparse
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file


def dense(file):
    tensors = load_file(file)
    for name in [n.removesuffix(".bits") for n in tensors if n.endswith(".bits")]:
        rows, cols = tensors.pop(f"{name}.shape")
        bits, values = tensors.pop(f"{name}.bits"), tensors.pop(f"{name}.values")
        tensors.pop(f"{name}.starts")
        kept = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :cols].astype(bool)
        matrix = np.zeros((rows, cols), values.dtype)
        matrix[kept] = values
        tensors[name] = matrix
    return tensors


def load(folder, stem, read):
    tensors = {}
    for file in sorted(folder.glob(f"{stem}*.safetensors")):
        tensors |= read(file)
    return tensors


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--packed", type=pathlib.Path, required=True)
p.add_argument("--dense", type=pathlib.Path, required=True)
a = p.parse_args()
ours, want = load(a.packed, "model-packed", dense), load(a.dense, "model", load_file)
if ours.keys() != want.keys():
    sys.exit(f"other tensors: {sorted(ours.keys() ^ want.keys())}")
for name, tensor in want.items():
    if tensor.dtype != ours[name].dtype or tensor.shape != ours[name].shape or tensor.tobytes() != ours[name].tobytes():
        sys.exit(f"{name} differs")
size = lambda folder: sum(file.stat().st_size for file in folder.glob("*.safetensors"))
print(f"{len(want)} tensors are the same; {size(a.packed)} bytes packed, {size(a.dense)} dense")
