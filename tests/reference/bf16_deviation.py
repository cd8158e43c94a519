#!/usr/bin/env python3
"""How far torch's own bf16 is from the golden gradients, which are f64's: what a GPU's bf16 may be off by.

For each golden model and pattern, methods perp and full: the mean and the largest over the tensors of
|gradient - golden| / max(|golden|, 0.05 of the largest tensor's), Euclidean norms. Versions: requirements.txt.
"""

import pathlib

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def gradients(name, pattern, method):
    """Name and gradient of each trained tensor, computed in bf16."""
    masks = load_file(GOLDEN / name / f"{pattern}.safetensors")
    masks = {key[5:]: mask for key, mask in masks.items() if key.startswith("mask.")}
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
    if method == "perp":
        model = PeftModel.from_pretrained(model, GOLDEN / name / "adapter", is_trainable=True)
    model.to(torch.bfloat16).requires_grad_(True)
    ids = load_file(GOLDEN / "inputs.safetensors")["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    for key, parameter in model.named_parameters():
        key = key.removeprefix("base_model.model.").replace(".base_layer", "").replace(".default", "")
        if parameter.grad is not None:
            gradient = parameter.grad.double()
            yield key, gradient * masks[key] if key in masks else gradient


def main():
    print(f"{'':<28}{'mean':>8}{'largest':>9}")
    for name in ["opt-pre", "opt-post", "llama-gqa", "qwen2", "mistral"]:
        for pattern in ["unstructured", "2of4", "4of8"]:
            for method in ["perp", "full"]:
                golden = load_file(GOLDEN / name / f"{pattern}.{method}.safetensors")
                golden = {key[5:]: x.double() for key, x in golden.items() if key.startswith("grad.")}
                floor = 0.05 * max(x.norm() for x in golden.values())
                found = dict(gradients(name, pattern, method))
                errors = {key: float((found[key] - x).norm() / max(x.norm(), floor)) for key, x in golden.items()}
                worst = max(errors, key=errors.get)
                mean = sum(errors.values()) / len(errors)
                print(f"{f'{name} {pattern} {method}':<28}{mean:8.3f}{errors[worst]:9.3f}  {worst}")


if __name__ == "__main__":
    main()
