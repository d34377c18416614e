"""A GGUF file as a model: metadata to configuration, names of tensors, rows of q and k put back."""

import math
from pathlib import Path

import numpy as np

from .config_keys import MOST_LAYERS, Keys
from .errors import BadInput, brief
from .gguf_file import read_gguf
from .gguf_tokenizer import bos_and_eos, read_tokenizer
from .layout import Dataset, Tokenizer, check_parts, datasets
from .tensors import Tensor, with_halves

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_NAMES = {"attn_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight", "wo": "attn_output.weight",
          "bo": "attn_output.bias", "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
          "w_gate": "ffn_gate.weight", "w_up": "ffn_up.weight", "w_down": "ffn_down.weight"}
for _which in "qkv":
    _NAMES[f"w{_which}"] = f"attn_{_which}.weight"
    _NAMES[f"b{_which}"] = f"attn_{_which}.bias"
_SHARED = {"/shared/embedding": "token_embd.weight", "/shared/lm_head": "output.weight",
           "/shared/final_norm": "output_norm.weight"}
# What converters of Llama 3.1 and 3.2 checkpoints worked with: (low, high, original context).
_LLAMA3 = (1.0, 4.0, 8192)


def short(value: float) -> float:
    """A float32 of the metadata as the shortest decimal that rounds to it: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _uniform(keys: Keys, name: str, default):
    """An integer, or a list that gives every layer the same."""
    values = keys.raw(name, default)
    if isinstance(values, list):
        if not values or any(value != values[0] for value in values):
            keys.fail(name, "differs between layers, which a model file cannot say")
        values = values[0]
    if isinstance(values, bool) or not isinstance(values, int) or values < 1:
        keys.fail(name, f"expected an integer from 1, found {brief(values)}")
    return values


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """What llama3 scaling divides each frequency by."""
    low, high, original = _LLAMA3
    wave = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wave - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _frequencies(tensors: dict[str, Tensor], config: dict, where: str):
    """llama3 scaling: GGUF has no parameters of it, but what it divides each frequency by."""
    factors = tensors["rope_freqs.weight"].read(0, 1).reshape(-1).astype(np.float64)
    factor = float(factors.max(initial=0))
    if len(factors) == config["head_dim"] // 2 and factor >= 1:
        if np.allclose(factors, llama3_factors(config["rope_theta"], config["head_dim"], factor), rtol=1e-5):
            low, high, original = _LLAMA3
            return {"type": "llama3", "factor": short(factor), "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position": original}
    raise BadInput(f"{where}: tensor rope_freqs.weight is not that of llama3 scaling with {_LLAMA3}: not supported")


def _scaling(keys: Keys, arch: str, max_position: int):
    prefix = f"{arch}.rope.scaling."
    old = keys.number(f"{arch}.rope.scale_linear", None)
    kind = keys.raw(prefix + "type", "linear" if old else "none")
    factor = keys.number(prefix + "factor", old)
    keys.raw(prefix + "finetuned")  # says only how the model was made
    original = keys.integer(prefix + "original_context_length", max_position)
    extra = keys.number(prefix + "attn_factor", 1.0)
    fast, slow = keys.number(prefix + "yarn_beta_fast", 32.0), keys.number(prefix + "yarn_beta_slow", 1.0)
    if kind == "none" or factor is None:
        return None
    if kind == "linear":
        return {"type": "linear", "factor": short(factor)}
    if kind != "yarn":
        keys.fail(prefix + "type", f"{brief(kind)} is not supported; none, linear and yarn can be converted")
    attention = None if extra == 1 else extra * (0.1 * math.log(factor) + 1 if factor > 1 else 1)
    return {"type": "yarn", "factor": short(factor), "original_max_position": original, "beta_fast": fast,
            "beta_slow": slow, "attention_factor": attention}


def read_config(metadata: dict, tensors: dict[str, Tensor], where: str, ignored: set[str]) -> dict:
    """The contract's configuration, but for bos_token_id and eos_token_ids."""
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise BadInput(f"{where}: architecture {brief(arch)} is not supported; {', '.join(ARCHITECTURES)} can be "
                       "converted")
    keys = Keys({name: value for name, value in metadata.items() if name.startswith(f"{arch}.")}, where, ignored)
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise BadInput(f"{where}: tensor token_embd.weight is missing")
    hidden, layers = keys.integer(f"{arch}.embedding_length"), keys.integer(f"{arch}.block_count", most=MOST_LAYERS)
    heads, context = _uniform(keys, f"{arch}.attention.head_count", None), keys.integer(f"{arch}.context_length")
    head_dim = keys.integer(f"{arch}.attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(f"{arch}.{name}", head_dim) != head_dim:
            keys.fail(f"{arch}.{name}", f"only the head size, {head_dim}, is supported")
    if keys.integer(f"{arch}.expert_count", 0, least=0):
        keys.fail(f"{arch}.expert_count", "experts are not supported; convert the Hugging Face checkpoint")
    for name in ("vocab_size", "expert_used_count", "tensor_data_layout"):  # said by the tensors, or without effect
        keys.raw(f"{arch}.{name}")
    bias = [which for which in "qkvo" if f"blk.0.{_NAMES[f'b{which}']}" in tensors]
    config = {
        "name": str(metadata.get("general.name") or Path(where).stem), "tracks": 1, "layers": layers,
        "sync_layers": [layers], "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False},
        "hidden_size": hidden, "heads": heads,
        "kv_heads": _uniform(keys, f"{arch}.attention.head_count_kv", heads), "head_dim": head_dim,
        "ffn_size": _uniform(keys, f"{arch}.feed_forward_length", None), "vocab_size": embedding.shape[0],
        "max_context": context, "norm_eps": short(keys.number(f"{arch}.attention.layer_norm_rms_epsilon")),
        "norm_placement": ["pre"], "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "attention_pattern": ["global_rope"], "attention_window": 0,
        "rope_theta": short(keys.number(f"{arch}.rope.freq_base", 10000.0)), "ffn_pattern": ["dense"], "moe": None,
        "tie_embeddings": "output.weight" not in tensors, "bos_token_id": None, "eos_token_ids": []}
    if bias:
        config["attention_bias"] = bias
    scaling = _scaling(keys, arch, context)
    if "rope_freqs.weight" in tensors:
        if scaling:
            keys.fail(f"{arch}.rope.scaling.type", "not supported together with the tensor rope_freqs.weight")
        scaling = _frequencies(tensors, config, where)
    if scaling:
        config["rope_scaling"] = scaling
    keys.finish()
    return config


def _fill(dataset: Dataset, tensors: dict[str, Tensor], config: dict, arch: str, where: str) -> str:
    """Gives the dataset its tensor; returns the tensor's name."""
    name = _SHARED.get(dataset.path)
    short_name = dataset.path.rsplit("/", 1)[1]
    if name is None:
        name = f"blk.{int(dataset.path.split('/')[4])}.{_NAMES[short_name]}"
    if name not in tensors:
        raise BadInput(f"{where}: tensor {name} is missing")
    dataset.parts = [tensors[name]]
    check_parts(dataset, where)
    if arch == "llama" and short_name in ("wq", "bq", "wk", "bk"):
        heads = config["heads" if short_name.endswith("q") else "kv_heads"]
        dataset.parts = [with_halves(tensors[name], heads)]
    return name


def read_model(path: Path, ignored: set[str], tokenizer_file: Path | None) -> tuple[dict, list[Dataset],
                                                                                   Tokenizer | None]:
    """config, datasets and tokenizer."""
    metadata, tensors = read_gguf(path)
    where = str(path)
    config = read_config(metadata, tensors, where, ignored)
    tokenizer = read_tokenizer(metadata, where, tokenizer_file, ignored)
    config["bos_token_id"], config["eos_token_ids"] = bos_and_eos(metadata, config["vocab_size"], where)
    wanted = datasets(config)
    used = {_fill(dataset, tensors, config, metadata["general.architecture"], where) for dataset in wanted}
    left = sorted(tensors.keys() - used - {"rope_freqs.weight"})
    if left:
        raise BadInput(f"{where}: tensor {left[0]}: not understood, and it might change the result")
    return config, wanted, tokenizer
