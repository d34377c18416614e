"""The Parallel Track model of one rank for an engine with paged attention: the tracks lie side by side in the head dimension.

Query head j of slot s is head s * heads + j, and its KV head s * kv_heads + j // (heads / kv_heads): what grouped-query
attention gives anyway. So a layer has one attention and one entry of the KV cache, whatever the number of tracks.

Shapes: S slots, the tracks of this rank; n tokens of all sequences of a step; d hidden_size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .convert.layout import ffn_kind
from .convert.pt_config import NORM_NAMES, block_norms, shared_shapes
from .convert.pt_math import route, wide
from .convert.rope import rope_keys
from .loading import load
from .parts import Gate, Rotation, TrackExperts, TrackLinear, TrackNorm, weight


def enter(norm, h, delta):
    """What a sub-layer takes, and the residual stream h after delta is added."""
    if norm is None:
        h = h if delta is None else h + delta
        return h, h
    return (norm(h), h) if delta is None else norm(delta, h)


class FoldedLayer(nn.Module):

    def __init__(self, config: dict, i: int, slots: int, make: dict[str, Callable], rope):
        super().__init__()
        self.slots, self.head_dim, self.rope = slots, config["head_dim"], rope
        d, eps, bias = config["hidden_size"], config["norm_eps"], config["attention_bias"]
        for place, names in NORM_NAMES.items():
            for name in names:
                setattr(self, name, make["norm"](slots, d, eps, place in config["pre_scale_norms"])
                        if place in config["norm_placement"] else None)
        q, kv = config["heads"] * self.head_dim, config["kv_heads"] * self.head_dim
        self.widths = (q, kv, kv)
        self.wqkv = make["linear"](slots, q + 2 * kv, d, any(name in bias for name in "qkv"))
        self.wo = make["linear"](slots, d, q, "o" in bias)
        for name in ("q_norm", "k_norm"):
            setattr(self, name, make["norm"](slots, self.head_dim, eps, False) if config["qk_norm"] else None)
        self.norm_last = config["qk_norm_order"] == "after_rope"
        kind = config["attention_pattern"][i % len(config["attention_pattern"])]
        self.attend = make["attention"](i, slots * config["heads"], slots * config["kv_heads"], self.head_dim,
                                        config["attention_scale"],
                                        config["attention_window"] if kind.startswith("local_") else None)
        self.moe = config["moe"] if ffn_kind(config, i) == "moe" else None
        if self.moe:
            self.router = weight(slots, self.moe["experts"], d, exact=True)
            self.experts = make["experts"](slots, self.moe["experts"], d, self.moe["ffn_size"], config["ffn_activation"])
        else:
            self.w_gate_up = make["linear"](slots, 2 * config["ffn_size"], d, False)
            self.gate = make["activation"](config["ffn_activation"])
            self.w_down = make["linear"](slots, d, config["ffn_size"], False)

    def head_norms(self, q, k):
        """QK-norm of [n, S * heads * head_dim]."""
        def of_slots(norm, x):
            y = norm(x.unflatten(-1, (self.slots, -1, self.head_dim)).transpose(0, 1))
            return y.transpose(0, 1).flatten(1)

        return of_slots(self.q_norm, q), of_slots(self.k_norm, k)

    def attention(self, positions, x):
        """x [S, n, d] -> [S, n, d]."""
        q, k, v = (y.transpose(0, 1).flatten(1) for y in self.wqkv(x).split(self.widths, dim=-1))
        if self.q_norm is not None and not self.norm_last:
            q, k = self.head_norms(q, k)
        if self.rope is not None:
            q, k = self.rope(positions, q, k)
        if self.q_norm is not None and self.norm_last:
            q, k = self.head_norms(q, k)
        return self.wo(self.attend(q, k, v).unflatten(-1, (self.slots, -1)).transpose(0, 1))

    def ffn(self, x):
        if self.moe:
            share, chosen, _ = route(torch.bmm(wide(x), self.router.mT), self.moe)
            return self.experts(x, share, chosen)
        return self.w_down(self.gate(self.w_gate_up(x)))

    def forward(self, positions, h, delta):
        """The residual stream is h + delta [S, n, d], or h where delta is None; returns it in the same form."""
        x, h = enter(self.attn_norm, h, delta)
        a = self.attention(positions, x)
        a = a if self.attn_output_norm is None else self.attn_output_norm(a)
        if self.attn_post_norm is not None:
            h, a = self.attn_post_norm(a, h)[0], None
        x, h = enter(self.ffn_norm, h, a)
        f = self.ffn(x)
        f = f if self.ffn_output_norm is None else self.ffn_output_norm(f)
        return (h, f) if self.ffn_post_norm is None else (self.ffn_post_norm(f, h)[0], None)


class FoldedModel(nn.Module):
    """The tracks of one rank. Parameters are made on torch's default device, with its default type.

    attention(layer, heads, kv_heads, head_dim, scale, window) -> callable (q, k, v) -> out, called once a layer. heads and
        kv_heads are those of all slots, window None or the layer's; each tensor is [n, heads * head_dim].
    all_reduce(x) -> the sum over ranks, in the type of the model; may overwrite x. None: this rank holds all tracks.

    The rest has plain defaults in parts.py, and an engine may give its own makers of these:
    linear(slots, outputs, inputs, bias) -> module as TrackLinear, with parameters weight and, as asked, bias
    norm(slots, size, eps, scale_first) -> module as TrackNorm, which may overwrite its arguments if it has a residual
    rope(config, local) -> callable as Rotation, called once for each pair of theta and scaling
    activation(name) -> callable as Gate
    experts(slots, experts, size, ffn_size, activation) -> module as TrackExperts, with parameters w_gate_up and w_down
    Their parameters may lack the dimension of slots if there is one slot, or have slots and experts as one dimension.

    lm_head=False: the engine holds the head of an untied model itself (loading.read_head gives it).
    """

    def __init__(self, config: dict, tracks: range, *, attention, all_reduce=None, rope=None, experts=None, norm=None,
                 linear=None, activation=None, lm_head: bool = True):
        super().__init__()
        if all_reduce is None and len(tracks) != config["tracks"]:
            raise ValueError(f"{len(tracks)} of {config['tracks']} tracks need an all_reduce")
        self.config, self.tracks, self.all_reduce = config, tracks, all_reduce
        slots, d = len(tracks), config["hidden_size"]
        make = {"attention": attention, "linear": linear or TrackLinear, "norm": norm or TrackNorm,
                "activation": activation or Gate, "experts": experts or TrackExperts}
        rotations = []  # and theta and scaling of each: kinds of layers with equal ones share a table
        kinds = [config["attention_pattern"][i % len(config["attention_pattern"])] for i in range(config["layers"])]
        for local in {kind == "local_rope": None for kind in kinds if kind.endswith("_rope")}:
            if all(keys != rope_keys(config, local) for keys, _ in rotations):
                rotations.append((rope_keys(config, local), (rope or Rotation)(config, local)))

        def rotation(kind: str):
            if not kind.endswith("_rope"):
                return None
            return next(found for keys, found in rotations if keys == rope_keys(config, kind == "local_rope"))

        for name, shape in shared_shapes(config).items():
            if name != "final_norm" and (name != "lm_head" or lm_head):
                self.register_parameter(name, weight(*shape))
        self.layers = nn.ModuleList(FoldedLayer(config, i, slots, make, rotation(kind))
                                    for i, kind in enumerate(kinds))
        asked = block_norms(config)
        for name in ("dispatch_norm", "combine_norm"):
            first = name.split("_")[0] in config["pre_scale_norms"]
            setattr(self, name, nn.ModuleList(make["norm"](slots, d, config["norm_eps"], first)
                                              for _ in config["sync_layers"]) if name in asked else None)
        self.final_norm = make["norm"](1, d, config["norm_eps"], False)
        # A norm of the engine's may add to the stream in place; x is still needed, and one for all slots.
        self.copies = norm is not None

    def load(self, reader) -> set[str]:
        """Fills every parameter from a ShardReader of these tracks; returns their names."""
        return load(self, reader)

    def embed(self, tokens):
        """What forward takes instead of tokens, [n, d]."""
        x = F.embedding(tokens, self.embedding)
        return x if self.config["embedding_scale"] == 1 else x * self.config["embedding_scale"]

    def head_weight(self) -> torch.Tensor:
        """[vocab_size, d]: logits are F.linear(hidden, head_weight())."""
        return self.embedding if self.config["tie_embeddings"] else self.lm_head

    def fuse(self, x, y):
        """x [n, d] after the sync layer, of x before the block and y [S, n, d] after it."""
        if self.config["tracks"] == 1:
            return y[0]
        op = self.config["fusion"]["op"]
        y = wide(y) - x if op == "delta_sum" else wide(y)
        total = y[0] if len(y) == 1 else y.sum(0)
        total = total / self.config["tracks"] if op == "mean" else total
        if self.all_reduce is not None:
            total = self.all_reduce(total.to(x.dtype))
        return (x + total if op == "delta_sum" else total).to(x.dtype)

    def forward(self, tokens_or_embeddings, positions):
        """The hidden states that the head takes, [n, d]. positions [n]: of each token in its sequence, from 0."""
        x = tokens_or_embeddings
        x = x if x.is_floating_point() else self.embed(x)
        first = 0
        for block, last in enumerate(self.config["sync_layers"]):
            h, delta = x.expand(len(self.tracks), *x.shape), None
            h = h.clone() if self.copies else h
            h = h if self.dispatch_norm is None else self.dispatch_norm[block](h)
            for i in range(first, last):
                h, delta = self.layers[i](positions, h, delta)
            y, first = h if delta is None else h + delta, last
            x = self.fuse(x, y if self.combine_norm is None else self.combine_norm[block](y))
        return self.final_norm(x[None])[0]
