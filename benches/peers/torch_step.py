#!/usr/bin/env python3
"""The peer's training step: a pruned OPT of random weights under torch + transformers + peft, on the CPU or a GPU.

One configuration a process; prints one JSON line: tokens a second (the median over steps), the step times, the peak
resident memory, on a GPU the peak that torch allocated there. f32 without gradient checkpointing is what this peer is
fastest with on a CPU that has no matrix unit; `--device cuda --dtype bf16` is what people run on a GPU.

    pip install -r benches/peers/requirements.txt
    benches/peers/torch_step.py --method perp [--sparsity 0.5 | --pattern 2:4] [--steps 5] [--threads 2]
"""
import argparse
import json
import resource
import statistics
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", default="opt-125m", help="opt-125m, -1.3b, -2.7b or -6.7b (random weights), or a model folder")
p.add_argument("--device", default="cpu", help="cpu or cuda")
p.add_argument("--method", choices=["biases", "norms", "probe", "perp", "full"], default="perp")
p.add_argument("--sparsity", type=float, default=0.5)
p.add_argument("--pattern", default="", help="n:m, instead of --sparsity")
p.add_argument("--batch", type=int, default=2)
p.add_argument("--seq-len", type=int, default=512)
p.add_argument("--steps", type=int, default=5)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
p.add_argument("--checkpointing", action="store_true")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
transformers.logging.set_verbosity_error()

dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
# Hidden size, layers, heads.
SHAPES = {"opt-125m": (768, 12, 12), "opt-1.3b": (2048, 24, 32), "opt-2.7b": (2560, 32, 32), "opt-6.7b": (4096, 32, 32)}
if a.model in SHAPES:
    hidden, layers, heads = SHAPES[a.model]
    config = OPTConfig(dropout=0.0, attention_dropout=0.0, use_cache=False, hidden_size=hidden, num_hidden_layers=layers,
                       num_attention_heads=heads, ffn_dim=4 * hidden, word_embed_proj_dim=hidden)
    with torch.device(a.device):
        model = OPTForCausalLM(config)
else:
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, use_cache=False).to(a.device)
model.train()
decoder = model.model.decoder if hasattr(model.model, "decoder") else model.model


def mask_of(weight):
    """True where a weight stays."""
    if a.pattern:
        n, m = map(int, a.pattern.split(":"))
        groups = weight.abs().view(weight.shape[0], -1, m)
        keep = torch.zeros_like(groups, dtype=torch.bool)
        keep.scatter_(-1, groups.topk(n, dim=-1).indices, True)
        return keep.view_as(weight)
    k = int(a.sparsity * weight.numel())
    return weight.abs() > (weight.abs().flatten().kthvalue(k).values if k else -1)


masked = []
with torch.no_grad():
    for module in decoder.layers.modules():
        if isinstance(module, torch.nn.Linear):
            mask = mask_of(module.weight)
            module.weight.mul_(mask)
            masked.append((module.weight, mask))
model.to(dtype)
if a.method == "full":
    trainable = list(model.parameters())
else:
    masked = []
    targets = {"probe": ["lm_head"], "perp": ["q_proj", "v_proj", "lm_head"]}.get(a.method, [])
    if targets:
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, bias="all", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    else:
        model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") or a.method != "biases" and "norm" in name:
            parameter.requires_grad_(True)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if a.checkpointing:
        model.enable_input_require_grads()
if a.checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
optimizer = torch.optim.AdamW(trainable, lr=1e-5)
on_gpu = a.device.startswith("cuda")
if on_gpu:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def now():
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def step():
    ids = torch.randint(0, model.config.vocab_size, (a.batch, a.seq_len), device=a.device)
    start = now()
    model(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for weight, mask in masked:
            weight.mul_(mask)
    return now() - start


step()
seconds = [step() for _ in range(a.steps)]
print(json.dumps({
    "tokens_per_second": a.batch * a.seq_len / statistics.median(seconds),
    "step_seconds": seconds,
    "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
