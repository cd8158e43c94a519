#!/usr/bin/env python3
"""Makes the golden files: tiny random models, pruned and differentiated by torch, transformers and peft.

The Rust tests read what this writes and need no Python. Every model runs in float64 (the places where transformers drops
to float32 are patched) and results are rounded to float32 once, at the end; the same computation by unpatched float32
transformers must agree, and how far it deviates is in the manifest. tests/golden/README.md says what each file holds.

    pip install -r tests/reference/requirements.txt
    tests/reference/make_golden.py [--out tests/golden]
"""
import argparse
import copy
import json
import math
import pathlib
import shutil
import types
import warnings

import numpy as np
import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config

SEED = 20240521
VOCAB = 96
FIRST_ID = 3  # ids below are special in OPT; id 1 is its padding row, whose embedding gets no gradient in torch
RANK, ALPHA = 4, 8
BATCH, TOKENS = 2, 24
METHODS = ["biases", "norms", "probe", "perp", "full"]
TARGETS = {"probe": ["lm_head"], "perp": ["q_proj", "v_proj", "lm_head"]}
# name -> (n, m) of n:m, or a sparsity
PATTERNS = {"dense": None, "unstructured": 0.5, "2of4": (2, 4), "4of8": (4, 8)}
TRAJECTORY_MODELS, TRAJECTORY_METHODS, TRAJECTORY_PATTERN = ["opt-pre", "llama-gqa"], ["perp", "full"], "unstructured"
STEPS, WARMUP, ACCUMULATION, LR, CLIP, MICRO_TOKENS = 20, 2, 2, 1e-3, 1.0, 16

SHARED = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=2, eos_token_id=2)
OPT = SHARED | dict(
    ffn_dim=64, max_position_embeddings=40, activation_function="relu", dropout=0.0, attention_dropout=0.0, layerdrop=0.0, pad_token_id=1
)
LLAMA = SHARED | dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256)
LLAMA3_ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
CONFIGS = {
    "opt-pre": OPTConfig(**OPT, do_layer_norm_before=True, word_embed_proj_dim=32),
    "opt-post": OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=16),
    # wave lengths 6, 63, 628, 6283 against 64/4 and 64/1: one unscaled, one blended, two scaled
    "llama-gqa": LlamaConfig(**LLAMA, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE | {"rope_theta": 10000.0}),
    "qwen2": Qwen2Config(**LLAMA, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "mistral": MistralConfig(
        **LLAMA, tie_word_embeddings=False, head_dim=12, sliding_window=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
}
# Weights on a coarse grid without zero: many exact ties of magnitude, so that the rule for ties shows.
TIED_SCORES = (".layers.0.self_attn.q_proj.weight", ".layers.1.fc1.weight", ".layers.1.mlp.up_proj.weight")

Tensors = dict[str, torch.Tensor]


def seeded(*what: str) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + sum(ord(c) * 31**i % 1_000_003 for i, c in enumerate("/".join(what))))


# ---- models


def create(name: str, folder: pathlib.Path) -> None:
    """A model folder with every tensor random, also norms and biases, so that every gradient says something."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    g = seeded(name)
    with torch.no_grad():
        for key, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if "norm" in key:
                p.copy_(1 + 0.2 * r if key.endswith("weight") else 0.1 * r)
            elif key.endswith("bias"):
                p.copy_(0.2 * r)
            elif "embed" in key:
                p.copy_(0.4 * r)
            else:
                p.copy_(r * (1.2 / math.sqrt(p.shape[1])))
            if key.endswith(TIED_SCORES):
                p.copy_((torch.floor(p * 16) + 0.5) / 16)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    old = as_transformers4(config)
    again = json.loads(type(CONFIGS[name]).from_dict(copy.deepcopy(old)).to_json_string())
    assert again | {"transformers_version": config["transformers_version"]} == config, (again, config)
    (folder / "config.v4.json").write_text(json.dumps(old, indent=2) + "\n")


def as_transformers4(config: dict) -> dict:
    """The same model as transformers before 5 spells it, and so most published models."""
    old = copy.deepcopy(config) | {"transformers_version": "4.40.0", "torch_dtype": config["dtype"]}
    absent = ["dtype"]
    if config["model_type"] == "opt":  # all at their defaults here
        absent += ["tie_word_embeddings", "enable_bias", "layer_norm_elementwise_affine"]
    elif config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        absent.append("head_dim")
    old = {k: v for k, v in old.items() if k not in absent}
    if "rope_parameters" in old:
        rope = old.pop("rope_parameters")
        old["rope_theta"] = rope.pop("rope_theta")
        old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return old


def load(folder: pathlib.Path, dtype: torch.dtype) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model.name_or_path = model.config._name_or_path = ""
    model.eval()
    if dtype == torch.float64:
        model.double()
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = types.MethodType(rms_norm64, module)
            elif type(module).__name__.endswith("RotaryEmbedding"):
                module.forward = types.MethodType(rotary64, module)
    return model


def rms_norm64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary64(self, x, position_ids, **_):
    """Inverse frequencies as transformers has them (float32); angles, sines and cosines in float64."""
    angle = position_ids[..., None].double() * self.inv_freq.double()
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling


def prunable(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}


# ---- pruning


def magnitude_mask(w: torch.Tensor, pattern) -> torch.Tensor:
    """True where the weight stays. Among equal scores the lower index goes first."""
    score = w.detach().abs().float()
    keep = torch.ones(score.shape, dtype=torch.bool)
    if isinstance(pattern, float):
        order = score.flatten().argsort(stable=True)
        keep.view(-1)[order[: math.floor(pattern * w.numel())]] = False
    elif pattern is not None:
        n, m = pattern
        groups = score.view(w.shape[0], -1, m)
        keep.view(groups.shape).scatter_(-1, groups.argsort(dim=-1, stable=True)[..., : m - n], False)
    return keep


def prune(model: nn.Module, pattern) -> Tensors:
    masks = {}
    with torch.no_grad():
        for name, linear in prunable(model).items():
            mask = magnitude_mask(linear.weight, pattern)
            linear.weight.mul_(mask)
            masks[f"{name}.weight"] = mask
    return masks


# ---- what trains


def with_lora(model: nn.Module, method: str, lora: Tensors) -> nn.Module:
    """Wraps the model with peft and puts the given A and B (names without peft's prefix) into place."""
    dtype = model.dtype
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=TARGETS[method], task_type="CAUSAL_LM")
    model = get_peft_model(model, config).to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.copy_(lora[plain(name)])
    return model


def plain(name: str) -> str:
    """A parameter's name without what peft adds to it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")


def random_lora(model: nn.Module, method: str, g: torch.Generator, zero_b: bool) -> Tensors:
    """A as peft starts it, Kaiming-uniform with a = sqrt(5), so U(-1/sqrt(in), 1/sqrt(in)); B zero, or of the same size."""
    lora = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] in TARGETS[method]:
            bound = 1 / math.sqrt(module.in_features)
            a = torch.rand(RANK, module.in_features, generator=g) * 2 - 1
            b = torch.rand(module.out_features, RANK, generator=g) * 2 - 1
            lora[f"{name}.lora_A.weight"] = a * bound
            lora[f"{name}.lora_B.weight"] = b * (0 if zero_b else bound)
    return lora


def trainable(model: nn.Module, method: str) -> dict[str, nn.Parameter]:
    """Sets requires_grad as the method says; the parameters that train, by plain name."""
    norms = tuple(f"{n}." for n, m in model.named_modules() if "Norm" in type(m).__name__)
    chosen = {}
    for name, p in model.named_parameters():
        is_norm, is_lora = name.startswith(norms) if norms else False, ".lora_" in name
        p.requires_grad_(
            method == "full" or is_lora or (is_norm and method != "biases") or (name.endswith(".bias") and not is_norm)
        )
        if p.requires_grad:
            chosen[plain(name)] = p
    return chosen


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


# ---- golden outputs


def gradients(folder: pathlib.Path, pattern, method: str, ids: torch.Tensor, lora: Tensors, dtype: torch.dtype) -> Tensors:
    model = load(folder, dtype)
    masks = prune(model, pattern)
    if method in TARGETS:
        model = with_lora(model, method, lora)
    params = trainable(model, method)
    if not params:
        return {}
    logits = model(input_ids=ids).logits
    loss = loss_of(logits, ids)
    loss.backward()
    out = {"loss": loss.detach().reshape(1)}
    if method == "perp":
        out["logits"] = logits.detach()
    for name, p in params.items():
        grad = p.grad * masks[name] if method == "full" and name in masks else p.grad
        out[f"grad.{name}"] = grad
    return out


def forward(folder: pathlib.Path, pattern, ids: torch.Tensor, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    model = load(folder, dtype)
    masks = prune(model, pattern)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    return {"logits": logits, "loss": loss_of(logits, ids).reshape(1)}, masks


def learning_rate(step: int) -> float:
    return LR * (step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP))


def train(folder: pathlib.Path, pattern, method: str, batches: torch.Tensor, lora: Tensors, dtype: torch.dtype) -> Tensors:
    model = load(folder, dtype)
    masks = prune(model, pattern)
    if method in TARGETS:
        model = with_lora(model, method, lora)
    params = trainable(model, method)
    masked = [(p, masks[n]) for n, p in params.items() if n in masks]
    optimizer = torch.optim.AdamW(params.values(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        total = 0.0
        for ids in batches[step]:
            loss = loss_of(model(input_ids=ids).logits, ids) / ACCUMULATION
            loss.backward()
            total += loss.item()
        for p, mask in masked:
            p.grad.mul_(mask)
        losses.append(total)
        norms.append(nn.utils.clip_grad_norm_(params.values(), CLIP).item())
        optimizer.step()
        with torch.no_grad():
            for p, mask in masked:
                p.mul_(mask)
        optimizer.zero_grad(set_to_none=True)
    out = {f"final.{n}": p.detach() for n, p in params.items()}
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    out["grad_norms"] = torch.tensor(norms, dtype=torch.float64)
    out["learning_rates"] = torch.tensor([learning_rate(k) for k in range(STEPS)], dtype=torch.float64)
    return out


def deviation(reference: Tensors, other: Tensors) -> dict:
    """How far unpatched float32 transformers is from the float64 reference, as a yardstick for tolerances.

    absolute: largest difference of any entry; relative: largest of |difference| / |reference| over tensors (Euclidean),
    leaving out the biases of OPT's k_proj, whose gradient is zero in exact arithmetic.
    """
    absolute, relative = 0.0, 0.0
    for name, want in reference.items():
        if ".decoder." in name and name.endswith("k_proj.bias"):
            continue
        diff = other[name].double() - want.double()
        absolute = max(absolute, diff.abs().max().item())
        relative = max(relative, (diff.norm() / want.double().norm()).item())
    assert relative < 1e-3, f"float32 and float64 disagree by {relative}"
    return {"absolute": float(f"{absolute:.2e}"), "relative": float(f"{relative:.2e}")}


def save(path: pathlib.Path, tensors: Tensors) -> None:
    as_f32 = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    save_file({n: t.contiguous().clone() for n, t in as_f32.items()}, path)


def save_adapter(model_folder: pathlib.Path, lora: Tensors) -> None:
    """The LoRA pairs as peft itself writes them (a name for the base model, not a path)."""
    out = model_folder / "adapter"
    model = with_lora(load(model_folder, torch.float32), "perp", lora)
    model.peft_config["default"].base_model_name_or_path = model_folder.name
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set: its order differs from run to run
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    saved = load_file(out / "adapter_model.safetensors")
    assert {n.removeprefix("base_model.model.") for n in saved} == set(lora), sorted(saved)


def golden_model(out: pathlib.Path, name: str, ids: torch.Tensor, batches: torch.Tensor) -> dict:
    folder = out / name
    create(name, folder)
    lora = random_lora(load(folder, torch.float32), "perp", seeded(name, "lora"), zero_b=False)
    save_adapter(folder, lora)
    entry = {"folder": name, "adapter": f"{name}/adapter", "patterns": {}, "trajectories": {}}
    for pattern_name, pattern in PATTERNS.items():
        file = f"{name}/{pattern_name}.safetensors"
        result, masks = forward(folder, pattern, ids, torch.float64)
        result32, _ = forward(folder, pattern, ids, torch.float32)
        stored = {f"mask.{n}": m.to(torch.uint8) for n, m in masks.items()} if pattern is not None else {}
        save(out / file, result | stored)
        pattern_entry = entry["patterns"][pattern_name] = {
            "forward": {"file": file, "loss": result["loss"].item(), "float32_deviation": deviation(result, result32)},
            "gradients": {},
        }
        for method in METHODS if pattern is not None else []:
            result = gradients(folder, pattern, method, ids, lora, torch.float64)
            if not result:
                continue
            assert all(t.dtype == torch.float64 for t in result.values())
            file = f"{name}/{pattern_name}.{method}.safetensors"
            save(out / file, result)
            pattern_entry["gradients"][method] = {
                "file": file,
                "loss": result["loss"].item(),
                "trainable": sum(t.numel() for n, t in result.items() if n.startswith("grad.")),
                "float32_deviation": deviation(result, gradients(folder, pattern, method, ids, lora, torch.float32)),
            }
    for method in TRAJECTORY_METHODS if name in TRAJECTORY_MODELS else []:
        start = {}
        if method in TARGETS:
            start = random_lora(load(folder, torch.float32), method, seeded(name, "trajectory"), zero_b=True)
        pattern = PATTERNS[TRAJECTORY_PATTERN]
        result = train(folder, pattern, method, batches, start, torch.float64)
        result32 = train(folder, pattern, method, batches, start, torch.float32)
        file = f"{name}/trajectory.{method}.safetensors"
        save(out / file, result | {f"initial.{n}": t for n, t in start.items()})
        entry["trajectories"][method] = {
            "file": file,
            "pattern": TRAJECTORY_PATTERN,
            "first_loss": result["losses"][0].item(),
            "last_loss": result["losses"][-1].item(),
            "float32_deviation": deviation(result, result32),
        }
    return entry


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "golden")
    out = p.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in CONFIGS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)

    g = seeded("inputs")
    ids = torch.randint(FIRST_ID, VOCAB, (BATCH, TOKENS), generator=g)
    batches = torch.randint(FIRST_ID, VOCAB, (STEPS, ACCUMULATION, BATCH, MICRO_TOKENS), generator=g)
    save(out / "inputs.safetensors", {"input_ids": ids, "batches": batches})
    manifest = {
        "made_by": "tests/reference/make_golden.py",
        "versions": {
            m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft, safetensors, np)
        },
        "inputs": "inputs.safetensors",
        "lora": {"rank": RANK, "alpha": ALPHA, "targets": TARGETS},
        "patterns": {
            "dense": {"sparsity": 0.0},
            "unstructured": {"sparsity": 0.5},
            "2of4": {"n": 2, "m": 4, "sparsity": 0.5},
            "4of8": {"n": 4, "m": 8, "sparsity": 0.5},
        },
        "trajectory": {
            "steps": STEPS, "warmup_steps": WARMUP, "accumulation": ACCUMULATION, "learning_rate": LR, "clip": CLIP,
            "betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.0,
        },
        "models": {name: golden_model(out, name, ids, batches) for name in CONFIGS},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
