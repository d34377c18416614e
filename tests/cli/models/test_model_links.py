#!/usr/bin/python3
"""Model files that take data from other files: what is followed, what is refused, what --trust-links permits."""

import os
import shutil
import sys
import unittest
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Outcome, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

WK = "/tracks/01/layers/001/wk"


class ModelLinks(CliTest):
    def setUp(self) -> None:
        super().setUp()
        self.folder = self.fresh("-links")
        self.folder.mkdir()
        self.main = self.folder / "store" / "m.h5"
        self.main.parent.mkdir()
        write_random(self.main, make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32), seed=1)
        self.requests = write_requests(self.folder / "r.jsonl", [{"tokens": [1, 2, 3], "max_tokens": 4}])
        self.plain = self.generate(self.main)

    def run_ptrt(self, model: Path, *options: str, env: dict | None = None, cwd: Path | None = None) -> Outcome:
        out = self.folder / "out.jsonl"
        out.unlink(missing_ok=True)
        return ptrt("generate", model, self.requests, "-o", out, *options, env=env, cwd=cwd)

    def generate(self, model: Path, *options: str, env: dict | None = None, cwd: Path | None = None) -> bytes:
        self.assert_done(self.run_ptrt(model, *options, env=env, cwd=cwd))
        return (self.folder / "out.jsonl").read_bytes()

    def refuse(self, model: Path, *words: str) -> None:
        for command in (["generate", model, self.requests, "-o", self.folder / "no.jsonl"],
                        ["inspect", model], ["pack", model, "-o", self.folder / "no.h5"],
                        ["quantize", model, "-o", self.folder / "no.h5", "--weights", "int8"]):
            outcome = ptrt(*command)
            self.assertEqual(outcome.status, 2, outcome.stderr)
            for word in words:
                self.assertIn(word, outcome.stderr)
        self.assertFalse((self.folder / "no.h5").exists())

    def split(self, name: str = "m.track01.h5", inside: str = "/tracks/01") -> Path:
        """Moves track 1 into a file of its own; returns that."""
        shard = self.main.parent / Path(name).name
        with h5py.File(self.main, "r+") as file, h5py.File(shard, "w") as other:
            file.copy("/tracks/01", other, name="/tracks/01")
            del file["/tracks/01"]
            file["/tracks/01"] = h5py.ExternalLink(name, inside)
        return shard

    def test_relative_links_are_followed_where_the_library_follows_them(self) -> None:
        shard = self.split()
        self.assertEqual(self.generate(self.main), self.plain)
        with self.subTest("a moved folder"):
            moved = self.folder / "moved"
            shutil.copytree(self.main.parent, moved)
            self.assertEqual(self.generate(moved / "m.h5"), self.plain)
        with self.subTest("the main file is a symbolic link"):
            link = self.folder / "elsewhere" / "model.h5"
            link.parent.mkdir()
            link.symlink_to(self.main)
            self.assertEqual(self.generate(link), self.plain)
        with self.subTest("a cache of blobs"):
            blobs, snapshot = self.folder / "blobs", self.folder / "snapshots" / "1"
            blobs.mkdir()
            snapshot.mkdir(parents=True)
            for number, file in enumerate((self.main, shard)):
                shutil.copy(file, blobs / f"hash{number}")
                (snapshot / file.name).symlink_to(f"../../blobs/hash{number}")
            self.assertEqual(self.generate(snapshot / "m.h5"), self.plain)
        with self.subTest("HDF5_EXT_PREFIX"):
            far = self.folder / "far"
            far.mkdir()
            shard.rename(far / shard.name)
            self.assertEqual(self.run_ptrt(self.main).status, 2)
            self.assertEqual(self.generate(self.main, env={"HDF5_EXT_PREFIX": f"/nowhere:{far}"}), self.plain)
        with self.subTest("the working directory"):
            self.assertEqual(self.generate(self.main, cwd=far), self.plain)

    def test_missing_shard_is_named(self) -> None:
        self.split().unlink()
        outcome = self.run_ptrt(self.main)
        self.assertEqual(outcome.status, 2)
        self.assertIn("m.track01.h5", outcome.stderr)
        self.assertIn("missing", outcome.stderr)

    def test_links_out_of_the_folder(self) -> None:
        shard = self.split()
        outside = self.folder / "outside.h5"
        shutil.copy(shard, outside)
        for name in (str(outside), "../outside.h5", "x/../../outside.h5"):
            with self.subTest(name):
                (self.main.parent / "x").mkdir(exist_ok=True)
                with h5py.File(self.main, "r+") as file:
                    del file["/tracks/01"]
                    file["/tracks/01"] = h5py.ExternalLink(name, "/tracks/01")
                self.refuse(self.main, "/tracks/01", name, "--trust-links")
                self.assertEqual(self.generate(self.main, "--trust-links"), self.plain)

    def test_every_link_is_looked_at(self) -> None:
        outside = self.folder / "outside.h5"
        shutil.copy(self.main, outside)
        for path in ("/shared", "/shared/embedding", "/tracks", "/tracks/00", "/tracks/01/layers", WK, "/tokenizer"):
            with self.subTest(path):
                model = self.folder / "changed" / "m.h5"
                model.parent.mkdir(exist_ok=True)
                shutil.copy(self.main, model)
                with h5py.File(model, "r+") as file:
                    if path in file:
                        del file[path]
                    file[path] = h5py.ExternalLink("../outside.h5", path)
                self.refuse(model, path, "../outside.h5")
                with h5py.File(model, "r+") as file:  # the same through a soft link
                    file["/aside"] = h5py.ExternalLink("../outside.h5", path)
                    del file[path]
                    file[path] = h5py.SoftLink("/aside")
                self.refuse(model, "../outside.h5")
                if path != "/tokenizer":
                    self.assertEqual(self.generate(model, "--trust-links"), self.plain)
        with self.subTest("inside of a shard"):
            shard = self.split()
            with h5py.File(shard, "r+") as file:
                del file[WK]
                file[WK] = h5py.ExternalLink("../outside.h5", WK)
            self.refuse(self.main, "m.track01.h5", WK, "../outside.h5")

    def test_links_within_the_file(self) -> None:
        with h5py.File(self.main, "r+") as file:
            file.move(WK, "/moved")
            file[WK] = h5py.SoftLink("/moved")
            file.move("/tracks/00", "/first")
            file["/tracks/00"] = h5py.SoftLink("/first")
        self.assertEqual(self.generate(self.main), self.plain)
        with h5py.File(self.main, "r+") as file:
            del file[WK]
            file[WK] = h5py.SoftLink(WK)
        outcome = self.run_ptrt(self.main)
        self.assertEqual(outcome.status, 2)
        self.assertIn("circle", outcome.stderr)

    def test_external_storage(self) -> None:
        with h5py.File(self.main, "r+") as file:
            values = file[WK][()]
            del file[WK]
            values.tofile(self.folder / "raw.bin")
            file.create_dataset(WK, shape=values.shape, dtype=values.dtype,
                                external=[(str(self.folder / "raw.bin"), 0, h5py.h5f.UNLIMITED)])
            if values.dtype == np.uint16:
                file[WK].attrs["dtype"] = "bfloat16"
        self.refuse(self.main, WK, "external storage", "raw.bin", "--trust-links")
        self.assertEqual(self.generate(self.main, "--trust-links"), self.plain)

    def test_virtual_dataset(self) -> None:
        source = self.main.parent / "source.h5"
        with h5py.File(self.main, "r+") as file, h5py.File(source, "w") as other:
            values = file[WK][()]
            other["x"] = values
            layout = h5py.VirtualLayout(shape=values.shape, dtype=values.dtype)
            layout[:] = h5py.VirtualSource(str(source), "x", shape=values.shape)
            del file[WK]
            file.create_virtual_dataset(WK, layout)
            if values.dtype == np.uint16:
                file[WK].attrs["dtype"] = "bfloat16"
        self.refuse(self.main, WK, "virtual", "source.h5", "--trust-links")
        self.assertEqual(self.generate(self.main, "--trust-links"), self.plain)

    def test_two_names_of_one_dataset(self) -> None:
        """h5py's hard links count; a damaged link that leads to another dataset does not."""
        with h5py.File(self.main, "r+") as file:
            other = WK.replace("/01/layers", "/00/layers")
            del file[WK]
            file[WK] = file[other]
        self.assert_done(self.run_ptrt(self.main))


if __name__ == "__main__":
    unittest.main()
