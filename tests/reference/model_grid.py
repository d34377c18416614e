"""Random small models that together use every option of the model, in pairs, not as a full product.

If every block starts with a norm, mean and sum differ only by the epsilon of norms, so epsilon is large there.
"""

from dataclasses import dataclass, field

import numpy as np

from model_maker import make_config

PROMPT_LENGTHS = (1, 2, 15, 16, 17, 70, 300)


@dataclass(frozen=True)
class GridModel:
    config: dict
    seed: int
    dtype: str = "float32"
    file_options: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config["name"]


def _fusion(op: str, dispatch: bool = False, combine: bool = False) -> dict:
    return {"op": op, "dispatch_norm": dispatch, "combine_norm": combine}


def _moe(experts: int, top_k: int, ffn_size: int, cap: float | None, **more) -> dict:
    return {"experts": experts, "top_k": top_k, "ffn_size": ffn_size, "router_logit_cap": cap, **more}


def _llama3(factor: float, low: float, high: float, original: int) -> dict:
    return {"type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position": original}


def _yarn(factor: float, original: int, fast: float, slow: float, **more) -> dict:
    return {"type": "yarn", "factor": factor, "original_max_position": original, "beta_fast": fast,
            "beta_slow": slow, **more}


_SPECIAL = {"bos_token_id": 256, "eos_token_ids": [257, 258]}

GRID: tuple[GridModel, ...] = (
    GridModel(make_config(
        name="eight tracks, plain mean", tracks=8, layers=8, sync_layers=[4, 8], **_SPECIAL), 1),
    GridModel(make_config(
        name="six tracks, delta sum, all fusion norms, multi-query", tracks=6, layers=6,
        sync_layers=[1, 3, 6], fusion=_fusion("delta_sum", True, True), hidden_size=40, heads=4,
        kv_heads=1, head_dim=10, ffn_size=36, vocab_size=1003, norm_placement=["pre", "output"],
        qk_norm=True, attention_window=7, attention_pattern=["local_rope", "global_nope"],
        tie_embeddings=False), 2, "bfloat16", {"split": True, "tokenizer": None}),
    GridModel(make_config(
        name="three tracks, sum, sync after each layer, output norms", tracks=3, layers=3,
        sync_layers=[1, 2, 3], fusion=_fusion("sum", combine=True), kv_heads=4,
        norm_placement=["output"]), 3, "float16"),
    GridModel(make_config(
        name="five tracks, bare sum, capped mixture", tracks=5, layers=2, sync_layers=[1, 2],
        fusion=_fusion("sum"), heads=6, kv_heads=3, norm_placement=["pre", "post"],
        attention_pattern=["local_nope", "global_rope"], attention_window=16, ffn_pattern=["moe"],
        moe=_moe(4, 2, 48, 3.0)), 4, "float32", {"crc": False}),
    GridModel(make_config(
        name="two tracks, dispatch norm, dense and mixture in turn", tracks=2, layers=4, sync_layers=[2, 4],
        fusion=_fusion("mean", dispatch=True), norm_eps=0.02, ffn_pattern=["dense", "moe"],
        moe=_moe(3, 1, 40, None), tie_embeddings=False, **_SPECIAL), 5, "bfloat16", {"split": True}),
    GridModel(make_config(
        name="one track, post norms, slow rotation", layers=3, fusion=_fusion("delta_sum"), vocab_size=1003,
        heads=2, kv_heads=1, head_dim=32, norm_placement=["post"], rope_theta=500000.0), 6, "bfloat16",
        {"tokenizer": None, "fixed_strings": True}),
    GridModel(make_config(
        name="one track in blocks with norms", layers=4, sync_layers=[1, 4],
        fusion=_fusion("mean", True, True), norm_placement=["output", "post"],
        qk_norm=True, rope_theta=100.0), 7),
    GridModel(make_config(
        name="eight tracks, delta sum, mixture, local only", tracks=8, layers=3, sync_layers=[2, 3],
        fusion=_fusion("delta_sum"), hidden_size=48, head_dim=12, ffn_size=20, norm_placement=["post"],
        qk_norm=True, attention_pattern=["local_rope", "local_nope"], attention_window=33,
        ffn_pattern=["moe"], moe=_moe(5, 3, 28, 5.0), tie_embeddings=False), 8, "float16",
        {"split": True, "crc": False}),
    GridModel(make_config(
        name="seven tracks, sum, norms on both sides", tracks=7, layers=4, sync_layers=[3, 4],
        fusion=_fusion("sum", True, True), norm_eps=0.03, hidden_size=40, heads=5, kv_heads=5, head_dim=8,
        norm_placement=["pre"], attention_pattern=["global_nope"]), 9, "bfloat16"),
    GridModel(make_config(
        name="three tracks, delta sum, every norm", tracks=3, layers=3, sync_layers=[1, 3],
        fusion=_fusion("delta_sum", combine=True), hidden_size=36, heads=6, kv_heads=3, head_dim=6,
        ffn_size=50, norm_placement=["pre", "output", "post"], qk_norm=True), 10, "mixed"),
    GridModel(make_config(
        name="two tracks, no layer norms", tracks=2, layers=3, sync_layers=[2, 3], fusion=_fusion("mean"),
        norm_placement=[], attention_pattern=["local_rope"], attention_window=1, tie_embeddings=False), 11),
    GridModel(make_config(
        name="five tracks, every attention kind, wide epsilon", tracks=5, layers=5, sync_layers=[2, 3, 5],
        fusion=_fusion("mean", combine=True), norm_eps=0.05, attention_window=24,
        attention_pattern=["global_nope", "local_rope", "global_rope", "local_nope"]), 12, "mixed",
        {"fixed_strings": True}),
    GridModel(make_config(
        name="six tracks, sum, one mixture in three", tracks=6, layers=4, sync_layers=[1, 2, 4],
        fusion=_fusion("sum", dispatch=True), norm_eps=0.03, vocab_size=1003, hidden_size=40, heads=4,
        kv_heads=2, head_dim=10, ffn_size=36, attention_pattern=["global_rope", "global_nope"],
        ffn_pattern=["moe", "dense", "dense"], moe=_moe(6, 2, 36, None)), 13, "float32"),
    GridModel(make_config(
        name="one track, wide heads", layers=3, hidden_size=96, heads=8, kv_heads=2, head_dim=64,
        ffn_size=130, vocab_size=1003, qk_norm=True, ffn_pattern=["dense", "dense", "moe"],
        moe=_moe(4, 4, 64, 2.0), tie_embeddings=False, **_SPECIAL), 14, "bfloat16"),
    GridModel(make_config(
        name="eight tracks, odd sizes", tracks=8, layers=2, sync_layers=[1, 2], hidden_size=33, heads=3,
        kv_heads=3, head_dim=2, ffn_size=7, norm_placement=["output"], norm_eps=0.02,
        fusion=_fusion("mean", dispatch=True)), 15, "float16"),
    GridModel(make_config(
        name="one track, biases, linear rotation", layers=3, attention_bias=["q", "k", "v"],
        rope_scaling={"type": "linear", "factor": 2.5}, attention_scale=0.4, ffn_activation="silu",
        vocab_size=1003), 16, "bfloat16"),
    GridModel(make_config(
        name="two tracks, every bias, norm after rotation", tracks=2, layers=4, sync_layers=[2, 4],
        attention_bias=["o", "k", "v", "q"], qk_norm=True, qk_norm_order="after_rope", hidden_size=36, head_dim=10,
        rope_scaling=_llama3(8.0, 1.0, 4.0, 64), rope_theta=500.0, embedding_scale=3.5, heads=6, kv_heads=3,
        attention_pattern=["global_rope", "local_rope"], attention_window=20), 17, "mixed", {"split": True}),
    GridModel(make_config(
        name="one track, two thetas, gelu, scaled embedding", layers=4, norm_placement=["pre", "output"],
        qk_norm=True, attention_pattern=["local_rope", "local_rope", "global_rope"], attention_window=24,
        rope_theta=1000.0, rope_theta_local=30.0, rope_scaling={"type": "linear", "factor": 4.0},
        attention_scale=0.3, ffn_activation="gelu_tanh", embedding_scale=8.0, kv_heads=1), 18, "bfloat16"),
    GridModel(make_config(
        name="four tracks, norms that scale first, mixture weighted over all experts", tracks=4, layers=4,
        sync_layers=[2, 4], fusion=_fusion("mean", True, True), norm_eps=0.02,
        norm_placement=["pre", "output", "post"],
        pre_scale_norms=["pre", "output", "post", "dispatch", "combine"], qk_norm=True, qk_norm_order="after_rope",
        attention_pattern=["local_rope", "global_nope"], attention_window=16, ffn_pattern=["dense", "moe"],
        ffn_activation="gelu_tanh", moe=_moe(5, 2, 40, 4.0, normalize_top_k=False)), 19, "float32"),
    GridModel(make_config(
        name="three tracks, yarn, biases, mixture", tracks=3, layers=3, sync_layers=[1, 3],
        fusion=_fusion("delta_sum"), attention_bias=["q", "o"], rope_scaling=_yarn(4.0, 64, 2.0, 0.25),
        rope_theta=1000.0, pre_scale_norms=["pre"], tie_embeddings=False, embedding_scale=2.0,
        ffn_pattern=["moe", "dense"], moe=_moe(4, 2, 48, None, normalize_top_k=False), head_dim=24), 20, "bfloat16"),
    GridModel(make_config(
        name="two tracks, yarn with its own magnitude, post norms that scale first", tracks=2, layers=2,
        sync_layers=[1, 2], fusion=_fusion("sum", combine=True), norm_placement=["post"], norm_eps=0.02,
        pre_scale_norms=["post", "combine"], rope_scaling=_yarn(16.0, 32, 1.0, 0.05, attention_factor=1.4),
        attention_pattern=["global_rope", "local_nope"], attention_window=30, attention_bias=["v"],
        rope_theta_local=50.0), 21, "float16"),
)


def prompts(model: GridModel) -> list[list[int]]:
    """Token ids of the prompts used with a model; some repeat themselves, which attention can detect."""
    rng = np.random.default_rng(1000 + model.seed)
    rows = []
    for index, length in enumerate(PROMPT_LENGTHS):
        row = rng.integers(0, model.config["vocab_size"], size=length)
        if index % 2:
            row = np.resize(row[:max(1, length // 3)], length)
        rows.append([int(token) for token in row])
    return rows
