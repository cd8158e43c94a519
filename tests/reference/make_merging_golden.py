#!/usr/bin/env python3
"""Makes the golden files of adapters that merge without losing a zero: losses, logits and gradients of mask-lora, scale-lora and
lora-prune, and the logits of what the last merges into.

The effective weights, W + s·M⊙(BA), W⊙(BA) and W + s·BA, are written out as torch parametrizations of the dense-with-zeros weights,
over the tiny models that make_golden.py made, and differentiated by autograd. lora-prune merges into W + s·M⊙(BA); the head into
W + s·BA always. Everything runs in float64; unpatched float32 must agree.

    pip install -r tests/reference/requirements.txt
    tests/reference/make_merging_golden.py [--out tests/golden]
"""
import argparse
import math
import pathlib
import warnings

import torch
import transformers
from make_golden import ALPHA, PATTERNS, RANK, Tensors, deviation, load, loss_of, prunable, prune, save, seeded, trainable
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

MODELS, WITH_PATTERNS = ["opt-pre", "opt-post", "llama-gqa"], ["unstructured", "2of4"]
METHODS = ["mask-lora", "scale-lora", "lora-prune"]


class Adapter(nn.Module):
    """W to W + s·BA masked, scaled, or as it is; `merged` has what it merges into."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor, method: str):
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        self.mask, self.method, self.merged = mask, method, False

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        product = self.lora_B @ self.lora_A
        if self.method == "scale-lora":
            return w * product
        masked = self.method == "mask-lora" or self.merged
        return w + ALPHA / RANK * (self.mask * product if masked else product)


def initial(name: str, linear: nn.Linear, method: str, g: torch.Generator) -> Tensors:
    """Factors as training finds them after a while: random, of scale-lora around 1/sqrt(r)."""
    rows, cols = linear.weight.shape
    a, b = torch.randn(RANK, cols, generator=g), torch.randn(rows, RANK, generator=g)
    if method == "scale-lora" and name != "lm_head":
        a, b = [(1 + 0.3 * x) / math.sqrt(RANK) for x in (a, b)]
    else:
        a, b = [x * 0.5 / math.sqrt(cols) for x in (a, b)]
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}


def plain(name: str) -> str:
    for factor in ("lora_A", "lora_B"):
        name = name.replace(f".parametrizations.weight.0.{factor}", f".{factor}.weight")
    return name


def gradients(folder: pathlib.Path, pattern, method: str, ids: torch.Tensor, lora: Tensors, dtype: torch.dtype) -> Tensors:
    model = load(folder, dtype)
    masks = prune(model, pattern)
    for name, linear in (prunable(model) | {"lm_head": model.lm_head}).items():
        a, b = (lora[f"{name}.lora_{factor}.weight"].to(dtype) for factor in "AB")
        mask = masks.get(f"{name}.weight", torch.ones(linear.weight.shape, dtype=torch.bool))
        adapter = Adapter(a, b, mask, method if name != "lm_head" else "lora")
        parametrize.register_parametrization(linear, "weight", adapter)
    params = trainable(model, "perp")
    logits = model(input_ids=ids).logits
    loss = loss_of(logits, ids)
    loss.backward()
    out = {"loss": loss.detach().reshape(1), "logits": logits.detach()}
    if method == "lora-prune":
        for module in model.modules():
            if isinstance(module, Adapter):
                module.merged = True
        with torch.no_grad():
            out["merged.logits"] = model(input_ids=ids).logits
    return out | {f"grad.{plain(name)}": p.grad for name, p in params.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "golden")
    out = p.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    ids = load_file(out / "inputs.safetensors")["input_ids"]
    for name in MODELS:
        folder = out / name
        model = load(folder, torch.float32)
        linears = prunable(model) | {"lm_head": model.lm_head}
        for method in METHODS:
            g = seeded(name, method)
            lora = {}
            for module, linear in sorted(linears.items()):
                lora |= initial(module, linear, method, g)
            for pattern in WITH_PATTERNS:
                result = gradients(folder, PATTERNS[pattern], method, ids, lora, torch.float64)
                result32 = gradients(folder, PATTERNS[pattern], method, ids, lora, torch.float32)
                print(name, method, pattern, result["loss"].item(), deviation(result, result32))
                save(folder / f"{pattern}.{method}.safetensors", result | {f"initial.{n}": t for n, t in lora.items()})


if __name__ == "__main__":
    main()
