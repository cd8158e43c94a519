#!/usr/bin/env python3
"""Loads a model folder with transformers (and an adapter with peft) and measures it: does the world read what we wrote?

Prints one JSON line with the perplexity (documents joined with two newlines, tokenized once, non-overlapping windows, mean
of window losses, exp), the sparsity of the linear weights inside the decoder layers, and what was loaded. With --expect it
exits with 1 when the perplexity is off by more than the tolerance; it also exits with 1 when the folder or adapter has
tensors the model doesn't know or lacks tensors the model needs.

    pip install -r tests/reference/requirements.txt
    tests/interop/check_model.py --model DIR [--adapter DIR] --text FILE... --seq-len 512 [--windows 6] [--expect 38.54]
"""
import argparse
import json
import math
import pathlib
import re
import sys

import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def token_ids(folder: pathlib.Path, text: str) -> torch.Tensor:
    if (folder / "tokenizer.json").exists():
        return torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)
    return torch.tensor(AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"])


@torch.no_grad()
def perplexity(model: torch.nn.Module, ids: torch.Tensor, seq_len: int, windows: int) -> tuple[float, int]:
    count = len(ids) // seq_len
    count = min(count, windows) if windows else count
    if count == 0:
        raise SystemExit(f"the text has {len(ids)} tokens, fewer than one window of {seq_len}")
    total = 0.0
    for row in ids[: count * seq_len].view(count, seq_len):
        logits = model(input_ids=row[None]).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits.float(), row[1:]).item()
    return math.exp(total / count), count


def sparsity(model: torch.nn.Module) -> dict:
    """Zeros of the decoder layers' linear weights; the range over matrices shows whether each has the same share."""
    zeros, entries, shares = 0, 0, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and re.search(r"\.layers\.\d+\.", name) and ".lora_" not in name:
            z, n = (module.weight == 0).sum().item(), module.weight.numel()
            zeros, entries = zeros + z, entries + n
            shares.append(z / n)
    return {"sparsity": zeros / entries, "sparsity_min": min(shares), "sparsity_max": max(shares), "matrices": len(shares)}


def adapter_problems(model: PeftModel, folder: pathlib.Path) -> list[str]:
    """peft skips keys it doesn't know without an error; here they are one."""
    state = {n.replace(".default.", "."): p for n, p in model.state_dict().items()}
    found = {}
    with safe_open(folder / "adapter_model.safetensors", "pt") as f:
        for key in f.keys():
            found[key] = f.get_tensor(key)
    problems = [f"adapter: {k} is not in the model" for k in found if k not in state and k.replace(".bias", ".base_layer.bias") not in state]
    problems += [f"adapter: {k} is missing" for k in state if ".lora_" in k and k not in found]
    for key, want in found.items():
        got = state.get(key, state.get(key.replace(".bias", ".base_layer.bias")))
        if got is not None and not torch.equal(got, want.to(got.dtype)):
            problems.append(f"adapter: {key} was not loaded")
    return problems


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, required=True)
    p.add_argument("--adapter", type=pathlib.Path)
    p.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    p.add_argument("--seq-len", type=int, required=True)
    p.add_argument("--windows", type=int, default=0, help="0: all")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="what the weights are turned into")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--expect", type=float, metavar="PERPLEXITY")
    p.add_argument("--tolerance", type=float, default=1e-3, help="relative")
    p.add_argument("--expect-sparsity", type=float, metavar="SHARE", help="of every matrix, to 1e-3")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    model, info = AutoModelForCausalLM.from_pretrained(a.model, dtype=DTYPES[a.dtype], output_loading_info=True)
    problems = [f"model: {kind}: {sorted(map(str, info[kind]))}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]]
    model.config.use_cache = False
    report = {"model_class": type(model).__name__, "parameters": sum(q.numel() for q in model.parameters())}
    if a.adapter:
        model = PeftModel.from_pretrained(model, str(a.adapter))
        problems += adapter_problems(model, a.adapter)
        report["adapter_parameters"] = sum(q.numel() for n, q in model.named_parameters() if ".lora_" in n)
    model.eval()
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in a.text)
    report["perplexity"], report["windows"] = perplexity(model, token_ids(a.model, text), a.seq_len, a.windows)
    report |= {"seq_len": a.seq_len} | sparsity(model)
    if a.expect is not None:
        report["relative_deviation"] = abs(report["perplexity"] / a.expect - 1)
        if not report["relative_deviation"] <= a.tolerance:
            problems.append(f"perplexity {report['perplexity']:.4f} where {a.expect} was expected")
    if a.expect_sparsity is not None:
        for end in ("sparsity_min", "sparsity_max"):
            if abs(report[end] - a.expect_sparsity) > 1e-3:
                problems.append(f"{end} is {report[end]:.4f} where {a.expect_sparsity} was expected")
    print(json.dumps(report))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
