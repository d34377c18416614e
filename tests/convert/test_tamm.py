#!/usr/bin/python3
"""The committed goldens of Apple's PT-MoE are what its class computes; and a state dict that it saves by torch converts. Needs
torch, safetensors and tamm."""

import json
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("scripts", "scripts/goldens", "tests/cli", "tests/convert")]
import with_torch  # noqa: E402

with_torch.need("torch", "safetensors", "tamm", "h5py")

import h5py  # noqa: E402
import make_tamm_goldens as goldens  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ptrt_cli import CliTest  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tamm.models.afm_text.afm_pt_moe import AFMParallelTrackMoEConfig  # noqa: E402
from tamm.utils import json as tamm_json  # noqa: E402


class Tamm(CliTest):

    def test_goldens_are_what_the_class_computes(self) -> None:
        committed = json.loads((goldens.FOLDER / "goldens.json").read_text())
        self.assertEqual(list(committed), list(goldens.CONFIGS))
        for seed, name in enumerate(goldens.CONFIGS):
            config = json.loads((goldens.FOLDER / f"{name}.json").read_text())
            state, scored = goldens.golden(config, seed)
            stored = load_file(goldens.FOLDER / f"{name}.safetensors")
            self.assertEqual(stored.keys(), state.keys())
            for key, values in state.items():
                self.assertTrue(torch.equal(stored[key], values), key)
            for got, want in zip(scored, committed[name], strict=True):
                self.assertEqual(got["tokens"], want["tokens"])
                np.testing.assert_allclose(got["logprobs"], want["logprobs"], atol=1e-5)

    def test_what_tamm_saves_converts(self) -> None:
        """Its own JSON has a type and only what differs from the defaults; its state dict has the tied weight twice."""
        values = {**goldens.SMALL, **goldens.CONFIGS["grouped"]}
        config = AFMParallelTrackMoEConfig(**values)
        model, path, output = config.create_model(), self.fresh(".json"), self.fresh(".h5")
        state = model.state_dict()
        self.assertIn("output_transform.weight", state)
        path.write_text(tamm_json.dumps(config))
        torch.save(state, self.dir / "state.pt")
        command = [sys.executable, ROOT / "scripts" / "convert_pt.py", self.dir / "state.pt", "--config", path, "--layout", "tamm"]
        done = subprocess.run([*command, "-o", output], capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        with h5py.File(output) as file:
            np.testing.assert_array_equal(file["/shared/embedding"][()], state["embedding.weight"].numpy())
            want = state["layers.segment_1.layer_0.feed_forward.experts.output_transform.weight"][3, 2].T.numpy()
            np.testing.assert_array_equal(file["/tracks/03/layers/001/experts/w_down"][2], want)
        state["output_transform.weight"] = state["output_transform.weight"] + 1
        torch.save(state, self.dir / "state.pt")
        done = subprocess.run([*command, "-o", self.fresh(".h5")], capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(done.returncode, 2)
        self.assertIn("output_transform.weight differs from embedding.weight", done.stderr)


if __name__ == "__main__":
    unittest.main()
