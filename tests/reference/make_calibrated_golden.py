#!/usr/bin/env python3
"""Makes the golden files of pruning with calibration: Wanda's and SparseGPT's masks, costs and layer errors.

Both are written here from their papers (arXiv 2306.11695, equation 1; arXiv 2301.00774, algorithm 1), with the counts and
the rule for ties of docs/method.md, over the tiny models that make_golden.py made. Everything runs in float64. SparseGPT
inverts its Hessian and factors the inverse, as published; the engine does not, so the two check each other.

    pip install -r tests/reference/requirements.txt
    tests/reference/make_calibrated_golden.py [--out tests/golden]
"""
import argparse
import math
import pathlib
import warnings

import torch
import transformers
from make_golden import CONFIGS, FIRST_ID, VOCAB, Tensors, load, prunable, save, seeded
from torch import nn

SAMPLES, TOKENS = 8, 24
BLOCK, DAMPENING = 128, 0.01
# name -> (n, m) of n:m, or a sparsity
PATTERNS = {"unstructured": 0.5, "2of4": (2, 4), "4of8": (4, 8), "5of16": (5, 16)}
# The layer has groups of 5, which no block of 128 columns holds whole.
LAYER_PATTERNS = {"unstructured": 0.6, "2of4": (2, 4), "4of8": (4, 8), "3of5": (3, 5)}
LAYER_ROWS, LAYER_COLS, LAYER_SEQUENCES, LAYER_TOKENS, DEAD = 40, 320, 6, 80, 17


def keep_largest(score: torch.Tensor, removed: int) -> torch.Tensor:
    """Along the last dimension, True for all but the `removed` smallest; among equals the lower index goes first."""
    keep = torch.ones(score.shape, dtype=torch.bool)
    return keep.scatter_(-1, score.argsort(dim=-1, stable=True)[..., :removed], False)


def smallest_gap(score: torch.Tensor, keep: torch.Tensor) -> float:
    """How far, relatively, the smallest score kept is from the largest removed, at the closest: what rounding may cost."""
    kept = score.masked_fill(~keep, math.inf).amin(-1)
    removed = score.masked_fill(keep, -math.inf).amax(-1)
    return ((kept - removed) / kept).min().item()


def wanda(w: torch.Tensor, x: torch.Tensor, pattern) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The pruned weight, its mask, and the sum of w^2 mean(x_j^2) over what goes. x: [sequences, tokens, in]."""
    mean_square = x.flatten(0, 1).pow(2).mean(0)
    score = w.abs() * mean_square.sqrt()
    groups = score if isinstance(pattern, float) else score.view(w.shape[0], -1, pattern[1])
    keep = keep_largest(groups, math.floor(pattern * w.shape[1]) if isinstance(pattern, float) else pattern[1] - pattern[0])
    gap = smallest_gap(groups, keep)
    assert gap > 1e-5, f"two scores are only {gap} apart: float32 cannot tell them; take another seed"
    keep = keep.view(w.shape)
    return w * keep, keep, (score[~keep] ** 2).sum().item()


def sparsegpt(w: torch.Tensor, x: torch.Tensor, pattern) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The pruned weight, its mask, and tr(D (H + damp) D^T) of the change D. x: [sequences, tokens, in]."""
    rows, cols = w.shape
    flat = x.flatten(0, 1)
    h = 2 / x.shape[0] * flat.T @ flat
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w = w.clone()
    w[:, dead] = 0
    h += DAMPENING * h.diagonal().mean() * torch.eye(cols, dtype=h.dtype)
    dense = w.clone()
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    keep = torch.ones(w.shape, dtype=torch.bool)
    # A group of n:m lies in one block.
    width = BLOCK if isinstance(pattern, float) else BLOCK // pattern[1] * pattern[1]
    for first in range(0, cols, width):
        last = min(first + width, cols)
        errors = torch.zeros(rows, last - first, dtype=w.dtype)
        if isinstance(pattern, float):
            score = w[:, first:last] ** 2 / u.diagonal()[first:last] ** 2
            keep[:, first:last] = keep_largest(score.flatten(), math.floor(pattern * score.numel())).view(score.shape)
        for j in range(first, last):
            if not isinstance(pattern, float) and (j - first) % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                keep[:, group] = keep_largest(w[:, group] ** 2 / u.diagonal()[group] ** 2, pattern[1] - pattern[0])
            column = w[:, j] * keep[:, j]
            error = (w[:, j] - column) / u[j, j]
            w[:, j:last] -= error[:, None] * u[j, j:last]
            w[:, j] = column
            errors[:, j - first] = error
        w[:, last:] -= errors @ u[first:last, last:]
    change = w - dense
    return w, keep, (change @ h * change).sum().item()


CRITERIA = {"wanda": wanda, "sparsegpt": sparsegpt}


def bits(masks: list[torch.Tensor]) -> torch.Tensor:
    """Masks one after the other, row-major, eight entries a byte, the first in the lowest bit."""
    flat = torch.cat([m.flatten() for m in masks]).to(torch.uint8)
    flat = nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


def run(model: nn.Module, ids: torch.Tensor, watched: list[nn.Module]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of modules while the model runs."""
    seen = {}

    def hook(module, args, kwargs, output):
        seen[module] = (args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output)

    handles = [m.register_forward_hook(hook, with_kwargs=True) for m in watched]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return [seen[m] for m in watched]


def prune_model(folder: pathlib.Path, criterion: str, pattern, ids: torch.Tensor) -> Tensors:
    """Layer by layer; masks and costs in the order of the weights' sorted names, errors in the layers' order."""
    model = load(folder, torch.float64)
    layers = model.model.decoder.layers if hasattr(model.model, "decoder") else model.model.layers
    masks, costs, errors = {}, {}, []
    for layer in layers:
        linears = {n: m for n, m in prunable(model).items() if m in list(layer.modules())}
        (x, dense), *inputs = run(model, ids, [layer, *linears.values()])
        for (name, linear), (seen, _) in zip(linears.items(), inputs):
            seen = seen.reshape(SAMPLES, TOKENS, -1)  # OPT's feed-forward has its tokens flat
            pruned, masks[name], costs[name] = CRITERIA[criterion](linear.weight.data, seen, pattern)
            linear.weight.data = pruned
        ((_, pruned),) = run(model, ids, [layer])
        errors.append(((pruned - dense).norm() / (dense - x).norm()).item() ** 2)
    names = sorted(masks)
    return {"mask": bits([masks[n] for n in names]), "cost": torch.tensor([costs[n] for n in names]), "error": torch.tensor(errors)}


def hashed(i: torch.Tensor, j: torch.Tensor, salt: int) -> torch.Tensor:
    """Numbers in [-1, 1] that any language computes alike: of 1009 steps, by integers."""
    return ((i * 7919 + j * 104729 + i * j * 31 + salt) % 1009 - 504).double() / 504


def layer_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and inputs [sequences, tokens, in] of neighbouring features that say almost the same; one is never seen."""
    rows, cols = torch.arange(LAYER_ROWS)[:, None], torch.arange(LAYER_COLS)[None]
    tokens = torch.arange(LAYER_SEQUENCES * LAYER_TOKENS)[:, None]
    x = hashed(tokens, cols // 16, 5) * 2 + hashed(tokens, cols, 11)
    x[:, DEAD] = 0
    return hashed(rows, cols, 3).float().double(), x.float().double().view(LAYER_SEQUENCES, LAYER_TOKENS, LAYER_COLS)


def one_layer() -> Tensors:
    w, x = layer_inputs()
    out = {}
    for name, pattern in LAYER_PATTERNS.items():
        pruned, mask, cost = sparsegpt(w, x, pattern)
        error = ((pruned - w) @ x.flatten(0, 1).T).pow(2).sum().item()
        out |= {f"{name}.mask": bits([mask]), f"{name}.cost": torch.tensor([cost]), f"{name}.error": torch.tensor([error])}
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "golden")
    out = p.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
    ids = torch.randint(FIRST_ID, VOCAB, (SAMPLES, TOKENS), generator=seeded("calibration"))
    save(out / "calibration.safetensors", {"input_ids": ids} | one_layer())
    for name in CONFIGS:
        tensors = {}
        for criterion in CRITERIA:
            for pattern_name, pattern in PATTERNS.items():
                result = prune_model(out / name, criterion, pattern, ids)
                tensors |= {f"{criterion}.{pattern_name}.{what}": t for what, t in result.items()}
        save(out / name / "calibrated.safetensors", tensors)


if __name__ == "__main__":
    main()
