"""Small models in the file format, written by h5py alone: random ones, and ones with prescribed output."""

import json
from pathlib import Path

import h5py
import numpy as np

from crc32c import crc32c
from pt_reference import Model, float8_values

Array = np.ndarray

DEFAULTS: dict = {
    "name": "random", "tracks": 1, "layers": 2, "sync_layers": None,
    "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False},
    "hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_size": 96, "vocab_size": 259,
    "max_context": 512, "norm_eps": 1e-5, "norm_placement": ["pre"], "qk_norm": False,
    "attention_pattern": ["global_rope"], "attention_window": 0, "rope_theta": 10000.0,
    "ffn_pattern": ["dense"], "moe": None, "tie_embeddings": True, "bos_token_id": None, "eos_token_ids": [],
}

# Keys that a config may lack.
OPTIONAL = ("attention_bias", "qk_norm_order", "pre_scale_norms", "rope_scaling", "rope_theta_local",
            "attention_scale", "ffn_activation", "embedding_scale")

_GAINS = {"wq": 1.6, "wk": 1.6, "wv": 1.0, "wo": 1.0, "w_gate": 1.3, "w_up": 1.0, "w_down": 1.5,
          "router": 2.0}


def make_config(**changes) -> dict:
    """A whole config: the defaults above with changes; by default the last layer is the only sync layer."""
    unknown = set(changes) - set(DEFAULTS) - set(OPTIONAL)
    if unknown:
        raise ValueError(f"no such config keys: {sorted(unknown)}")
    config = json.loads(json.dumps({**DEFAULTS, **changes}))
    config["fusion"] = {**DEFAULTS["fusion"], **config["fusion"]}
    if config["sync_layers"] is None:
        config["sync_layers"] = [config["layers"]]
    return config


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every dataset that the config needs, by path."""
    d, vocab, c = config["hidden_size"], config["vocab_size"], config["head_dim"]
    q, kv = config["heads"] * c, config["kv_heads"] * c
    places = [place for place in ("pre", "output", "post") if place in config["norm_placement"]]
    infix = {"pre": "", "output": "output_", "post": "post_"}
    shapes: dict[str, tuple[int, ...]] = {"/shared/embedding": (vocab, d), "/shared/final_norm": (d,)}
    if not config["tie_embeddings"]:
        shapes["/shared/lm_head"] = (vocab, d)
    for track in range(config["tracks"]):
        for block in range(len(config["sync_layers"])):
            for name in ("dispatch_norm", "combine_norm"):
                if config["fusion"][name]:
                    shapes[f"/tracks/{track:02d}/blocks/{block:02d}/{name}"] = (d,)
        for layer in range(config["layers"]):
            at = f"/tracks/{track:02d}/layers/{layer:03d}"
            for place in places:
                shapes[f"{at}/attn_{infix[place]}norm"] = (d,)
                shapes[f"{at}/ffn_{infix[place]}norm"] = (d,)
            shapes |= {f"{at}/wq": (q, d), f"{at}/wk": (kv, d), f"{at}/wv": (kv, d), f"{at}/wo": (d, q)}
            width = {"q": q, "k": kv, "v": kv, "o": d}
            shapes |= {f"{at}/b{name}": (width[name],) for name in config.get("attention_bias") or []}
            if config["qk_norm"]:
                shapes |= {f"{at}/q_norm": (c,), f"{at}/k_norm": (c,)}
            if config["ffn_pattern"][layer % len(config["ffn_pattern"])] == "dense":
                f = config["ffn_size"]
                shapes |= {f"{at}/w_gate": (f, d), f"{at}/w_up": (f, d), f"{at}/w_down": (d, f)}
            else:
                e, f = config["moe"]["experts"], config["moe"]["ffn_size"]
                shapes |= {f"{at}/router": (e, d), f"{at}/experts/w_gate": (e, f, d),
                           f"{at}/experts/w_up": (e, f, d), f"{at}/experts/w_down": (e, d, f)}
    return shapes


def random_tensors(config: dict, seed: int) -> dict[str, Array]:
    """Weights that keep activations near 1 and logits a few units apart, so that a wrong term shows."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, shape in tensor_shapes(config).items():
        name = path.rsplit("/", 1)[1]
        noise = rng.standard_normal(shape)
        if name.endswith("norm"):
            tensors[path] = (1.0 + 0.25 * noise).astype(np.float32)
        elif name in ("bq", "bk", "bv", "bo"):
            tensors[path] = (0.7 * noise).astype(np.float32)
        elif name in ("embedding", "lm_head"):
            tensors[path] = (noise * 2.5 / np.sqrt(shape[-1])).astype(np.float32)
        else:
            tensors[path] = (noise * _GAINS[name] / np.sqrt(shape[-1])).astype(np.float32)
    return tensors


def to_bfloat16(values: Array) -> Array:
    """Rounds to the nearest bfloat16, ties to even; the result is its bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def is_matrix(path: str, config: dict) -> bool:
    """Whether the tensor may be int8 or float8: no norm, router or embedding."""
    return len(tensor_shapes(config)[path]) > 1 and path.rsplit("/", 1)[1] not in ("router", "embedding")


def quantize(values: Array) -> tuple[Array, Array]:
    """int8 elements and float16 scales of groups of 32 along the last dimension."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    width, groups = values.shape[-1], -(-values.shape[-1] // 32)
    padded = np.zeros((*values.shape[:-1], groups * 32), np.float32)
    padded[..., :width] = values
    grouped = padded.reshape(*values.shape[:-1], groups, 32)
    scale = (np.abs(grouped).max(axis=-1) / np.float32(127)).astype(np.float16)
    wide = scale.astype(np.float32)[..., None]
    q = np.clip(np.rint(np.divide(grouped, wide, out=np.zeros_like(grouped), where=wide > 0)), -127, 127)
    return q.astype(np.int8).reshape(padded.shape)[..., :width], scale


def to_float8(values: Array) -> Array:
    """The codes nearest to values of up to ±448, by a search among all; of two as near, the even one."""
    ascending = float8_values()[:127]  # those of the codes 0 ... 126
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    below = np.clip(np.searchsorted(ascending, magnitude, side="right") - 1, 0, 125)
    to_below, to_above = magnitude - ascending[below], ascending[below + 1] - magnitude
    up = (to_above < to_below) | ((to_above == to_below) & (below % 2 == 1))
    return ((below + up) | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def quantize_float8(values: Array) -> tuple[Array, Array]:
    """float8 codes, and float32 scales of rows: the smallest power of two with max / scale <= 448; 1 for zeros."""
    values = np.asarray(values, dtype=np.float64)
    largest = np.abs(values).max(axis=-1)
    fraction, exponent = np.frexp(largest / 448)  # in [0.5, 1)
    scale = np.ldexp(1.0, np.maximum(np.where(fraction == 0.5, exponent - 1, exponent), -117))
    scale = np.where(largest == 0, 1.0, scale)
    return to_float8(values / scale[..., None]), scale.astype(np.float32)


def _stored(values: Array, dtype: str, index: int) -> tuple[Array, bool]:
    """The array as stored in the file, and whether it is bfloat16."""
    if dtype == "mixed":
        dtype = ("float32", "bfloat16", "float16")[index % 3]
    if dtype == "bfloat16":
        return to_bfloat16(values), True
    return values.astype({"float32": np.float32, "float16": np.float16}[dtype]), False


def write_model(path: str | Path, config: dict, tensors: dict[str, Array], *, dtype: str = "float32",
                split: bool = False, crc: bool = True, tokenizer: str | None = "bytes",
                tokenizer_model: bytes | None = None, fixed_strings: bool = False) -> Path:
    """Writes a model file; split puts each track into its own file, reached by an external link.

    With dtype "int8" or "float8" the matrices have that type, and everything else is float32.
    """
    path = Path(path)

    def text(value: str):
        return np.bytes_(value.encode()) if fixed_strings else value

    with h5py.File(path, "w") as file:
        file.attrs["format"] = text("ptrt")
        file.attrs["format_version"] = 1
        file.attrs["config"] = text(json.dumps(config))
        if tokenizer:
            file.create_group("tokenizer").attrs["kind"] = text(tokenizer)
        if tokenizer_model is not None:
            file["/tokenizer/model"] = np.frombuffer(tokenizer_model, np.uint8)
        shards: dict[str, h5py.File] = {}
        for index, (name, values) in enumerate(tensors.items()):
            target: h5py.Group = file
            parts = name.split("/")
            inner = name
            if split and parts[1] == "tracks":
                shard_name = f"{path.stem}-{parts[2]}.h5"
                if shard_name not in shards:
                    shards[shard_name] = h5py.File(path.parent / shard_name, "w")
                    file[f"/tracks/{parts[2]}"] = h5py.ExternalLink(shard_name, "/weights")
                target, inner = shards[shard_name], "/weights/" + "/".join(parts[3:])
            narrow = {"int8": (quantize, None), "float8": (quantize_float8, "float8_e4m3fn")}.get(dtype)
            if narrow and is_matrix(name, config):
                elements, scale = narrow[0](values)
                parts_of_tensor = [(inner, elements, narrow[1]), (f"{inner}.scale", scale, None)]
            else:
                stored, is_bfloat16 = _stored(values, "float32" if narrow else dtype, index)
                parts_of_tensor = [(inner, stored, "bfloat16" if is_bfloat16 else None)]
            for part, stored, named in parts_of_tensor:
                dataset = target.create_dataset(part, data=stored)
                if named:
                    dataset.attrs["dtype"] = text(named)
                if crc:
                    dataset.attrs["crc32c"] = np.uint32(crc32c(stored.tobytes()))
        for shard in shards.values():
            shard.close()
    return path


def write_random(path: str | Path, config: dict, seed: int = 0, **options) -> Path:
    return write_model(path, config, random_tensors(config, seed), **options)


def table_tensors(config: dict, next_logits: Array) -> dict[str, Array]:
    """Weights of a model whose logits depend only on the last token: row u holds those after token u.

    The embedding is the identity and every layer adds nothing: the head's columns are the table's rows.
    """
    vocab = config["vocab_size"]
    if config["hidden_size"] != vocab or config["tie_embeddings"] or config["norm_placement"] != ["pre"]:
        raise ValueError("a table model has hidden_size = vocab_size, a head of its own, and pre norms")
    tensors = {path: np.zeros(shape, np.float32) for path, shape in tensor_shapes(config).items()}
    for path, values in tensors.items():
        if path.endswith("norm"):
            values[...] = 1.0
    tensors["/shared/embedding"] = np.eye(vocab, dtype=np.float32)
    # The final norm scales a one-hot row to about sqrt(vocab): its mean square is 1 / vocab.
    height = 1.0 / np.sqrt(1.0 / vocab + config["norm_eps"])
    tensors["/shared/lm_head"] = (np.asarray(next_logits).T / height).astype(np.float32)
    return tensors


def table_config(vocab: int = 259, **changes) -> dict:
    return make_config(**{"layers": 1, "hidden_size": vocab, "vocab_size": vocab, "heads": 1, "kv_heads": 1,
                          "head_dim": 2, "ffn_size": 2, "tie_embeddings": False, **changes})


def in_memory(config: dict, seed: int = 0) -> Model:
    """The reference model of the same random weights, without a file."""
    return Model(config, {path: t.astype(np.float64) for path, t in random_tensors(config, seed).items()})
