#!/usr/bin/env python3
"""Random weights of a dense (one-track) configuration in the file formats of the programs that ptrt is compared with.

    perf/peer_models.py perf/configs/dense_125m.json --gguf dense.gguf            # float32; needs the PyPI package gguf
    perf/peer_models.py perf/configs/dense_125m.json --dllama dense.m dense.t     # float32 and a tokenizer

Speed does not depend on the values, so they are drawn from one normal distribution. Shapes are the configuration's.
"""
import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np


def check(config):
    wanted = {"tracks": 1, "qk_norm": False, "moe": None, "tie_embeddings": False, "norm_placement": ["pre"]}
    for key, value in wanted.items():
        if config[key] != value:
            sys.exit(f"peer_models: {key} is {config[key]}, only {value} has a counterpart in the other formats")


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--gguf")
    parser.add_argument("--dllama", nargs=2, metavar=("MODEL", "TOKENIZER"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    config = json.loads(Path(args.config).read_text(encoding="utf-8"))
    check(config)
    if args.gguf:
        write_gguf(config, args.gguf, Weights(args.seed))
    if args.dllama:
        write_dllama(config, *args.dllama, Weights(args.seed))


if __name__ == "__main__":
    main()
