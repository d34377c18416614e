#!/usr/bin/env python3
"""Random weights of a dense (one-track) configuration in the file formats of the programs that ptrt is compared with.

    perf/peer_models.py perf/configs/dense_125m.json --gguf dense.gguf            # float32; needs the PyPI package gguf
    perf/peer_models.py perf/configs/dense_125m.json --dllama dense.m dense.t     # float32 and a tokenizer
    perf/peer_models.py --model dense.h5 --hf DIR                                 # the weights of a dense model file

Speed does not depend on the values, so they are drawn from one normal distribution. Shapes are the configuration's.
--hf writes a Llama checkpoint of Hugging Face with the model file's own weights, in their type, without a tokenizer; needs
h5py.
"""
import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np


OPTIONAL_KEYS = {"attention_bias", "qk_norm_order", "pre_scale_norms", "rope_scaling", "rope_theta_local", "attention_scale",
                 "ffn_activation", "embedding_scale"}


def check(config):
    wanted = {"tracks": 1, "qk_norm": False, "moe": None, "tie_embeddings": False, "norm_placement": ["pre"],
              "attention_pattern": ["global_rope"], "ffn_pattern": ["dense"],
              "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False}}
    for key, value in wanted.items():
        if config[key] != value:
            sys.exit(f"peer_models: {key} is {config[key]}, only {value} has a counterpart in the other formats")
    for key in OPTIONAL_KEYS & set(config):
        sys.exit(f"peer_models: {key} has no counterpart in the other formats")


def layer_shapes(c):
    q, kv, d, f = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"], c["hidden_size"], c["ffn_size"]
    return {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q), "gate": (f, d), "down": (d, f), "up": (f, d)}


class Weights:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def matrix(self, shape):
        return (self.random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float32)

    @staticmethod
    def norm(size):
        return np.ones(size, dtype=np.float32)


SPECIAL = [b"<unk>", b"<s>", b"</s>"]


def words(count):
    """Pieces that occur in no text, to fill a vocabulary."""
    return [b"\xe2\x96\x81w%d" % i for i in range(count)]


def write_gguf(config, path, weights):
    import gguf
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config["max_context"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["layers"])
    out.add_feed_forward_length(config["ffn_size"])
    out.add_head_count(config["heads"])
    out.add_head_count_kv(config["kv_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_rope_dimension_count(config["head_dim"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = SPECIAL + [b"<0x%02X>" % i for i in range(256)]
    tokens += words(config["vocab_size"] - len(tokens))
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([-float(i) for i in range(len(tokens))])
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    d, names = config["hidden_size"], {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
                                       "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    out.add_tensor("token_embd.weight", weights.matrix((config["vocab_size"], d)))
    for i in range(config["layers"]):
        out.add_tensor(f"blk.{i}.attn_norm.weight", weights.norm(d))
        out.add_tensor(f"blk.{i}.ffn_norm.weight", weights.norm(d))
        for short, shape in layer_shapes(config).items():
            out.add_tensor(f"blk.{i}.{names[short]}.weight", weights.matrix(shape))
    out.add_tensor("output_norm.weight", weights.norm(d))
    out.add_tensor("output.weight", weights.matrix((config["vocab_size"], d)))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def key_values(pairs):
    return b"".join(struct.pack("<ii", key, value) for key, value in pairs)


def write_dllama(config, model_path, tokenizer_path, weights):
    float32, llama, silu = 0, 0xABCD00, 1
    header = key_values([(0, 0), (1, llama), (11, silu), (2, config["hidden_size"]), (3, config["ffn_size"]),
                         (4, config["layers"]), (5, config["heads"]), (6, config["kv_heads"]), (13, float32),
                         (10, config["max_context"]), (9, config["vocab_size"]), (7, 0), (8, 0),
                         (12, int(config["rope_theta"])), (19, config["head_dim"]), (20, 5)])
    d = config["hidden_size"]
    with open(model_path, "wb") as out:
        out.write(struct.pack("<ii", 0xA00ABCD, 8 + len(header)) + header)
        weights.matrix((config["vocab_size"], d)).tofile(out)
        for _ in range(config["layers"]):
            for shape in layer_shapes(config).values():
                weights.matrix(shape).tofile(out)
            weights.norm(d).tofile(out)
            weights.norm(d).tofile(out)
        weights.norm(d).tofile(out)
        weights.matrix((config["vocab_size"], d)).tofile(out)

    # Special pieces come last in this format: those before bos are the regular ones.
    tokens = [bytes([i]) for i in range(256)]
    tokens += words(config["vocab_size"] - len(tokens) - len(SPECIAL)) + SPECIAL
    bos, eos = len(tokens) - 2, len(tokens) - 1
    header = key_values([(3, bos), (0, 1), (1, len(tokens)), (2, max(map(len, tokens))), (9, 1), (10, 1)])
    with open(tokenizer_path, "wb") as out:
        out.write(struct.pack("<ii", 0x567124, 8 + len(header)) + header + struct.pack("<i", eos))
        for i, token in enumerate(tokens):
            out.write(struct.pack("<fI", -float(i), len(token)) + token)


HF_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def hf_datasets(config):
    """(name in the checkpoint, dataset of the model file)"""
    yield "model.embed_tokens.weight", "/shared/embedding"
    yield "model.norm.weight", "/shared/final_norm"
    yield "lm_head.weight", "/shared/lm_head"
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {f"w{short}": f"self_attn.{short}_proj" for short in "qkvo"}
    names |= {f"w_{short}": f"mlp.{short}_proj" for short in ("gate", "up", "down")}
    for i in range(config["layers"]):
        for ours, theirs in names.items():
            yield f"model.layers.{i}.{theirs}.weight", f"/tracks/00/layers/{i:03d}/{ours}"


def element_type(dataset):
    kind = dataset.attrs.get("dtype", str(dataset.dtype))
    return kind.decode() if isinstance(kind, bytes) else kind


def write_hf(model_path, folder):
    import h5py
    with h5py.File(model_path, "r") as file:
        config = json.loads(file.attrs["config"])
        check(config)
        found = {name: file[path] for name, path in hf_datasets(config)}
        types = {name: element_type(data) for name, data in found.items()}
        header, at = {}, 0
        for name, data in found.items():
            header[name] = {"dtype": HF_TYPES[types[name]], "shape": list(data.shape), "data_offsets": [at, at + int(data.nbytes)]}
            at += int(data.nbytes)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder) / "model.safetensors", "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for data in found.values():
                data[...].tofile(out)
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
             "mlp_bias": False, "hidden_size": config["hidden_size"], "intermediate_size": config["ffn_size"],
             "num_hidden_layers": config["layers"], "num_attention_heads": config["heads"],
             "num_key_value_heads": config["kv_heads"], "head_dim": config["head_dim"],
             "vocab_size": config["vocab_size"], "max_position_embeddings": config["max_context"],
             "rms_norm_eps": config["norm_eps"], "rope_theta": config["rope_theta"], "tie_word_embeddings": False,
             "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_ids"],
             "torch_dtype": types["model.embed_tokens.weight"]}
    (Path(folder) / "config.json").write_text(json.dumps(llama, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("config", nargs="?")
    source.add_argument("--model", help="a dense model file, for --hf")
    parser.add_argument("--hf", metavar="DIR", help="with --model")
    parser.add_argument("--gguf")
    parser.add_argument("--dllama", nargs=2, metavar=("MODEL", "TOKENIZER"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if bool(args.model) != bool(args.hf):
        parser.error("--model and --hf go together")
    if args.hf:
        return write_hf(args.model, args.hf)
    config = json.loads(Path(args.config).read_text(encoding="utf-8"))
    check(config)
    if args.gguf:
        write_gguf(config, args.gguf, Weights(args.seed))
    if args.dllama:
        write_dllama(config, *args.dllama, Weights(args.seed))


if __name__ == "__main__":
    main()
