"""The Parallel Track model in float64, written only from its definition (docs/SPEC.md, The model).

It shares no code with the program under test: h5py reads the weights, numpy computes the sums. A whole sequence
is computed at once, without a cache; prefill, decode and batching of the program must agree with it.

Shapes: n tokens, d hidden_size, H heads, G kv_heads, c head_dim, V vocab_size.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

Array = np.ndarray


@dataclass
class Model:
    """A config (docs/SPEC.md, The file) and the tensors by their path in the file, all float64."""

    config: dict
    tensors: dict[str, Array]
    tokenizer: str | None = None
    router_margin: float = field(default=np.inf, compare=False)

    def track(self, track: int, layer: int, name: str) -> Array:
        return self.tensors[f"/tracks/{track:02d}/layers/{layer:03d}/{name}"]

    def block(self, track: int, block: int, name: str) -> Array:
        return self.tensors[f"/tracks/{track:02d}/blocks/{block:02d}/{name}"]


def float8_values() -> Array:
    """What the 256 codes of float8 (e4m3, no infinities) stand for: sign, four bits of exponent, three of fraction."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, fraction / 8 * 2.0 ** -6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    values[codes & 127 == 127] = np.nan
    return np.where(codes >= 128, -values, values)


def widen(dataset: h5py.Dataset) -> Array:
    """The float64 values of a dataset of any element type; the scales of int8 and float8 are another dataset."""
    raw = dataset[()]
    kind = dataset.attrs.get("dtype")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if raw.dtype == np.uint8 and kind == "float8_e4m3fn":
        scale = dataset.parent[dataset.name.rsplit("/", 1)[1] + ".scale"][()]
        if scale.dtype != np.float32:
            raise ValueError(f"{dataset.name}.scale: element type {scale.dtype}")
        return float8_values()[raw] * scale.astype(np.float64)[..., None]
    if raw.dtype == np.int8:
        scale = dataset.parent[dataset.name.rsplit("/", 1)[1] + ".scale"][()]
        if scale.dtype != np.float16:
            raise ValueError(f"{dataset.name}.scale: element type {scale.dtype}")
        return raw * np.repeat(scale.astype(np.float64), 32, axis=-1)[..., :raw.shape[-1]]
    if raw.dtype == np.uint16:
        if kind != "bfloat16":
            raise ValueError(f"{dataset.name}: uint16 with dtype {kind!r}")
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    if raw.dtype not in (np.float32, np.float16):
        raise ValueError(f"{dataset.name}: element type {raw.dtype}")
    return raw.astype(np.float64)


def load(path: str | Path) -> Model:
    """Reads a model file, following external links to the files of single tracks."""
    tensors: dict[str, Array] = {}

    def collect(group: h5py.Group, prefix: str) -> None:
        for name in group:
            child = group[name]
            if isinstance(child, h5py.Group):
                collect(child, f"{prefix}/{name}")
            elif not name.endswith(".scale"):
                tensors[f"{prefix}/{name}"] = widen(child)

    with h5py.File(path, "r") as file:
        text = file.attrs["config"]
        config = json.loads(text)
        for top in ("shared", "tracks"):
            collect(file[top], f"/{top}")
        tokenizer = file["tokenizer"].attrs["kind"] if "tokenizer" in file else None
    if isinstance(tokenizer, bytes):
        tokenizer = tokenizer.decode()
    return Model(config, tensors, tokenizer)


def rms_norm(x: Array, weight: Array, eps: float, pre_scale: bool = False) -> Array:
    if pre_scale:
        x, weight = x * weight, 1.0
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def pre_scales(config: dict, place: str) -> bool:
    return place in (config.get("pre_scale_norms") or [])


def silu(x: Array) -> Array:
    return x * 0.5 * (1.0 + np.tanh(0.5 * x))  # x * sigmoid(x), without overflow


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x ** 3)))


def yarn_frequencies(scaling: dict, theta: float, c: int) -> Array:
    """Pairs that turn often keep their frequency, those that turn rarely are divided by the factor."""
    frequencies = theta ** (-2.0 * np.arange(c // 2) / c)

    def pair(turns: float) -> float:
        return c * np.log(scaling["original_max_position"] / (turns * 2 * np.pi)) / (2 * np.log(theta))

    low = max(np.floor(pair(scaling["beta_fast"])), 0)
    high = min(np.ceil(pair(scaling["beta_slow"])), c - 1)
    ramp = np.clip((np.arange(c // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return frequencies * (1 - ramp) + frequencies / scaling["factor"] * ramp


def rope_frequencies(config: dict, kind: str) -> tuple[Array, float]:
    """The angle per position of each pair, and the factor on cosines and sines, for layers of a kind."""
    c, theta, scaling = config["head_dim"], config["rope_theta"], config.get("rope_scaling")
    if kind == "local_rope" and config.get("rope_theta_local") is not None:
        theta, scaling = config["rope_theta_local"], None
    frequencies = theta ** (-2.0 * np.arange(c // 2) / c)
    if not scaling:
        return frequencies, 1.0
    factor = scaling["factor"]
    if scaling["type"] == "linear":
        return frequencies / factor, 1.0
    if scaling["type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        wavelength = 2 * np.pi / frequencies
        smooth = (scaling["original_max_position"] / wavelength - low) / (high - low or 1.0)  # equal: none is blended
        blended = (1 - smooth) * frequencies / factor + smooth * frequencies
        longest, shortest = (scaling["original_max_position"] / turns for turns in (low, high))
        kinds = [wavelength > longest, wavelength < shortest]
        return np.select(kinds, [frequencies / factor, frequencies], blended), 1.0
    if scaling["type"] == "yarn":
        magnitude = scaling.get("attention_factor")
        if magnitude is None:
            magnitude = 0.1 * np.log(factor) + 1 if factor > 1 else 1.0
        return yarn_frequencies(scaling, theta, c), magnitude
    raise ValueError(f"rope_scaling type {scaling['type']!r}")


def rope(v: Array, frequencies: Array, magnitude: float = 1.0) -> Array:
    """Rotates v [n, heads, c]; element j of the first half is paired with element j of the second."""
    n, _, c = v.shape
    half = c // 2
    angle = np.arange(n)[:, None] * frequencies
    cos, sin = magnitude * np.cos(angle)[:, None, :], magnitude * np.sin(angle)[:, None, :]
    low, high = v[..., :half], v[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(model: Model, track: int, layer: int, x: Array) -> Array:
    """Causal grouped-query attention of one layer, x [n, d] -> [n, d]."""
    cfg = model.config
    n, heads, kv_heads, c = len(x), cfg["heads"], cfg["kv_heads"], cfg["head_dim"]
    kind = cfg["attention_pattern"][layer % len(cfg["attention_pattern"])]

    def project(name: str, of: Array) -> Array:
        bias = model.track(track, layer, f"b{name}") if name in (cfg.get("attention_bias") or []) else 0.0
        return of @ model.track(track, layer, f"w{name}").T + bias

    def normed(name: str, of: Array) -> Array:
        return rms_norm(of, model.track(track, layer, f"{name}_norm"), cfg["norm_eps"]) if cfg["qk_norm"] else of

    q = project("q", x).reshape(n, heads, c)
    k, v = (project(name, x).reshape(n, kv_heads, c) for name in "kv")
    norm_last = cfg.get("qk_norm_order") == "after_rope"
    if not norm_last:
        q, k = normed("q", q), normed("k", k)
    if kind.endswith("_rope"):
        q, k = (rope(a, *rope_frequencies(cfg, kind)) for a in (q, k))
    if norm_last:
        q, k = normed("q", q), normed("k", k)
    of_head = np.arange(heads) // (heads // kv_heads)
    q, k, v = (a.transpose(1, 0, 2) for a in (q, k[:, of_head], v[:, of_head]))  # each [H, n, c]
    scale = cfg.get("attention_scale")
    scores = q @ k.transpose(0, 2, 1) * (1 / np.sqrt(c) if scale is None else scale)
    query, key = np.arange(n)[:, None], np.arange(n)[None, :]
    seen = key <= query
    if kind.startswith("local_"):
        seen &= key > query - cfg["attention_window"]
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ v).transpose(1, 0, 2).reshape(n, heads * c)
    return project("o", mixed)


def gated(config: dict, x: Array, gate: Array, up: Array, down: Array) -> Array:
    activation = {"silu": silu, "gelu_tanh": gelu_tanh}[config.get("ffn_activation") or "silu"]
    return (activation(x @ gate.T) * (x @ up.T)) @ down.T


def mixture(model: Model, track: int, layer: int, x: Array) -> Array:
    """Mixture of experts. Records the smallest margin by which an expert was chosen."""
    moe = model.config["moe"]
    logits = x @ model.track(track, layer, "router").T
    cap = moe["router_logit_cap"]
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=-1)
    top_k = moe["top_k"]
    if top_k < moe["experts"]:
        margin = float(np.min(ranked[:, top_k - 1] - ranked[:, top_k]))
        model.router_margin = min(model.router_margin, margin)
    share = np.exp(ranked - ranked[:, :1])
    over = slice(None) if moe.get("normalize_top_k") is False else slice(top_k)
    share /= share[:, over].sum(axis=-1, keepdims=True)
    out = np.zeros_like(x)
    for expert in range(moe["experts"]):
        rows, slots = np.nonzero(order[:, :top_k] == expert)
        gate, up, down = (model.track(track, layer, f"experts/{name}")[expert]
                          for name in ("w_gate", "w_up", "w_down"))
        out[rows] += share[rows, slots, None] * gated(model.config, x[rows], gate, up, down)
    return out


def ffn(model: Model, track: int, layer: int, x: Array) -> Array:
    pattern = model.config["ffn_pattern"]
    if pattern[layer % len(pattern)] == "moe":
        return mixture(model, track, layer, x)
    return gated(model.config, x, *(model.track(track, layer, name) for name in ("w_gate", "w_up", "w_down")))


def run_layer(model: Model, track: int, layer: int, h: Array) -> Array:
    cfg = model.config

    def norm(place: str, weight: str, x: Array) -> Array:
        if place not in cfg["norm_placement"]:
            return x
        return rms_norm(x, model.track(track, layer, weight), cfg["norm_eps"], pre_scales(cfg, place))

    a = attention(model, track, layer, norm("pre", "attn_norm", h))
    h = norm("post", "attn_post_norm", h + norm("output", "attn_output_norm", a))
    f = ffn(model, track, layer, norm("pre", "ffn_norm", h))
    return norm("post", "ffn_post_norm", h + norm("output", "ffn_output_norm", f))


def fuse(op: str, x: Array, ends: list[Array]) -> Array:
    if op == "mean":
        return sum(ends) / len(ends)
    if op == "sum":
        return sum(ends)
    if op == "delta_sum":
        return x + sum(y - x for y in ends)
    raise ValueError(f"fusion op {op!r}")


def logits(model: Model, tokens: list[int]) -> Array:
    """The logits [n, V] after every token of the sequence."""
    cfg, fusion = model.config, model.config["fusion"]
    embedding = model.tensors["/shared/embedding"]
    x = embedding[np.asarray(tokens)] * (cfg.get("embedding_scale") or 1.0)
    first = 0
    for block, last in enumerate(cfg["sync_layers"]):
        ends = []
        for track in range(cfg["tracks"]):
            h = x
            if fusion["dispatch_norm"]:
                h = rms_norm(h, model.block(track, block, "dispatch_norm"), cfg["norm_eps"],
                             pre_scales(cfg, "dispatch"))
            for layer in range(first, last):
                h = run_layer(model, track, layer, h)
            if fusion["combine_norm"]:
                h = rms_norm(h, model.block(track, block, "combine_norm"), cfg["norm_eps"],
                             pre_scales(cfg, "combine"))
            ends.append(h)
        x = fuse(fusion["op"], x, ends)
        first = last
    head = embedding if cfg["tie_embeddings"] else model.tensors["/shared/lm_head"]
    return rms_norm(x, model.tensors["/shared/final_norm"], cfg["norm_eps"]) @ head.T


def log_softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def log_probs(model: Model, tokens: list[int]) -> Array:
    """Log-probabilities [n, V] of the token that follows each position."""
    return log_softmax(logits(model, tokens))


def score(model: Model, tokens: list[int]) -> Array:
    """Log-probability of each token after the first, given those before it, [n - 1]."""
    table = log_probs(model, tokens)
    return table[np.arange(len(tokens) - 1), np.asarray(tokens[1:], dtype=int)]


def greedy(model: Model, prompt: list[int], count: int) -> list[int]:
    """The likeliest continuation, token by token; it ends after an end-of-sequence token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(np.argmax(logits(model, tokens)[-1])))
        if tokens[-1] in model.config["eos_token_ids"]:
            break
    return tokens[len(prompt):]
