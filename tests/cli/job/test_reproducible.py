#!/usr/bin/python3
"""Results files must be the same bytes for every way to place, thread, batch and page the same requests."""

import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

PAGE_TOKENS = 16


def tight_cache(config: dict, rows: list[dict], local_tracks: int) -> int:
    """Bytes of float32 keys and values on a rank for the largest request and one more page."""
    tokens = max(1 + len(row.get("tokens", row.get("prompt"))) + row["max_tokens"] for row in rows)
    pages = -(-tokens // PAGE_TOKENS) + 1
    per_token = local_tracks * config["layers"] * 2 * config["kv_heads"] * config["head_dim"] * 4
    return pages * PAGE_TOKENS * per_token


def generate_requests(vocab: int, count: int) -> list[dict]:
    """Greedy and sampled, short and long, token ids and text, with stop strings and log-probabilities."""
    rng = np.random.default_rng(77)
    rows: list[dict] = []
    for index in range(count):
        length = (1, 5, 16, 17, 40, 90, 150)[index % 7]
        row: dict = {"max_tokens": (1, 12, 24, 33, 50)[index % 5]}
        if index % 4 == 3:
            row["prompt"] = "".join(chr(int(c)) for c in rng.integers(97, 123, size=length))
        else:
            row["tokens"] = [int(token) for token in rng.integers(0, vocab, size=length)]
        if index % 3 != 0:
            row |= {"temperature": (0.7, 1.0, 1.3)[index % 3], "seed": index}
        if index % 6 == 1:
            row["top_k"] = 20
        if index % 6 == 2:
            row["top_p"] = 0.9
        if index % 6 == 4:
            row |= {"top_k": 50, "top_p": 0.8}
            del row["seed"]  # then it comes from the id
        if index % 5 == 2:
            row["stop"] = [chr(c) for c in range(97, 110)]
        row["logprobs"] = index % 2 == 0
        rows.append(row)
    return rows


def score_requests(vocab: int) -> list[dict]:
    rng = np.random.default_rng(78)
    return [{"tokens": [int(token) for token in rng.integers(0, vocab, size=length)]}
            for length in (1, 2, 15, 16, 31, 33, 64, 100, 150, 200)]


class Reproducible(CliTest):
    """Each case names the ranks (None: without mpirun) and the options."""

    def compare(self, command: str, model: Path, rows: list[dict],
                cases: list[tuple[int | None, str]], common: tuple[str, ...] = ()) -> None:
        want = self.batch(command, model, rows, *common)
        lines = want.decode().splitlines()
        self.assertEqual(len(lines), len(rows))
        self.assertNotIn('"error"', want.decode())
        for ranks, options in cases:
            with self.subTest(command=command, ranks=ranks, options=options):
                got = self.batch(command, model, rows, *common, *options.split(), ranks=ranks)
                if got != want:
                    differing = [index for index, pair in enumerate(zip(got.decode().splitlines(), lines))
                                 if pair[0] != pair[1]]
                    self.fail(f"results differ in requests {differing} of {len(rows)}")

    def test_eight_tracks(self) -> None:
        config = make_config(tracks=8, layers=4, sync_layers=[2, 4], max_context=256, qk_norm=True,
                             tie_embeddings=False, bos_token_id=256, eos_token_ids=[257])
        model = write_random(self.fresh(".h5"), config, 21, dtype="bfloat16", split=True)
        rows = generate_requests(config["vocab_size"], 28)
        few = {tracks: tight_cache(config, rows, tracks) for tracks in (1, 2, 8)}
        wide = ("--kv-dtype", "float32")
        self.compare("generate", model, rows, [
            (None, "--threads 2"), (None, "--max-batch 1"), (None, f"--kv-cache-bytes {few[8]}"),
            (None, "--max-step-tokens 7"), (None, f"--threads 2 --max-batch 3 --kv-cache-bytes {few[8]}"),
            (1, "--max-batch 32"), (2, "--threads 2"), (4, ""), (8, ""), (8, "--threads 2 --max-batch 1"),
            (8, f"--kv-cache-bytes {few[1]}"), (16, ""), (4, "--replicas 2"),
            (8, f"--replicas 2 --kv-cache-bytes {few[2]}"), (2, "--vocab-head split --max-batch 1"),
            (8, "--vocab-head split"), (16, "--vocab-head split --max-batch 3"),
        ], wide)
        self.batch("generate", model, rows, *wide, "--kv-cache-bytes", str(few[8]))
        self.assertRegex(self.last_outcome.output, r"(?i)preempt\w*\D+[1-9]", "the cache was not tight")
        self.compare("score", model, score_requests(config["vocab_size"]), [
            (None, "--threads 2"), (None, "--max-batch 1"), (None, f"--kv-cache-bytes {few[8]}"), (2, ""),
            (None, "--max-step-tokens 5"), (8, ""), (16, ""), (4, "--vocab-head split"), (4, "--replicas 2 --max-batch 2"),
        ], wide)

    def test_every_type_of_products(self) -> None:
        config = make_config(tracks=4, layers=2, sync_layers=[1, 2], hidden_size=72, head_dim=18, ffn_size=100,
                             ffn_pattern=["moe", "dense"], max_context=256,
                             moe={"experts": 4, "top_k": 2, "ffn_size": 50, "router_logit_cap": None})
        model = write_random(self.fresh(".h5"), config, 24, dtype="bfloat16")
        rows = generate_requests(config["vocab_size"], 14)
        for products in (("--compute", "float32"), ("--compute", "bfloat16"), ("--weights", "int8")):
            self.compare("generate", model, rows, [
                (None, "--threads 2 --max-batch 1"), (None, "--max-step-tokens 7 --max-batch 3"), (4, ""),
                (4, "--vocab-head split --max-batch 1")], products)

    def test_optional_keys(self) -> None:
        """Models with as many of the optional keys as go together, with every type of products."""
        yarn = {"type": "yarn", "factor": 4.0, "original_max_position": 64, "beta_fast": 2.0, "beta_slow": 0.25}
        common = {"max_context": 256, "attention_bias": ["q", "k", "v", "o"], "qk_norm": True,
                  "pre_scale_norms": ["pre", "output", "post", "dispatch", "combine"], "attention_scale": 0.3,
                  "ffn_activation": "gelu_tanh", "embedding_scale": 6.0}
        of_tracks = make_config(tracks=4, layers=4, sync_layers=[2, 4], fusion={"dispatch_norm": True, "combine_norm": True},
                                qk_norm_order="after_rope", rope_scaling=yarn, ffn_pattern=["moe", "dense"],
                                moe={"experts": 4, "top_k": 2, "ffn_size": 50, "router_logit_cap": 5.0,
                                     "normalize_top_k": False}, **common)
        dense = make_config(layers=3, norm_placement=["pre", "output", "post"], rope_theta_local=50.0, head_dim=18,
                            attention_pattern=["local_rope", "global_rope"], attention_window=30,
                            rope_scaling={"type": "linear", "factor": 3.0}, **common)
        for config, seed, ranks in ((of_tracks, 26, (2, 4, 8)), (dense, 27, (2, 3))):
            model = write_random(self.fresh(".h5"), config, seed, dtype="bfloat16")
            rows = generate_requests(config["vocab_size"], 14)
            for products in (("--compute", "float32"), ("--compute", "bfloat16"), ("--weights", "int8")):
                self.compare("generate", model, rows, [
                    (None, "--threads 2 --max-batch 1"), (None, "--max-step-tokens 7 --max-batch 3"),
                    *((count, "") for count in ranks)], products)
            few = tight_cache(config, rows, config["tracks"])
            self.compare("generate", model, rows, [(None, f"--kv-cache-bytes {few}")], ("--kv-dtype", "float32"))
            self.compare("score", model, score_requests(config["vocab_size"]),
                         [(None, "--max-step-tokens 5"), (ranks[0], "--threads 2")])

    def test_six_tracks(self) -> None:
        config = make_config(tracks=6, layers=3, sync_layers=[1, 3], hidden_size=40, head_dim=10, ffn_size=36,
                             fusion={"op": "delta_sum", "dispatch_norm": True, "combine_norm": True},
                             ffn_pattern=["dense", "moe"], attention_pattern=["local_rope", "global_nope"],
                             attention_window=20, max_context=256,
                             moe={"experts": 4, "top_k": 2, "ffn_size": 30, "router_logit_cap": None})
        model = write_random(self.fresh(".h5"), config, 22)
        rows = generate_requests(config["vocab_size"], 14)
        few = tight_cache(config, rows, 2)
        self.compare("generate", model, rows, [(2, ""), (3, f"--kv-cache-bytes {few}"), (6, "")])

    def test_one_track(self) -> None:
        config = make_config(layers=3, vocab_size=1003, max_context=256, rope_theta=500000.0)
        model = write_random(self.fresh(".h5"), config, 23, dtype="float16")
        rows = generate_requests(259, 14)
        few = tight_cache(config, rows, 1)
        self.compare("generate", model, rows, [
            (None, "--kv-cache-bytes 256K"), (1, ""), (3, ""), (3, f"--max-batch 2 --kv-cache-bytes {few}")])
        self.compare("score", model, score_requests(1003), [(3, "--threads 2")])

    def test_rounded_keys_and_values(self) -> None:
        config = make_config(tracks=2, layers=4, sync_layers=[2, 4], max_context=256,
                             attention_pattern=["global_rope", "local_rope"], attention_window=50)
        model = write_random(self.fresh(".h5"), config, 24)
        rounded = ("--kv-dtype", "bfloat16")
        rows, texts = generate_requests(config["vocab_size"], 14), score_requests(config["vocab_size"])
        few = tight_cache(config, rows, 2) // 2
        self.compare("generate", model, rows, [
            (None, f"--threads 2 --max-batch 3 --kv-cache-bytes {few}"), (2, "--max-step-tokens 9")], rounded)
        self.compare("score", model, texts, [(None, "--threads 2"), (2, "--max-step-tokens 5")], rounded)
        self.assertNotEqual(self.batch("score", model, texts, *rounded), self.batch("score", model, texts),
                            "nothing was rounded")


if __name__ == "__main__":
    unittest.main(verbosity=1)
