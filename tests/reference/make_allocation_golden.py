#!/usr/bin/env python3
"""Makes the golden files of OWL's allocation: shares of outliers, layers' sparsities, and the masks that Wanda chooses then.

OWL is written here from its paper (arXiv 2310.05175, section 3.2), over the tiny models that make_golden.py made and in
float64: the dense model runs on the calibration windows; a layer's share of outliers D is that of |w|·‖x_j‖ above M times
their mean over all its linear layers; it keeps 2·lambda·(D - min D)/(max D - min D), shifted to the mean that is asked for.

    pip install -r tests/reference/requirements.txt
    tests/reference/make_allocation_golden.py [--out tests/golden]
"""
import argparse
import pathlib
import warnings

import numpy as np
import torch
import transformers
from make_calibrated_golden import SAMPLES, TOKENS, bits, run, wanda
from make_golden import CONFIGS, FIRST_ID, VOCAB, load, prunable, save, seeded

M, LAMBDA, SPARSITY = 3.0, 0.08, 0.6
# Networks of more layers than the tiny models have: layers, lambda, sparsity.
NETWORKS = {"small": (5, 0.08, 0.7), "deep": (32, 0.15, 0.5), "even": (4, 0.08, 0.5)}


def owl_sparsities(outliers: np.ndarray, lam: float, sparsity: float) -> np.ndarray:
    """Of layers with equally many weights."""
    spread = outliers.max() - outliers.min()
    kept = 2 * lam * (outliers - outliers.min()) / spread if spread > 0 else np.zeros_like(outliers)
    return 1 - (kept - kept.mean() + (1 - sparsity))


def layers_of(model) -> list:
    return list(model.model.decoder.layers if hasattr(model.model, "decoder") else model.model.layers)


def linears_of(model, layer) -> dict:
    return {name: m for name, m in prunable(model).items() if m in list(layer.modules())}


def outliers(model, ids: torch.Tensor) -> np.ndarray:
    """Each layer's share of scores above M times their mean."""
    shares = []
    for layer in layers_of(model):
        linears = linears_of(model, layer)
        seen = run(model, ids, list(linears.values()))
        norms = [x.reshape(-1, x.shape[-1]).pow(2).sum(0).sqrt() for x, _ in seen]
        scores = torch.cat([(m.weight.data.abs() * n).flatten() for m, n in zip(linears.values(), norms)])
        gap = ((scores / (M * scores.mean())) - 1).abs().min().item()
        assert gap > 1e-5, f"a score is only {gap} from the threshold: float32 cannot tell; take another M"
        shares.append((scores > M * scores.mean()).double().mean().item())
    return np.array(shares)


def pruned_masks(model, sparsities: np.ndarray, ids: torch.Tensor) -> torch.Tensor:
    """Wanda's masks, layer by layer, in the order of the weights' names."""
    masks = {}
    for layer, sparsity in zip(layers_of(model), sparsities):
        linears = linears_of(model, layer)
        seen = run(model, ids, list(linears.values()))
        for (name, linear), (x, _) in zip(linears.items(), seen):
            linear.weight.data, masks[name], _ = wanda(linear.weight.data, x.reshape(SAMPLES, TOKENS, -1), float(sparsity))
    return bits([masks[name] for name in sorted(masks)])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "golden")
    out = p.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
    ids = torch.randint(FIRST_ID, VOCAB, (SAMPLES, TOKENS), generator=seeded("calibration"))
    tensors = {}
    for name in CONFIGS:
        model = load(out / name, torch.float64)
        shares = outliers(model, ids)
        sparsities = owl_sparsities(shares, LAMBDA, SPARSITY)
        tensors[f"{name}.outliers"] = torch.from_numpy(shares)
        tensors[f"{name}.sparsities"] = torch.from_numpy(sparsities)
        tensors[f"{name}.mask"] = pruned_masks(model, sparsities, ids)
    rng = np.random.default_rng(20240521)
    for name, (layers, lam, sparsity) in NETWORKS.items():
        shares = np.full(layers, 0.01) if name == "even" else rng.gamma(2.0, 0.01, layers).astype(np.float32).astype(np.float64)
        tensors[f"{name}.outliers"] = torch.from_numpy(shares)
        tensors[f"{name}.sparsities"] = torch.from_numpy(owl_sparsities(shares, lam, sparsity))
    save(out / "allocation.safetensors", tensors)


if __name__ == "__main__":
    main()
