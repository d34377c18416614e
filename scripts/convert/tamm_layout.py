"""Apple's PT-MoE as the PyPI package tamm makes it (class AFMParallelTrackMoEConfig): its configuration and its tensors.

In tamm linears are [in, out], all tracks of a tensor lie in one, q, k and v in one linear. Its RoPE turns neighbouring
elements (2j, 2j + 1) of a head, the model file's turns (j, j + head_dim / 2): rows of wq and wk and the weights of QK-norm move
accordingly. Its window leaves out the token itself.
"""

import math

import numpy as np

from .errors import BadInput
from .pt_config import NORM_NAMES, block_norms, check_config
from .tensors import Tensor, with_halves

# The fields of AFMParallelTrackMoEConfig with their defaults.
FIELDS = {
    "vocab_size": 153600, "num_tracks": 8, "num_layers_per_track": 48, "num_layers_per_track_per_sync_point": 4,
    "hidden_dim": 2048, "attention_hidden_dim": 512, "dense_feed_forward_hidden_dim": 5888,
    "sparse_feed_forward_hidden_dim": 2944, "num_heads": 4, "num_kv_heads": None, "rope_theta": 500000.0,
    "attention_layer_pattern": ["local_rope", "local_rope", "local_rope", "global_nope"],
    "local_attention_window_size": 4096, "feed_forward_layer_pattern": ["dense", "sparse"], "num_experts": 40,
    "num_experts_per_token": 2, "experts_router_logits_cap": 50.0, "pre_norm": "rms_norm", "post_norm": None,
    "pre_residual_norm": None, "tracks_dispatch_norm": None, "tracks_combine_norm": None, "scale_qk_norm": True,
    "norm_eps": 1e-5, "tracks_combine_op": "mean",
}
# Fields that change no result of a trained model.
WITHOUT_EFFECT = ("sdpa_implementation", "hidden_dropout_p", "attention_dropout_p", "output_hidden_states", "output_attentions",
                  "output_expert_assignments")
TYPE = "module_configs:AFMParallelTrackMoEConfig"
# Norms by their place: the field of the config.
NORM_FIELDS = {"pre": "pre_norm", "output": "pre_residual_norm", "post": "post_norm", "dispatch": "tracks_dispatch_norm",
               "combine": "tracks_combine_norm"}
NORM_TENSORS = {"pre": "norm", "output": "residual_connection.pre_residual_norm", "post": "residual_connection.post_norm"}


def _fields(values):
    """The fields with their defaults; a field that is not known is an error."""
    if not isinstance(values, dict):
        raise BadInput("the config is not a JSON object")
    values = dict(values)
    kind = values.pop("__tamm_type__", TYPE)
    if kind != TYPE:
        raise BadInput(f"config field \"__tamm_type__\": expected \"{TYPE}\", found {kind!r}")
    for name in values:
        if name not in FIELDS and name not in WITHOUT_EFFECT:
            raise BadInput(f"unknown config field \"{name}\"")
    fields = {**FIELDS, **{name: value for name, value in values.items() if name in FIELDS}}
    for name, default in FIELDS.items():
        if isinstance(default, int) and not isinstance(default, bool) or name == "num_kv_heads" and fields[name] is not None:
            if not isinstance(fields[name], int) or isinstance(fields[name], bool) or fields[name] < 1:
                raise BadInput(f"config field \"{name}\": expected an integer, at least 1, found {fields[name]!r}")
    return fields


def _pattern(fields, name, meanings):
    pattern = fields[name]
    if not isinstance(pattern, (list, tuple)) or not pattern or any(kind not in meanings for kind in pattern):
        raise BadInput(f"config field \"{name}\": expected a list of {', '.join(meanings)}, found {pattern!r}")
    return [meanings[kind] for kind in pattern]


def _divided(fields, name, by):
    if fields[name] % fields[by]:
        raise BadInput(f"config field \"{name}\": {fields[name]} is no multiple of \"{by}\" {fields[by]}")
    return fields[name] // fields[by]


def _pre_scaled(fields):
    """The places of norms that multiply before they normalise."""
    for name in NORM_FIELDS.values():
        if fields[name] not in (None, "rms_norm", "pre_scale_rms_norm"):
            raise BadInput(f"config field \"{name}\": expected null, \"rms_norm\" or \"pre_scale_rms_norm\", found {fields[name]!r}")
    return [place for place, name in NORM_FIELDS.items() if fields[name] == "pre_scale_rms_norm"]


def tamm_config(values, max_context):
    """The model file's config of a JSON object of AFMParallelTrackMoEConfig's fields."""
    fields = _fields(values)
    attention = _pattern(fields, "attention_layer_pattern",
                         {"local_rope": "local_rope", "local": "local_rope", "global_nope": "global_nope"})
    ffn = _pattern(fields, "feed_forward_layer_pattern", {"dense": "dense", "sparse": "moe"})
    _divided(fields, "num_layers_per_track", by="num_layers_per_track_per_sync_point")
    if fields["tracks_combine_op"] not in ("mean", "sum"):
        raise BadInput(f"config field \"tracks_combine_op\": expected \"mean\" or \"sum\", found {fields['tracks_combine_op']!r}")
    if not isinstance(fields["scale_qk_norm"], bool):
        raise BadInput(f"config field \"scale_qk_norm\": expected true or false, found {fields['scale_qk_norm']!r}")
    layers, step = fields["num_layers_per_track"], fields["num_layers_per_track_per_sync_point"]
    moe = {"experts": fields["num_experts"], "top_k": fields["num_experts_per_token"],
           "ffn_size": fields["sparse_feed_forward_hidden_dim"], "router_logit_cap": fields["experts_router_logits_cap"]}
    return check_config({
        "name": "PT-MoE", "tracks": fields["num_tracks"], "layers": layers, "sync_layers": list(range(step, layers + 1, step)),
        "fusion": {"op": fields["tracks_combine_op"], "dispatch_norm": fields["tracks_dispatch_norm"] is not None,
                   "combine_norm": fields["tracks_combine_norm"] is not None},
        "hidden_size": fields["hidden_dim"], "heads": fields["num_heads"],
        "kv_heads": fields["num_kv_heads"] or fields["num_heads"],
        "head_dim": _divided(fields, "attention_hidden_dim", by="num_heads"),
        "ffn_size": fields["dense_feed_forward_hidden_dim"], "vocab_size": fields["vocab_size"], "max_context": max_context,
        "norm_eps": fields["norm_eps"], "norm_placement": [place for place in NORM_NAMES if fields[NORM_FIELDS[place]] is not None],
        "qk_norm": True, "attention_pattern": attention,
        "attention_window": fields["local_attention_window_size"] + 1 if "local_rope" in attention else 0,
        "rope_theta": fields["rope_theta"], "ffn_pattern": ffn, "moe": moe if "moe" in ffn else None, "tie_embeddings": True,
        "eos_token_ids": [], "qk_norm_order": "after_rope", "pre_scale_norms": _pre_scaled(fields)})


class Track:
    """The part that one track has of the tensors [tracks, ...] of a checkpoint."""

    def __init__(self, checkpoint, track, tracks):
        self._checkpoint, self._track, self._tracks = checkpoint, track, tracks

    def part(self, name, shape):
        whole = self._checkpoint.take(f"{name}.weight", (self._tracks, *shape))
        return whole.part(self._track * math.prod(shape[:-1]), shape)

    def vector(self, name, size):
        return [self.part(name, (size,))]

    def linear(self, name, rows, columns):
        return [transposed(self.part(name, (rows, columns)))]

    def experts(self, name, count, rows, columns):
        """One part an expert."""
        part = self.part(name, (count, rows, columns))
        return [transposed(part.part(e * rows, (rows, columns))) for e in range(count)]


def transposed(tensor):
    """[in, out] as [out, in]: a slice of rows is read as a slice of columns."""
    return Tensor(tensor.name, tensor.shape[::-1], tensor.dtype,
                  lambda first, last: tensor.read(0, tensor.rows)[:, first:last].T)


def _ones(size):
    return Tensor("ones", (size,), "float32", lambda first, last: np.ones((last - first, size), np.float32))


def _attention(config, rope, at, track):
    d, c = config["hidden_size"], config["head_dim"]
    q, kv = config["heads"] * c, config["kv_heads"] * c
    fused, = track.linear(f"{at}.qkv_transform.fused_linear", d, q + 2 * kv)

    def halves(tensor, heads):
        return [with_halves(tensor, heads) if rope else tensor]

    parts = {"wq": halves(fused.part(0, (q, d)), config["heads"]), "wk": halves(fused.part(q, (kv, d)), config["kv_heads"]),
             "wv": [fused.part(q + kv, (kv, d))], "wo": track.linear(f"{at}.output_transform", q, d)}
    for name, long_name in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
        weighted = config["scale_qk_norm"]
        parts[name] = halves(track.part(f"{at}.qk_norm.{long_name}", (c,)), 1) if weighted else [_ones(c)]
    return parts


def _ffn(config, sparse, at, track):
    d, moe = config["hidden_size"], config["moe"]
    gate, up, down = "hidden_transform.linear_0", "hidden_transform.linear_1", "output_transform"
    if not sparse:
        f = config["ffn_size"]
        return {"w_gate": track.linear(f"{at}.{gate}", d, f), "w_up": track.linear(f"{at}.{up}", d, f),
                "w_down": track.linear(f"{at}.{down}", f, d)}
    e, f = moe["experts"], moe["ffn_size"]
    return {"router": track.linear(f"{at}.router.input_transform", d, e),
            "experts/w_gate": track.experts(f"{at}.experts.{gate}", e, d, f),
            "experts/w_up": track.experts(f"{at}.experts.{up}", e, d, f),
            "experts/w_down": track.experts(f"{at}.experts.{down}", e, f, d)}


def _layer(config, layer, at, track):
    """The parts of one layer of a track, by the dataset's name."""
    rope = config["attention_pattern"][layer % len(config["attention_pattern"])] == "local_rope"
    sparse = config["ffn_pattern"][layer % len(config["ffn_pattern"])] == "moe"
    parts = _attention(config, rope, f"{at}.attention", track) | _ffn(config, sparse, f"{at}.feed_forward", track)
    for place in config["norm_placement"]:
        for name, sublayer in zip(NORM_NAMES[place], ("attention", "feed_forward")):
            parts[name] = track.vector(f"{at}.{sublayer}.{NORM_TENSORS[place]}", config["hidden_size"])
    return parts


def tamm_parts(config, values, checkpoint):
    """The parts of every dataset, by its path."""
    d, fields = config["hidden_size"], {**config, "scale_qk_norm": _fields(values)["scale_qk_norm"]}
    parts = {"/shared/embedding": [checkpoint.take("embedding.weight", (config["vocab_size"], d))],
             "/shared/final_norm": [checkpoint.take("output_norm.weight", (d,))]}
    transforms = {"dispatch_norm": "input_transform", "combine_norm": "output_transform"}
    for t in range(config["tracks"]):
        track, first = Track(checkpoint, t, config["tracks"]), 0
        for block, last in enumerate(config["sync_layers"]):
            segment = f"layers.segment_{block}"
            for name in block_norms(config):
                parts[f"/tracks/{t:02d}/blocks/{block:02d}/{name}"] = track.vector(f"{segment}.{transforms[name]}.norm", d)
            for layer in range(first, last):
                for name, found in _layer(fields, layer, f"{segment}.layer_{layer - first}", track).items():
                    parts[f"/tracks/{t:02d}/layers/{layer:03d}/{name}"] = found
            first = last
    checkpoint.take_copy("output_transform.weight", "embedding.weight")
    return parts
