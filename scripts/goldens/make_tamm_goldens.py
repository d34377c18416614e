#!/usr/bin/env python3
"""Makes tests/convert/tamm/: small PT-MoE checkpoints of Apple's own class, and its log-probabilities in float64.

Needs torch, safetensors and tamm (pip install torch safetensors tamm==0.2.0); the tests only read the files. Every parameter
is drawn anew: norm weights 1 ± 0.2, matrices 1.4 / sqrt(in), the embedding from N(0, 1). A checkpoint is stored in bfloat16,
whose values the class computes with, so that nothing is rounded in between.

NAME.safetensors, NAME.json (the configuration), goldens.json: for each NAME the texts and the log-probability of every token
after the first.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tamm.models.afm_text.afm_pt_moe import AFMParallelTrackMoEConfig

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "convert" / "tamm"

SMALL = {"vocab_size": 61, "hidden_dim": 16, "attention_hidden_dim": 16, "dense_feed_forward_hidden_dim": 20,
         "sparse_feed_forward_hidden_dim": 8, "num_heads": 2, "num_experts": 4, "local_attention_window_size": 7}
CONFIGS = {
    # As AFMParallelTrackMoEConfig has it: mean, pre norms, three local layers and a global one, dense and sparse in turn.
    "default": {"num_tracks": 4, "num_layers_per_track": 8, "num_layers_per_track_per_sync_point": 4},
    # As the larger variants: sum, every norm, those of dispatch and combine too, scale before normalising, all sparse.
    "all_norms": {"num_tracks": 4, "num_layers_per_track": 4, "num_layers_per_track_per_sync_point": 2, "rope_theta": 10000.0,
                  "norm_eps": 1e-6, "tracks_combine_op": "sum", "tracks_dispatch_norm": "pre_scale_rms_norm",
                  "tracks_combine_norm": "pre_scale_rms_norm", "pre_norm": "pre_scale_rms_norm",
                  "pre_residual_norm": "pre_scale_rms_norm", "feed_forward_layer_pattern": ["sparse"],
                  "attention_layer_pattern": ["local_rope", "global_nope"]},
    "grouped": {"num_tracks": 4, "num_layers_per_track": 3, "num_layers_per_track_per_sync_point": 1, "num_heads": 4,
                "num_kv_heads": 2, "pre_norm": None, "post_norm": "rms_norm", "tracks_combine_norm": "rms_norm",
                "experts_router_logits_cap": None, "num_experts_per_token": 3, "attention_layer_pattern": ["local_rope"],
                "feed_forward_layer_pattern": ["dense", "sparse", "sparse"]},
    "plain_qk": {"num_tracks": 2, "num_layers_per_track": 2, "num_layers_per_track_per_sync_point": 2, "scale_qk_norm": False,
                 "post_norm": "pre_scale_rms_norm", "pre_residual_norm": "rms_norm", "tracks_combine_op": "sum",
                 "tracks_dispatch_norm": "rms_norm", "experts_router_logits_cap": 2.0, "num_experts_per_token": 1,
                 "attention_layer_pattern": ["local", "global_nope"], "feed_forward_layer_pattern": ["sparse", "dense"]},
}
LENGTHS = (2, 9, 40)  # tokens; the last is far longer than the window


def draw(name, shape, generator):
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if "norm" in name:
        values = 1 + 0.2 * noise
    else:
        values = noise if name == "embedding.weight" else 1.4 * noise / shape[-2] ** 0.5  # [.., in, out]
    return values.bfloat16().double()


def golden(config, seed):
    """The state dict and the log-probabilities of one model."""
    generator = torch.Generator().manual_seed(seed)
    model = AFMParallelTrackMoEConfig(**config).create_model().double().eval()
    for module in model.modules():
        if getattr(module, "cast_dtype", None) is torch.float32:
            module.cast_dtype = torch.float64  # of norms and the router: here they compute in float64 too
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(name, tuple(parameter.shape), generator))
        texts = [torch.randint(1, config["vocab_size"], (length,), generator=generator) for length in LENGTHS]
        tables = [model(text[None]).logits[0].log_softmax(-1) for text in texts]
    scored = [{"tokens": text.tolist(), "logprobs": [round(lp, 7) for lp in table[:-1].gather(1, text[1:, None])[:, 0].tolist()]}
              for text, table in zip(texts, tables)]
    return {name: values.bfloat16() for name, values in model.named_parameters()}, scored


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    goldens = {}
    for seed, (name, changes) in enumerate(CONFIGS.items()):
        config = {**SMALL, **changes}
        state, goldens[name] = golden(config, seed)
        save_file({key: values.contiguous() for key, values in state.items()}, FOLDER / f"{name}.safetensors")
        (FOLDER / f"{name}.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    (FOLDER / "goldens.json").write_text(json.dumps(goldens) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
