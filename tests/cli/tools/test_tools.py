#!/usr/bin/python3
"""init, inspect, bench, and the help: what they write and print."""

import csv
import json
import re
import shutil
import sys
import unittest
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, ptrt, read_results, write_requests  # noqa: E402
import pt_reference as ref  # noqa: E402
from crc32c import crc32c  # noqa: E402
from model_maker import make_config, tensor_shapes, write_random  # noqa: E402


def config_of_many_parts() -> dict:
    return make_config(name="of many parts", tracks=3, layers=3, sync_layers=[1, 3], qk_norm=True,
                       hidden_size=48,
                       fusion={"op": "delta_sum", "dispatch_norm": True, "combine_norm": True},
                       norm_placement=["pre", "output", "post"], ffn_pattern=["dense", "moe"],
                       moe={"experts": 4, "top_k": 2, "ffn_size": 20, "router_logit_cap": 4.0},
                       tie_embeddings=False, bos_token_id=256, eos_token_ids=[257], attention_bias=["q", "k", "v", "o"],
                       qk_norm_order="after_rope", pre_scale_norms=["pre", "combine"],
                       rope_scaling={"type": "linear", "factor": 2.0}, attention_scale=0.3, ffn_activation="gelu_tanh",
                       embedding_scale=1.5)


def datasets(path: Path) -> dict[str, h5py.Dataset]:
    """Every dataset under /shared and /tracks, through links to other files."""
    found: dict[str, h5py.Dataset] = {}

    def collect(group: h5py.Group, prefix: str) -> None:
        for name in group:
            if isinstance(group[name], h5py.Group):
                collect(group[name], f"{prefix}/{name}")
            else:
                found[f"{prefix}/{name}"] = group[name]

    file = h5py.File(path, "r")
    collect(file["shared"], "/shared")
    collect(file["tracks"], "/tracks")
    return found


class Tools(CliTest):
    def init(self, config: dict, *options) -> Path:
        text = self.fresh("-config.json")
        text.write_text(json.dumps(config, indent=2))
        folder = self.fresh("-init")
        folder.mkdir()
        self.assert_done(ptrt("init", text, "-o", folder / "model.h5", *options))
        return folder / "model.h5"

    def raw(self, path: Path) -> dict[str, bytes]:
        return {name: dataset[()].tobytes() for name, dataset in datasets(path).items()}

    def check_file(self, path: Path, config: dict, dtype: str) -> None:
        model = ref.load(path)
        self.assertEqual(model.config, config)
        shapes = tensor_shapes(config)
        self.assertEqual({name: values.shape for name, values in model.tensors.items()}, shapes)
        for name, values in model.tensors.items():
            self.assertTrue(np.isfinite(values).all(), name)
            if not name.endswith("norm"):
                self.assertGreater(np.std(values), 1e-4, f"{name} is not random")
        for name, dataset in datasets(path).items():
            self.assertEqual(dataset.dtype, np.float32 if dtype == "float32" else np.uint16, name)
            if dtype == "bfloat16":
                self.assertIn(dataset.attrs["dtype"], ("bfloat16", b"bfloat16"))
            self.assertEqual(int(dataset.attrs["crc32c"]), crc32c(dataset[()].tobytes()), name)
        with h5py.File(path) as file:
            self.assertIn(file.attrs["format"], ("ptrt", b"ptrt"))
            self.assertEqual(int(file.attrs["format_version"]), 1)

    def test_init(self) -> None:
        config = config_of_many_parts()
        for dtype in ("float32", "bfloat16"):
            with self.subTest(dtype=dtype):
                path = self.init(config, "--seed", "1", "--dtype", dtype)
                self.check_file(path, config, dtype)
                tokens = [1, 2, 3, 250, 5] * 5
                line = self.lines("score", path, [{"tokens": tokens}], "--compute", "float32")[0]
                np.testing.assert_allclose(line["logprobs"][1:], ref.score(ref.load(path), tokens), atol=1e-3)

    def test_init_of_the_same_seed(self) -> None:
        config = config_of_many_parts()
        for dtype in ("float32", "bfloat16"):
            first = self.raw(self.init(config, "--seed", "1", "--dtype", dtype))
            again = self.raw(self.init(config, "--seed", "1", "--dtype", dtype))
            split = self.raw(self.init(config, "--seed", "1", "--dtype", dtype, "--split"))
            other = self.raw(self.init(config, "--seed", "2", "--dtype", dtype))
            self.assertEqual(first, again)
            self.assertEqual(first, split)
            for name in first:
                if not name.endswith("norm"):
                    self.assertNotEqual(first[name], other[name], name)
        tracks = [first[f"/tracks/{track:02d}/layers/000/wq"] for track in range(3)]
        self.assertEqual(len(set(tracks)), 3, "each track has weights of its own")

    def test_split_files_lie_side_by_side(self) -> None:
        config = config_of_many_parts()
        path = self.init(config, "--split", "--dtype", "float32")
        self.check_file(path, config, "float32")
        with h5py.File(path) as file:
            links = [file["tracks"].get(name, getlink=True) for name in sorted(file["tracks"])]
        self.assertTrue(all(isinstance(link, h5py.ExternalLink) for link in links))
        names = {link.filename for link in links}
        self.assertEqual(len(names), 3, "one file a track")
        self.assertEqual({file.name for file in path.parent.iterdir()}, names | {path.name})
        # All of them moved elsewhere are still one model, from any working directory.
        moved = self.fresh("-moved")
        shutil.move(path.parent, moved)
        requests = write_requests(self.fresh(".jsonl"), [{"tokens": [1, 2, 3]}])
        for model, cwd in ((moved / path.name, self.dir), (Path(path.name), moved),
                           (Path(moved.name) / path.name, self.dir)):
            results = self.fresh(".jsonl")
            self.assert_done(ptrt("score", model, requests, "-o", results, cwd=cwd))
            self.assertEqual(len(read_results(results)[0]["tokens"]), 3)

    def inspect_json(self, *arguments) -> dict:
        outcome = ptrt("inspect", *arguments, "--json")
        self.assert_done(outcome)
        return json.loads(outcome.stdout)

    def test_inspect(self) -> None:
        config = config_of_many_parts()
        for split in (False, True):
            model = write_random(self.fresh(".h5"), config, 71, split=split, dtype="bfloat16")
            told = ptrt("inspect", model)
            self.assert_done(told)
            for word in ("of many parts", "tracks", r"\b3\b", "delta_sum", r"\b48\b"):
                self.assertRegex(told.stdout, word)
            found = self.inspect_json(model)
            self.assertIn(config, list(found.values()), "the config stands in it")
            elements = config["layers"] * 2 * config["kv_heads"] * config["head_dim"]
            self.assertEqual(found["kv_bytes_per_token_per_track"], {"float32": elements * 4, "bfloat16": elements * 2})
            self.assertEqual(found["device_dtype"], "bfloat16")
            for rank in found["ranks"]:
                needs = rank["device"]
                self.assertTrue(all(value > 0 for value in needs.values()), needs)
                self.assertEqual(needs["kv_bytes_per_token"],
                                 rank["tracks"] * found["kv_bytes_per_token_per_track"]["bfloat16"])

    def test_type_on_a_gpu(self) -> None:
        """float16 if every matrix is, including a tied table; else bfloat16."""
        for tied in (False, True):
            config = make_config(tie_embeddings=tied)
            model = write_random(self.fresh(".h5"), config, 73, dtype="float16")
            self.assertEqual(self.inspect_json(model)["device_dtype"], "float16")
            self.assertRegex(ptrt("inspect", model).stdout, r"GPU \(float16\)")
            embedding = "/shared/embedding"
            with h5py.File(model, "r+") as file:
                value = file[embedding][()].astype(np.float32)
                del file[embedding]
                file[embedding] = value
            self.assertEqual(self.inspect_json(model)["device_dtype"], "bfloat16" if tied else "float16")
            matrix = "/tracks/00/layers/000/wq"
            with h5py.File(model, "r+") as file:
                value = file[matrix][()].astype(np.float32)
                del file[matrix]
                file[matrix] = value
            self.assertEqual(self.inspect_json(model)["device_dtype"], "bfloat16")

    def test_verify(self) -> None:
        for split in (False, True):
            model = write_random(self.fresh(".h5"), config_of_many_parts(), 72, split=split)
            self.assert_done(ptrt("inspect", model, "--verify"))
            name = "/tracks/02/layers/001/experts/w_down"
            damaged = model.with_name(f"{model.stem}-02.h5") if split else model
            inner = name.replace("/tracks/02", "/weights") if split else name
            with h5py.File(damaged, "r+") as file:
                value = file[inner][3, 0, 0].view(np.uint32)
                file[inner][3, 0, 0] = np.uint32(value ^ 1).view(np.float32)
            self.assert_done(ptrt("inspect", model))
            outcome = ptrt("inspect", model, "--verify")
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn(name, outcome.output)

    def bench(self, *arguments, ranks: int | None = None) -> dict:
        path = self.fresh("-bench.json")
        self.assert_done(ptrt("bench", *arguments, "--input-len", "8", "--output-len", "8", "--requests", "4",
                              "--json", path, ranks=ranks))
        return json.loads(path.read_text())

    def check_bench(self, found: dict, tracks: int, sync_points: int, world_size: int) -> None:
        for key in ("ttft_ms", "tpot_ms"):
            self.assertEqual(set(found[key]), {"mean", "p50", "p90", "p99"})
            self.assertGreater(found[key]["p50"], 0)
            self.assertLessEqual(found[key]["p50"], found[key]["p90"])
            self.assertLessEqual(found[key]["p90"], found[key]["p99"])
        for key in ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "prefill_tokens_per_s",
                    "decode_tokens_per_s"):
            self.assertGreater(found[key], 0, key)
        # Eight tokens in and eight out for each request.
        self.assertAlmostEqual(found["total_tokens_per_s"] / found["output_tokens_per_s"], 2.0, delta=0.01)
        self.assertAlmostEqual(found["output_tokens_per_s"] / found["requests_per_s"], 8.0, delta=0.05)
        self.assertEqual(found["sync_points_per_forward"], sync_points)
        self.assertEqual((found["world_size"], found["tracks"]), (world_size, tracks))
        self.assertEqual(found["backend"], "cpu")
        self.assertEqual(found["compute"], "float32")
        self.assertEqual(found["kv_dtype"], "float32")
        self.assertEqual(found["threads"], 2)
        self.assertIs(found["emulated"], False)
        share = found["sync_time_fraction"]
        self.assertTrue(0 <= share < 1, share)
        if world_size > 1 and tracks > 1:
            self.assertGreater(share, 0)

    def test_bench(self) -> None:
        options = ("--threads", "2", "--compute", "float32")
        # Nearly every token would end a sequence: bench continues to the requested length.
        config = make_config(tracks=4, layers=6, sync_layers=[1, 3, 6], eos_token_ids=list(range(250)))
        model = write_random(self.fresh(".h5"), config, 73)
        self.check_bench(self.bench(model, *options), 4, 3, 1)
        self.check_bench(self.bench(model, *options, ranks=4), 4, 3, 4)
        dense = write_random(self.fresh(".h5"), make_config(layers=4, sync_layers=[2, 4]), 74)
        self.check_bench(self.bench(dense, *options, "--max-batch", "2", "--warmup", "1"), 1, 0, 1)

    def test_bench_over_a_grid(self) -> None:
        model = write_random(self.fresh(".h5"), make_config(tracks=2, layers=2, sync_layers=[1, 2]), 75)
        report, table = self.fresh(".json"), self.fresh(".csv")
        self.assert_done(ptrt("bench", model, "--input-len", "4,9", "--output-len", "2,5", "--requests", "3",
                              "--json", report, "--csv", table, ranks=2))
        runs = json.loads(report.read_text())["runs"]
        self.assertEqual([(run["input_len"], run["output_len"]) for run in runs], [(4, 2), (4, 5), (9, 2), (9, 5)])
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 4)
        for run, row in zip(runs, rows):
            self.assertEqual(run["output_tokens"], 3 * run["output_len"])
            self.assertAlmostEqual(float(row["ttft_ms_p50"]), run["ttft_ms"]["p50"])
            self.assertGreaterEqual(run["e2el_ms"]["p50"], run["ttft_ms"]["p50"])
            self.assertGreater(run["itl_ms"]["mean"], 0)
            self.assertEqual(run["sync_points_per_forward"], 2)
            self.assertEqual(row["model"], run["model"])

    def test_bench_at_a_rate(self) -> None:
        model = write_random(self.fresh(".h5"), make_config(tracks=2, layers=2, sync_layers=[1, 2]), 76)
        for ranks in (None, 2):
            report = self.fresh(".json")
            self.assert_done(ptrt("bench", model, "--input-len", "4", "--output-len", "3", "--requests", "20",
                                  "--request-rate", "20", "--json", report, ranks=ranks))
            found = json.loads(report.read_text())
            # Twenty gaps of a twentieth of a second: about a second, on a busy machine more.
            self.assertTrue(0.4 < found["elapsed_s"] < 60, found["elapsed_s"])
            self.assertLess(found["ttft_ms"]["p50"], 1e3 * found["elapsed_s"] / 2, "counted from arrival")
            self.assertEqual(found["output_tokens"], 60)

    def test_bench_of_a_dataset(self) -> None:
        model = write_random(self.fresh(".h5"), make_config(tracks=2, layers=2, sync_layers=[1, 2]), 77)
        requests = write_requests(self.fresh(".jsonl"), [{"tokens": [1, 2, 3], "max_tokens": 4},
                                                         {"prompt": "ab", "max_tokens": 6}])
        report = self.fresh(".json")
        self.assert_done(ptrt("bench", model, "--dataset", requests, "--json", report))
        found = json.loads(report.read_text())
        self.assertEqual((found["requests"], found["output_tokens"]), (2, 10))
        self.assertNotIn("input_len", found)
        bad = write_requests(self.fresh(".jsonl"), [{"tokens": [1]}, {"tokens": "no"}])
        for options, words in ((("--dataset", bad), "line 2"), (("--dataset", requests, "--requests", "9"), "has 2"),
                               (("--request-rate", "0"), "request-rate"), (("--request-rate", "fast"), "request-rate"),
                               (("--dataset", requests, "--input-len", "3"), "input-len"),
                               (("--dataset", self.fresh(".none")), "dataset"),
                               (("--csv", self.dir / "no" / "such.csv", "--input-len", "3", "--output-len", "2"),
                                "such.csv")):
            outcome = ptrt("bench", model, *options)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn(words, outcome.output)

    def test_bench_of_random_weights(self) -> None:
        text = self.fresh("-config.json")
        text.write_text(json.dumps(make_config(tracks=2, layers=2, sync_layers=[1, 2])))
        options = ("--threads", "2", "--compute", "float32")
        self.check_bench(self.bench("--random-weights", text, *options), 2, 2, 1)

    def test_bench_of_emulated_ranks(self) -> None:
        """One rank's share of eight: every token includes the link's time, and all output says EMULATED."""
        config = make_config(tracks=8, layers=4, sync_layers=[2, 4])
        model = write_random(self.fresh(".h5"), config, 78)
        report, table = self.fresh(".json"), self.fresh(".csv")
        run = ("bench", model, "--input-len", "4", "--output-len", "5", "--requests", "2", "--emulate-ranks", "8")
        link = ("--link-latency-us", "20000", "--link-gb-per-s", "1")
        outcome = ptrt(*run, *link, "--json", report, "--csv", table)
        self.assert_done(outcome)
        self.assertEqual(outcome.stdout.count("EMULATED") + outcome.stderr.count("EMULATED"), 2, outcome.output)
        self.assertTrue(outcome.stdout.startswith("EMULATED"), outcome.stdout)
        found = json.loads(report.read_text())
        self.assertIs(found["emulated"], True)
        self.assertEqual((found["emulate_ranks"], found["link_latency_us"], found["link_gb_per_s"]), (8, 20000, 1))
        self.assertEqual((found["world_size"], found["tracks"], found["sync_points_per_forward"]), (8, 8, 2))
        # Two exchanges of 20 ms a token.
        self.assertTrue(40 < found["tpot_ms"]["p50"] < 100, found["tpot_ms"])
        self.assertGreater(found["sync_time_fraction"], 0.6)
        with open(table, encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file))
        self.assertEqual((row["emulated"], row["emulate_ranks"], row["link_latency_us"]), ("true", "8", "20000.0"))
        shared = self.fresh(".json")
        self.assert_done(ptrt(*run, "--tensor-parallel", "2", "--link-gb-per-s", "1", "--json", shared))
        self.assertEqual(json.loads(shared.read_text())["track_sums_per_forward"], 8)
        for arguments, ranks, words in (((*run,), None, "link-gb-per-s"), ((*run, *link), 2, "emulate-ranks"),
                                        ((*run[:-1], "16", *link), None, "emulate-ranks 16"),
                                        ((*run[:-1], "3", *link), None, "3 ranks"),
                                        ((*run[:-2], *link), None, "emulate-ranks")):
            outcome = ptrt(*arguments, ranks=ranks)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn(words, outcome.output)

    def test_help(self) -> None:
        told = ptrt("--help")
        self.assert_done(told)
        for word in ("generate", "score", "bench", "init", "quantize", "inspect", "mpirun"):
            self.assertIn(word, told.stdout)
        for command in ("generate", "score", "bench", "init", "quantize", "inspect"):
            told = ptrt(command, "--help")
            self.assert_done(told)
            self.assertIn(f"ptrt {command}", told.stdout)
        version = ptrt("--version")
        self.assert_done(version)
        self.assertRegex(version.stdout, r"\d+\.\d+")

    def help_groups(self, *command: str) -> dict[str, list[str]]:
        """The options below each title of the help."""
        groups: dict[str, list[str]] = {}
        title = ""
        for line in ptrt(*command, "--help").stdout.splitlines():
            if re.fullmatch(r"\w[\w ]*:", line):
                title = line[:-1]
            elif option := re.match(r"  (?:-\w,)?(--[\w-]+)", line):
                groups.setdefault(title, []).append(option[1])
        return groups

    def test_help_has_named_groups(self) -> None:
        commands = re.findall(r"^  (\w+) ", ptrt("--help").stdout.split("Subcommands:")[1].split("Examples:")[0], re.M)
        self.assertEqual(set(commands),
                         {"generate", "score", "merge", "bench", "init", "quantize", "pack", "inspect", "doctor", "plan"})
        for command in commands:
            with self.subTest(command=command):
                groups = self.help_groups(command)
                self.assertIn("--help", groups["Common options"])
                self.assertNotIn("Options", groups, "the library's group of options without one")
                self.assertNotIn("", groups)
                self.assertLessEqual(max(map(len, groups.values())), 7, groups)
        groups = self.help_groups("generate")
        self.assertEqual(list(groups), ["Common options", "Parts and progress", "Chat", "Speculation", "Ranks",
                                       "Batch and memory", "Number types", "CPU", "GPU", "Observation"])
        for group, option in (("Common options", "--output"), ("Parts and progress", "--shard"), ("GPU", "--share-gpu"),
                              ("Ranks", "--tensor-parallel"),
                              ("Batch and memory", "--kv-cache-bytes"), ("CPU", "--threads"), ("Number types", "--compute")):
            self.assertIn(option, groups[group])
        self.assertEqual(sum(map(len, groups.values())), 37, "every option once")


if __name__ == "__main__":
    unittest.main(verbosity=1)
