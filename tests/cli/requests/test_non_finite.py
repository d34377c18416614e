#!/usr/bin/python3
"""NaNs and infinities: in weights they are found, in logits they end the request that meets them, and no other."""

import json
import re
import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, error_code, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, random_tensors, tensor_shapes, write_model  # noqa: E402

POISON = 7  # a token whose embedding is NaN
SEED = 5


def small_config(**changes) -> dict:
    return make_config(**{
        "tracks": 2, "layers": 2, "sync_layers": [1, 2], "hidden_size": 64, "heads": 2, "kv_heads": 1, "head_dim": 16,
        "ffn_size": 64, "vocab_size": 259, "qk_norm": True, "fusion": {"op": "delta_sum", "combine_norm": True},
        "ffn_pattern": ["dense", "moe"], "moe": {"experts": 4, "top_k": 2, "ffn_size": 32, "router_logit_cap": None},
        "attention_pattern": ["global_rope", "local_rope"], "attention_window": 24, "tie_embeddings": False,
        "max_context": 256, **changes})


def generate_rows(tokens_of_row) -> list[dict]:
    """Requests of every kind of sampling, in both forms."""
    kinds = [{}, {"logprobs": True}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 20, "logprobs": True},
             {"temperature": 1.2, "top_p": 0.9}]
    rows = []
    for i in range(30):
        row = {"max_tokens": 4 + i % 13, "seed": i, **kinds[i % len(kinds)]}
        if i % 3 == 0:
            openai = {**row, "prompt": tokens_of_row(i), "logprobs": 1 if row.get("logprobs") else None}
            rows.append({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": openai})
        else:
            rows.append({"id": f"r{i}", "tokens": tokens_of_row(i), **row})
    return rows


def prompt_of(row: dict) -> list[int]:
    return row["body"]["prompt"] if "body" in row else row["tokens"]


def poisoned_prompts(i: int) -> list[int]:
    """Every fourth prompt has the token, at its begin, in it or at its end."""
    tokens = [(i * 31 + p * p * 17) % 200 + 20 for p in range(3 + i * 7 % 60)]
    if i % 4 == 1:
        tokens[(i * 5) % len(tokens) if i % 8 == 1 else -1] = POISON
    return tokens


def instruction_sets() -> list[str]:
    """Those that this machine runs and the program has, by the message that lists them."""
    outcome = ptrt("bench", "--random-weights", "none.json", env={"PTRT_SIMD_TARGET": "no-such-set"})
    return re.search(r"this machine runs (.*)", outcome.output)[1].split(", ")


def message_of(line: dict) -> str:
    return line["error"]["message"]


def lines_of(results: bytes) -> list[dict]:
    return [json.loads(line) for line in results.splitlines()]


class NonFiniteLogits(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = small_config()
        tensors = random_tensors(config, SEED)
        # The token is never likely, so that only prompts bring it in; `talks` generates it.
        tensors["/shared/lm_head"][POISON] = 0
        cls.sound = write_model(cls.dir / "sound.h5", config, tensors)
        poisoned = {**tensors, "/shared/embedding": tensors["/shared/embedding"].copy()}
        poisoned["/shared/embedding"][POISON, 3] = np.nan
        cls.poisoned = write_model(cls.dir / "poisoned.h5", config, poisoned)
        cls.rows = generate_rows(poisoned_prompts)

    def check(self, rows: list[dict], sound: bytes, actual: bytes) -> int:
        """Lines of poisoned prompts are errors, the others the same bytes. Returns how many are errors."""
        failed = 0
        for row, good, line in zip(rows, sound.splitlines(), actual.splitlines(), strict=True):
            if POISON not in prompt_of(row):
                self.assertEqual(line, good)
                continue
            failed += 1
            line = json.loads(line)
            self.assertEqual(error_code(line), "non_finite_logits", line)
            self.assertIn("output token 0", message_of(line))
            if "body" in row:
                self.assertEqual(line["response"]["status_code"], 500)
                self.assertEqual(line["response"]["body"]["error"]["type"], "server_error")
            else:
                self.assertEqual(set(line), {"id", "error"})
        return failed

    def compare(self, *options, **keywords) -> None:
        sound = self.batch("generate", self.sound, self.rows, *options, **keywords)
        actual = self.batch("generate", self.poisoned, self.rows, *options, **keywords)
        self.assertGreater(self.check(self.rows, sound, actual), 5)
        self.assertIn("22 done, 8 failed", self.last_outcome.output)

    def test_neighbours_keep_their_bits(self) -> None:
        """With batches of every size, with pages that were a poisoned request's before, in every compute type."""
        for options in (["--max-batch", "1"], ["--max-batch", "7", "--max-step-tokens", "16"],
                        ["--kv-cache-bytes", "96K"], ["--kv-dtype", "bfloat16", "--kv-cache-bytes", "48K"],
                        ["--compute", "float32"], ["--compute", "int8", "--weights", "int8", "--kv-cache-bytes", "48K"]):
            with self.subTest(options=options):
                self.compare(*options, "--threads", "2")

    def test_every_instruction_set(self) -> None:
        for name in instruction_sets():
            with self.subTest(name=name):
                self.compare("--kv-cache-bytes", "96K", env={"PTRT_SIMD_TARGET": name})
                self.compare("--compute", "int8", "--weights", "int8", env={"PTRT_SIMD_TARGET": name})

    def test_ranks(self) -> None:
        """With a split vocabulary head (two ranks), the whole one, replicas, and tracks that ranks share."""
        for ranks, options in ((2, ["--vocab-head", "split"]), (2, ["--vocab-head", "whole"]), (4, []),
                               (4, ["--tensor-parallel", "2", "--vocab-head", "split"])):
            with self.subTest(ranks=ranks, options=options):
                self.compare(*options, ranks=ranks)

    def test_greedy_of_a_split_head(self) -> None:
        """One row of the head is NaN: its rank's part of every row of logits, wherever it is."""
        config = small_config()
        rows = [{"tokens": [i + 20], "max_tokens": 3} for i in range(5)]
        for row in (0, 130, 258):
            tensors = random_tensors(config, SEED)
            tensors["/shared/lm_head"][row, 9] = np.nan
            model = write_model(self.fresh(".h5"), config, tensors)
            for options, ranks in (([], None), (["--vocab-head", "split"], 2)):
                for line in self.lines("generate", model, rows, *options, ranks=ranks):
                    self.assertEqual(error_code(line), "non_finite_logits")

    def test_later_tokens(self) -> None:
        """What was generated before is dropped: the line is an error and names the token."""
        config = small_config()
        tensors = random_tensors(config, SEED)
        model = write_model(self.fresh(".h5"), config, tensors)
        rows = [{"tokens": [i + 20, 3 * i + 1], "max_tokens": 20, "temperature": 1.0 * (i % 2), "seed": i}
                for i in range(20)]
        sound = self.lines("generate", model, rows)
        bad = next(line["tokens"][4] for line in sound if line["tokens"][4] not in line["tokens"][:4])
        tensors["/shared/embedding"][bad] = np.inf
        model = write_model(self.fresh(".h5"), config, tensors)
        later = 0
        for row, good, line in zip(rows, sound, self.lines("generate", model, rows)):
            at = 0 if bad in row["tokens"] else (good["tokens"] + [bad]).index(bad) + 1
            if at < row["max_tokens"]:
                self.assertEqual(error_code(line), "non_finite_logits")
                self.assertIn(f"output token {at} ", message_of(line))
                later += at > 0
            else:
                self.assertEqual(line, good)
        self.assertGreater(later, 0)

    def test_score(self) -> None:
        rows = [{"id": f"s{i}", "tokens": poisoned_prompts(i)} for i in range(24)] + [{"tokens": [POISON]}]
        for options in ([], ["--max-step-tokens", "16", "--max-batch", "16"], ["--kv-cache-bytes", "96K"]):
            with self.subTest(options=options):
                sound = self.lines("score", self.sound, rows, *options)
                actual = self.lines("score", self.poisoned, rows, *options)
                for row, good, line in zip(rows, sound, actual):
                    # The last token is only scored, never fed.
                    if POISON not in row["tokens"][:-1]:
                        self.assertEqual(line, good)
                        self.assertNotIn(None, line["logprobs"][1:])
                        continue
                    self.assertEqual(error_code(line), "non_finite_logits", line)
                    self.assertIn(f"of token {row['tokens'].index(POISON) + 1} ", message_of(line))

    def test_a_resumed_run_keeps_error_lines(self) -> None:
        requests = write_requests(self.fresh("-requests.jsonl"), self.rows)
        results = self.fresh("-results.jsonl")
        whole = self.batch("generate", self.poisoned, self.rows)
        stopped = ptrt("generate", self.poisoned, requests, "-o", results, "--max-batch", "4",
                       env={"PTRT_FAULT": "rank=0,at=step,after=30"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.assertIn(b"non_finite_logits", Path(f"{results}.partial").read_bytes())
        self.assert_done(ptrt("generate", self.poisoned, requests, "-o", results, "--resume"))
        self.assertEqual(results.read_bytes(), whole)

    def test_bench(self) -> None:
        config = small_config()
        tensors = random_tensors(config, SEED)
        tensors["/shared/final_norm"][1] = np.nan
        outcome = ptrt("bench", write_model(self.fresh(".h5"), config, tensors), "--input-len", "4", "--output-len",
                       "4", "--requests", "2")
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertIn("not finite", outcome.output)


class EveryTensor(CliTest):
    """One NaN anywhere in the model is never a result: the load refuses it, or the requests that meet it fail."""

    def test_one_nan(self) -> None:
        config = small_config()
        sound_tensors = random_tensors(config, SEED)
        rows = [{"id": f"{i}", "tokens": [(i * 29 + p * 13) % 259 for p in range(20)], "max_tokens": 3}
                for i in range(6)]
        sound = {}
        for compute in ("float32", "bfloat16", "int8"):
            options = ["--compute", compute, "--kv-dtype", "float32" if compute == "float32" else "bfloat16",
                       *(["--weights", "int8"] if compute == "int8" else [])]
            model = write_model(self.fresh(".h5"), config, sound_tensors)
            sound[compute] = (options, self.lines("generate", model, rows, *options))
        for name, shape in tensor_shapes(config).items():
            if "/tracks/01/" in name:
                continue
            tensors = {**sound_tensors, name: sound_tensors[name].copy()}
            tensors[name].flat[tensors[name].size // 2 + 1] = np.nan
            model = write_model(self.fresh(".h5"), config, tensors)
            for compute, (options, good) in sound.items():
                with self.subTest(tensor=name, compute=compute):
                    self.check(model, name, rows, options, good)
            model.unlink()

    def check(self, model: Path, name: str, rows: list[dict], options: list[str], good: list[dict]) -> None:
        results = self.fresh("-results.jsonl")
        outcome = ptrt("generate", model, write_requests(self.fresh("-requests.jsonl"), rows), "-o", results, *options)
        if outcome.status == 2:
            self.assertIn(name, outcome.output)
            self.assertIn("nan", outcome.output)
            return
        self.assert_done(outcome)
        lines = read_results(results)
        failed = [error_code(line) == "non_finite_logits" for line in lines]
        # A row of an embedding is one token's, an expert some tokens'.
        some = "embedding" in name or "/experts/" in name
        self.assertTrue(any(failed) if some else all(failed), f"{sum(failed)} of {len(failed)} failed")
        for line, expected, bad in zip(lines, good, failed):
            if not bad:
                self.assertEqual(line, expected)


class NonFiniteWeights(CliTest):
    WK = "/tracks/01/layers/001/wk"
    UP = "/tracks/00/layers/001/experts/w_up"
    NORM = "/tracks/01/blocks/01/combine_norm"

    def write(self, places: dict[str, list[tuple[tuple[int, ...], float]]], dtype: str = "float32", **options) -> Path:
        config = small_config()
        tensors = random_tensors(config, SEED)
        for name, values in places.items():
            for index, value in values:
                tensors[name][index] = value
        return write_model(self.fresh(".h5"), config, tensors, dtype=dtype, **options)

    def verify(self, model: Path, expected: list[dict]) -> None:
        outcome = ptrt("inspect", model, "--verify", "--json")
        self.assertEqual(outcome.status, 2, outcome.output)
        found = json.loads(outcome.stdout)
        self.assertEqual(found["not_finite"], expected)
        self.assertEqual(found["checksums"]["failed"], [])
        text = ptrt("inspect", model, "--verify")
        self.assertEqual(text.status, 2)
        for dataset in expected:
            self.assertIn(f"{dataset['dataset']}: {dataset['count']} ", text.errors[0] + text.output)
            self.assertIn(str(dataset["first"]), text.output)

    def packed(self, model: Path, *options) -> Path:
        out = self.fresh(".h5")
        self.assert_done(ptrt("pack", model, "-o", out, *options))
        return out

    def test_verify(self) -> None:
        places = {self.WK: [((9, 33), np.nan), ((2, 60), -np.inf)], self.UP: [((3, 17, 5), np.inf)],
                  self.NORM: [((11,), np.nan)], "/shared/embedding": [((POISON, 0), np.nan)]}
        for dtype in ("float32", "float16", "bfloat16"):
            for split in (False, True):
                with self.subTest(dtype=dtype, split=split):
                    model = self.write(places, dtype, split=split)
                    in_file = [{"dataset": "/shared/embedding", "count": 1, "first": [POISON, 0]},
                               {"dataset": self.UP, "count": 1, "first": [3, 17, 5]},
                               {"dataset": self.WK, "count": 2, "first": [2, 60]},
                               {"dataset": self.NORM, "count": 1, "first": [11]}]
                    found = self.order_of(model, in_file)
                    self.verify(model, found)
                    # Packing keeps every bit. In panels [9, 33] comes before [2, 60].
                    panels = self.packed(model)
                    in_panels = [{**d, "first": [9, 33]} if d["dataset"] == self.WK else d for d in found]
                    self.verify(panels, in_panels)
                    self.verify(self.packed(panels, "--layout", "rows"), found)

    def order_of(self, model: Path, datasets: list[dict]) -> list[dict]:
        """As inspect lists them; the order is not part of the test."""
        outcome = ptrt("inspect", model, "--verify", "--json")
        order = [d["dataset"] for d in json.loads(outcome.stdout)["not_finite"]]
        self.assertEqual(sorted(order), sorted(d["dataset"] for d in datasets))
        return sorted(datasets, key=lambda d: order.index(d["dataset"]))

    def test_a_sound_model(self) -> None:
        model = self.write({})
        outcome = ptrt("inspect", model, "--verify", "--json")
        self.assert_done(outcome)
        self.assertEqual(json.loads(outcome.stdout)["not_finite"], [])
        self.assertIsNone(json.loads(ptrt("inspect", model, "--json").stdout)["not_finite"])

    def test_int8_scales(self) -> None:
        import h5py
        from crc32c import crc32c
        for value in (np.nan, np.inf, -1.0):
            model = self.write({}, "int8")
            with h5py.File(model, "r+") as file:
                scales = file[f"{self.WK}.scale"]
                changed = scales[()]
                changed[5, 1] = value
                scales[...] = changed
                scales.attrs["crc32c"] = np.uint32(crc32c(changed.tobytes()))
            self.verify(model, [{"dataset": f"{self.WK}.scale", "count": 1, "first": [5, 1]}])

    def test_damaged_and_not_finite(self) -> None:
        import h5py
        model = self.write({self.WK: [((0, 0), np.nan)]})
        with h5py.File(model, "r+") as file:
            file[self.WK][1, 1] = np.float32(12)
        outcome = ptrt("inspect", model, "--verify")
        self.assertEqual(outcome.status, 2)
        self.assertIn("1 of ", outcome.output)
        self.assertIn("damaged or not finite", outcome.output)
        self.assertIn("crc32c", outcome.output)

    def test_quantize_refuses(self) -> None:
        for name, index in ((self.WK, (9, 33)), (self.NORM, (11,)), ("/shared/embedding", (POISON, 0)),
                            ("/tracks/00/layers/001/router", (2, 3))):
            with self.subTest(name=name):
                out = self.fresh(".h5")
                outcome = ptrt("quantize", self.write({name: [(index, np.nan)]}), "-o", out, "--weights", "int8")
                self.assertEqual(outcome.status, 2, outcome.output)
                self.assertIn(name, outcome.output)
                self.assertIn("nan", outcome.output)
                self.assertFalse(out.exists())


if __name__ == "__main__":
    unittest.main(verbosity=1)
