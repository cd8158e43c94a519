#!/usr/bin/env python3
"""Runs the authors' own code of Wanda and SparseGPT, as it is, on the tiny models, and compares what it removes with the golden
files that the engine's tests read (make_calibrated_golden.py wrote those from the papers).

Wanda's repository has both, for Llama and OPT; SparseGPT's has one layer's. Both call decoder layers as transformers 4.45 still
lets them; the models are float32 here.

SparseGPT's unstructured threshold is the first score that should stay, and all that equals it goes: one entry more than the
sparsity asks for in each block of columns, and every tie. Asked for a millionth less, it removes as many as the sparsity says
but for ties, and so it is asked here; what it removes without that is printed beside it. One matrix of each layer has ties on
purpose, and all of the second layer sees what they did to the first: there the first layer's masks are compared, and the whole
model's are printed.

    git clone https://github.com/locuslab/wanda && git clone https://github.com/IST-DASLab/sparsegpt
    pip install torch numpy safetensors peft transformers==4.45.2
    tests/reference/compare_with_originals.py --wanda wanda --sparsegpt sparsegpt
"""
import argparse
import contextlib
import io
import pathlib
import shutil
import sys
import tempfile
import types

import torch
import transformers
from safetensors.torch import load_file
from make_calibrated_golden import layer_inputs
from torch import nn

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# name -> sparsity, and how many of how many are removed
PATTERNS = {"unstructured": (0.5, 0, 0), "2of4": (0.5, 2, 4), "4of8": (0.5, 4, 8), "5of16": (0.5, 11, 16)}
LAYER_PATTERNS = {"unstructured": (0.6, 0, 0), "2of4": (0.5, 2, 4), "4of8": (0.5, 4, 8)}
# Qwen2 and Mistral have Llama's modules, whose names are all that the authors' code asks for.
MODELS = {"opt-pre": "prune_opt", "opt-post": "prune_opt", "llama-gqa": "prune", "qwen2": "prune", "mistral": "prune"}
LEAST = {"wanda": 1.0, "sparsegpt": 0.999}
ONE_LESS = 1e-6


def load(name: str) -> nn.Module:
    """The model as older transformers spelled it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(GOLDEN / name / "model.safetensors", folder)
        shutil.copy(GOLDEN / name / "config.v4.json", pathlib.Path(folder) / "config.json")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def bits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """Eight entries a byte, the first in the lowest bit."""
    return ((packed[:, None] >> torch.arange(8)) & 1).flatten()[:count].bool()


def layers(model: nn.Module) -> nn.ModuleList:
    return model.model.decoder.layers if hasattr(model.model, "decoder") else model.model.layers


def kept(model: nn.Module) -> torch.Tensor:
    """What is not zero in all prunable weights, in the order of their names."""
    inside = {id(m) for m in layers(model).modules()}
    weights = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside}
    return torch.cat([weights[n].detach().flatten() != 0 for n in sorted(weights)])


def whole_models(library: pathlib.Path, ids: torch.Tensor) -> int:
    sys.path.insert(0, str(library))
    # What would fetch their calibration text: ours takes its place.
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    failed = 0
    for name, file in MODELS.items():
        code = __import__(f"lib.{file}", fromlist=["lib"])
        code.get_loaders = lambda *_, **__: ([(row[None], None) for row in ids], None)
        golden = load_file(GOLDEN / name / "calibrated.safetensors")
        for criterion, least in LEAST.items():
            for pattern, (sparsity, n, m) in PATTERNS.items():
                want, what = golden[f"{criterion}.{pattern}.mask"], f"{name} {criterion} {pattern}"
                prune = getattr(code, f"prune_{criterion}")

                def removed(asked: float) -> torch.Tensor:
                    model = load(name)
                    model.seqlen, model.hf_device_map = ids.shape[1], {}
                    args = types.SimpleNamespace(nsamples=len(ids), seed=0, sparsity_ratio=asked, use_variant=False)
                    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                        prune(args, model, None, torch.device("cpu"), n, m)
                    return kept(model)

                if criterion == "sparsegpt" and m == 0:
                    report(f"{what}, one more a block", removed(sparsity), want, 0)
                    got = removed(sparsity - ONE_LESS)
                    report(f"{what}, both layers", got, want, 0)
                    failed += report(f"{what}, first layer", got[: len(got) // 2], want, least)
                else:
                    failed += report(what, removed(sparsity), want, least)
    return failed


def one_layer(library: pathlib.Path) -> int:
    sys.modules.setdefault("quant", types.ModuleType("quant"))
    sys.path.insert(0, str(library))
    import sparsegpt as code

    golden = load_file(GOLDEN / "calibration.safetensors")
    weight, inputs = (x.float() for x in layer_inputs())
    failed = 0
    for pattern, (sparsity, n, m) in LAYER_PATTERNS.items():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        pruner = code.SparseGPT(layer)
        for sequence in inputs:
            pruner.add_batch(sequence[None], None)
        with contextlib.redirect_stdout(io.StringIO()):
            pruner.fasterprune(sparsity if m else sparsity - ONE_LESS, n, m)
        flat = inputs.flatten(0, 1).double()
        error = ((layer.weight.data - weight).double() @ flat.T).pow(2).sum().item()
        want = golden[f"{pattern}.error"].item()
        what = f"one layer sparsegpt {pattern}, error {error:.6g} of {want:.6g}"
        failed += report(what, layer.weight.data.flatten() != 0, golden[f"{pattern}.mask"], LEAST["sparsegpt"])
        failed += abs(error - want) > 1e-3 * want
    return failed


def report(what: str, got: torch.Tensor, mask: torch.Tensor, least: float) -> int:
    equal = (got == bits(mask, len(got))).sum().item()
    enough = equal >= least * len(got)
    print(f"{what}: {equal} of {len(got)} entries alike" + ("" if enough else ", TOO FEW"))
    return not enough


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--wanda", type=pathlib.Path, required=True)
    p.add_argument("--sparsegpt", type=pathlib.Path, required=True)
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    # They wait for a GPU that need not be there.
    torch.cuda.synchronize = lambda *_: None
    ids = load_file(GOLDEN / "calibration.safetensors")["input_ids"]
    failed = whole_models(args.wanda, ids) + one_layer(args.sparsegpt)
    sys.exit(f"{failed} differ" if failed else None)


if __name__ == "__main__":
    main()
