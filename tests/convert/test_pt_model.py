#!/usr/bin/python3
"""scripts/pt_model.py against the program, one process against one rank a track, and the training scripts. Needs torch."""

import csv
import json
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "convert")]
import with_torch  # noqa: E402

with_torch.need("torch", "h5py")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from convert.errors import BadInput  # noqa: E402
from pt_model import ParallelTrack  # noqa: E402
from ptrt_cli import CliTest, ptrt  # noqa: E402
from state_dicts import write_safetensors  # noqa: E402

import pt_reference as ref  # noqa: E402
from model_grid import GRID, prompts  # noqa: E402
from model_maker import write_random  # noqa: E402

CLOSE = 1e-4
PATIENCE = 300  # seconds of one run of a script

# A model with every kind of part: what a training test trains.
SMALL = {
    "name": "small", "tracks": 4, "layers": 2, "sync_layers": [1, 2],
    "fusion": {"op": "delta_sum", "dispatch_norm": True, "combine_norm": True}, "hidden_size": 16, "heads": 2, "kv_heads": 1,
    "head_dim": 8, "ffn_size": 24, "vocab_size": 259, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre", "output"],
    "qk_norm": True, "attention_pattern": ["local_rope", "global_nope"], "attention_window": 5, "rope_theta": 10000.0,
    "ffn_pattern": ["dense", "moe"], "moe": {"experts": 4, "top_k": 2, "ffn_size": 12, "router_logit_cap": 5.0},
    "tie_embeddings": False, "bos_token_id": 256, "eos_token_ids": [257], "attention_bias": ["q", "o"],
}


def script(name: str, *arguments, ranks: int = 0) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    path = name if Path(name).is_absolute() else ROOT / "scripts" / name
    return subprocess.run([sys.executable, *launcher, path, *map(str, arguments)], capture_output=True, text=True, check=False,
                          timeout=PATIENCE)


def drawn(config: dict, seed: int = 0) -> ParallelTrack:
    """A model in which norms and biases are drawn too."""
    torch.manual_seed(seed)
    model = ParallelTrack(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() - ("." in name) == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.embedding.normal_()
    return model


class Model(CliTest):

    def test_agrees_with_the_program(self) -> None:
        for grid in GRID:
            path = write_random(self.fresh(".h5"), grid.config, grid.seed, dtype=grid.dtype, **grid.file_options)
            model = ParallelTrack.load_ptrt(path)
            texts = [row[:70] for row in prompts(grid) if len(row) > 1]
            lines = self.lines("score", path, [{"tokens": text} for text in texts], "--quiet", "--compute", "float32")
            for text, line in zip(texts, lines):
                with torch.no_grad():
                    table = model(torch.tensor([text, text[::-1]])).log_softmax(-1)[0]
                got = table[torch.arange(len(text) - 1), torch.tensor(text[1:])].numpy()
                self.assertLessEqual(np.abs(got - np.array(line["logprobs"][1:])).max(), CLOSE, grid.name)
            want = ref.greedy(ref.load(path), texts[0], 8)
            self.assertEqual(model.generate(texts[0], 8), want, grid.name)

    def test_a_file_keeps_every_bit(self) -> None:
        model = drawn(SMALL)
        for options in ({}, {"split": True}):
            path = self.fresh(".h5")
            model.save_ptrt(path, **options)
            again = ParallelTrack.load_ptrt(path)
            self.assertEqual(again.config, model.config)
            for name, values in model.state_dict().items():
                self.assertTrue(torch.equal(values, again.state_dict()[name]), name)
        narrow, path = self.fresh(".h5"), self.fresh(".h5")
        model.save_ptrt(narrow, dtype="bfloat16")
        rounded = ParallelTrack.load_ptrt(narrow)
        for name, values in model.state_dict().items():
            matrix = values.dim() - ("." in name) > 1
            self.assertTrue(torch.equal(rounded.state_dict()[name], values.bfloat16().float() if matrix else values), name)
        rounded.save_ptrt(path, dtype="bfloat16")
        self.assertEqual(rounded.state_dict().keys(), ParallelTrack.load_ptrt(path).state_dict().keys())
        for name, values in ParallelTrack.load_ptrt(path).state_dict().items():
            self.assertTrue(torch.equal(rounded.state_dict()[name], values), name)

    def test_unknown_keys_and_wrong_files(self) -> None:
        for change, message in (({"gate": 1}, 'unknown config key "gate"'), ({"heads": 3}, "kv_heads")):
            config = {**SMALL, "kv_heads": 2, **change}
            with self.assertRaisesRegex(BadInput, message):
                ParallelTrack(config)
        path = self.fresh(".h5")
        drawn(SMALL).save_ptrt(path)
        with h5py.File(path, "r+") as file:
            del file["/tracks/02/layers/001/router"]
        with self.assertRaisesRegex(BadInput, "/tracks/02/layers/001/router is missing"):
            ParallelTrack.load_ptrt(path)
        for bad in (ROOT / "README.md", self.fresh(".h5")):
            with self.assertRaisesRegex(BadInput, "no model file"):
                ParallelTrack.load_ptrt(bad)

    def test_state_dicts_convert_to_the_same_file(self) -> None:
        model, config, saved = drawn(SMALL), self.fresh(".json"), self.fresh(".h5")
        config.write_text(json.dumps(SMALL))
        model.save_ptrt(saved, tokenizer="bytes")
        plain, within, safe = self.fresh(".pt"), self.fresh(".pt"), self.fresh(".safetensors")
        torch.save(model.state_dict(), plain)
        torch.save({"model": model.state_dict(), "step": 3}, within)
        write_safetensors(safe, {name: values.numpy() for name, values in model.state_dict().items()})
        for checkpoint in (plain, within, safe):
            path = self.fresh(".h5")
            done = script("convert_pt.py", checkpoint, "--config", config, "-o", path, "--tokenizer", "bytes")
            self.assertEqual(done.returncode, 0, done.stderr)
            with h5py.File(path) as a, h5py.File(saved) as b:
                names: list[str] = []
                b.visititems(lambda name, thing: names.append(name) if isinstance(thing, h5py.Dataset) else None)
                self.assertEqual(a.attrs["config"], b.attrs["config"])
                for name in names:
                    np.testing.assert_array_equal(a[name][()], b[name][()], err_msg=name)
        torch.save({"model": {"weights": [1, 2]}}, plain)
        done = script("convert_pt.py", plain, "--config", config, "-o", self.fresh(".h5"))
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1), done.stderr)

    def test_one_track_a_rank(self) -> None:
        for op in ("delta_sum", "mean", "sum"):
            config = {**SMALL, "fusion": {**SMALL["fusion"], "op": op}}
            folder = self.fresh("")
            folder.mkdir()
            model = drawn(config)
            model.save_ptrt(folder / "model.h5")
            tokens = torch.randint(0, 256, (3, 30), generator=torch.Generator().manual_seed(5))
            torch.save(tokens, folder / "tokens.pt")
            loss = model.loss(tokens, balance=0.1)
            loss.backward()
            done = script(str(ROOT / "tests" / "convert" / "track_rank.py"), folder, ranks=config["tracks"])
            self.assertEqual(done.returncode, 0, done.stderr)
            for rank in range(config["tracks"]):
                found = torch.load(folder / f"rank{rank}.pt")
                self.assertAlmostEqual(found["loss"], loss.item(), delta=1e-5)
                self.assertEqual(found["generated"], model.generate(tokens[0, :9].tolist(), 8))
                for name, parameter in model.named_parameters():
                    want = parameter.grad[rank:rank + 1] if "." in name else parameter.grad
                    torch.testing.assert_close(found["gradients"][name], want, rtol=1e-3, atol=1e-6, msg=f"{op} {rank} {name}")
            saved = ParallelTrack.load_ptrt(folder / "saved.h5").state_dict()
            for name, values in model.state_dict().items():
                self.assertTrue(torch.equal(saved[name], values), name)


class Training(CliTest):

    def train(self, out: Path, *options, ranks: int = 0, status: int = 0) -> str:
        config, text = self.dir / "config.json", ROOT / "docs" / "SPEC.md"
        config.write_text(json.dumps(SMALL))
        done = script("train_pt.py", text, "--config", config, "--out", out, "--batch", 4, "--context", 32, "--warmup", 4,
                      "--eval-every", 4, "--save-every", 8, "--eval-batches", 2, "--lr", "0.01", "--dtype", "float32", *options,
                      ranks=ranks)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stderr

    @staticmethod
    def curve(out: Path) -> list[list[float]]:
        with open(out / "curve.csv", encoding="utf-8") as file:
            return [[float(value) for value in row[:-1]] for row in list(csv.reader(file))[1:]]  # without the seconds

    def test_it_learns_and_ranks_may_continue(self) -> None:
        whole, ranks = self.fresh(""), self.fresh("")
        self.train(whole, "--steps", 16)
        curve = self.curve(whole)
        self.assertEqual([row[0] for row in curve], [4, 8, 12, 16])
        self.assertLess(curve[-1][4], curve[0][4] - 0.1, "it learns nothing")
        self.assertEqual(ptrt("inspect", whole / "model.h5", "--verify").status, 0)

        # Half the steps in one process, the others with one rank a track.
        self.train(ranks, "--steps", 16, "--stop-after", 8)
        self.train(ranks, "--steps", 16, "--resume", ranks=SMALL["tracks"])
        for got, want in zip(self.curve(ranks), curve):
            np.testing.assert_allclose(got, want, atol=2e-3)

    def test_stopped_and_resumed(self) -> None:
        whole, parts = self.fresh(""), self.fresh("")
        self.train(whole, "--steps", 16, "--accumulate", 2)
        self.train(parts, "--steps", 16, "--accumulate", 2, "--stop-after", 8)
        self.assertFalse((parts / "model.h5").exists())
        self.train(parts, "--steps", 16, "--accumulate", 2, "--resume")
        self.assertEqual(self.curve(parts), self.curve(whole))
        with h5py.File(parts / "model.h5") as a, h5py.File(whole / "model.h5") as b:
            np.testing.assert_array_equal(a["/tracks/01/layers/001/wq"][()], b["/tracks/01/layers/001/wq"][()])

    def test_bad_input(self) -> None:
        broken = self.fresh("")
        self.assertIn("no checkpoint to resume", self.train(broken, "--resume", status=2))
        (broken / "checkpoint.pt").write_bytes(b"no checkpoint")
        self.assertIn("no checkpoint that torch can load", self.train(broken, "--resume", status=2))
        self.assertIn("max_context", self.train(self.fresh(""), "--context", 65, status=2))
        self.assertIn("too little text", self.train(self.fresh(""), "--held-out", "0.0001", status=2))


if __name__ == "__main__":
    unittest.main()
