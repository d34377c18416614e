"""What cannot be run ends vLLM's start with one error that says why; before a worker starts, if the config shows it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import engines
import h5py
import pt_reference as ref
from model_grid import GRID, prompts
from model_maker import make_config, write_random
from vllm import SamplingParams

PATIENCE = 600  # a start takes a minute on a loaded machine; only a hang takes so long

START = """
import sys
from vllm import LLM
if __name__ == "__main__":
    LLM(sys.argv[1], dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, skip_tokenizer_init=True,
        tensor_parallel_size=2)
    print("started")
"""

TOO_LONG = """
import sys
from vllm import LLM
LLM(sys.argv[1], dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, skip_tokenizer_init=True,
    max_model_len=100000)
"""


def members_after(session: int, patience: float) -> list[str]:
    """Process ids of what is left of a session, once nothing is or the time is over."""
    end = time.monotonic() + patience
    while True:
        left = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True).stdout.split()
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


class BadInput(unittest.TestCase):

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def model(self, **changes) -> Path:
        config = {"tracks": 4, "layers": 2, "sync_layers": [1, 2], **changes}
        return write_random(self.folder / "model.h5", make_config(**config))

    def change_config(self, path: Path, **changes) -> None:
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["config"])
            del file.attrs["config"]
            file.attrs["config"] = json.dumps({**config, **changes})

    def refused(self, path, *words: str, **options) -> None:
        with self.assertRaises(Exception) as raised, engines.engine(path, skip_tokenizer_init=True, **options):
            pass
        for word in words:
            self.assertIn(word, str(raised.exception))

    def test_no_file(self) -> None:
        self.refused(self.folder / "none.h5", "none.h5", "does not exist")

    def test_not_hdf5(self) -> None:
        path = self.folder / "text.h5"
        path.write_text("no model")
        self.refused(path, "text.h5", "no model file")

    def test_another_hdf5_file(self) -> None:
        path = self.folder / "other.hdf5"
        h5py.File(path, "w").close()
        self.refused(path, "other.hdf5", "format")

    def test_unknown_key(self) -> None:
        path = self.model()
        self.change_config(path, sparkle=True)
        self.refused(path, "model.h5", "sparkle")

    def test_newer_version(self) -> None:
        path = self.model()
        with h5py.File(path, "r+") as file:
            file.attrs["format_version"] = 2
        self.refused(path, "model.h5", "format_version", "2")

    def test_ranks_that_do_not_fit(self) -> None:
        self.refused(self.model(), "model.h5", "tensor_parallel_size", "4 tracks", "1, 2, 4", tensor_parallel_size=3)

    def test_features(self) -> None:
        path = self.model()
        for options, feature in (({"pipeline_parallel_size": 2}, "pipeline parallelism"), ({"enable_lora": True}, "LoRA"),
                                 ({"quantization": "fp8"}, "quantisation"),
                                 ({"enable_expert_parallel": True}, "expert parallelism"),
                                 ({"hf_overrides": {"max_position_embeddings": 200000}}, "another config than the file's"),
                                 ({"hf_config_path": str(path)}, "another config than the file's"),
                                 ({"decode_context_parallel_size": 2}, "context parallelism")):
            with self.subTest(feature):
                self.refused(path, "model.h5", next(iter(options)), feature, "not supported", **options)

    def test_more_than_max_context(self) -> None:
        """vLLM's own check is switched off, for good in this process, so it is another one."""
        path = self.model()
        script = self.folder / "start.py"
        script.write_text(TOO_LONG)
        environment = {**os.environ, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
        done = subprocess.run([sys.executable, script, path], env=environment, capture_output=True, text=True, timeout=PATIENCE)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout + done.stderr, "model.h5: max_model_len 100000 is beyond max_context")

    def test_missing_dataset(self) -> None:
        path = self.model()
        with h5py.File(path, "r+") as file:
            del file["/tracks/03/layers/001/wo"]
        self.refused(path, "/tracks/03/layers/001/wo")

    def test_wrong_shape(self) -> None:
        path = self.model()
        with h5py.File(path, "r+") as file:
            del file["/tracks/02/layers/000/wq"]
            file["/tracks/02/layers/000/wq"] = [[1.0]]
        self.refused(path, "/tracks/02/layers/000/wq")

    def test_checksum(self) -> None:
        path = self.damaged()
        self.refused(path, "/tracks/03/layers/001/w_up", "crc32c")

    def damaged(self) -> Path:
        """A weight of the last track differs from its checksum."""
        path = self.model()
        with h5py.File(path, "r+") as file:
            file["/tracks/03/layers/001/w_up"][0, 0] += 1
        return path

    def test_beyond_float16(self) -> None:
        """In the head, which is vLLM's own layer."""
        path = write_random(self.folder / "model.h5", make_config(layers=1, tie_embeddings=False), crc=False)
        with h5py.File(path, "r+") as file:
            file["/shared/lm_head"][0, 0] = 1e5
        self.refused(path, "/shared/lm_head", "65504", dtype="float16")

    def test_panels(self) -> None:
        path = self.model()
        packed = self.folder / "packed.h5"
        subprocess.run([os.environ["PTRT_BIN"], "pack", path, "-o", packed], check=True, capture_output=True)
        self.refused(packed, "packed.h5", "panels16.v1")

    def test_no_tokenizer(self) -> None:
        path = write_random(self.folder / "mute.h5", make_config(layers=1), tokenizer=None)
        with self.assertRaisesRegex(ValueError, "mute.h5.*no tokenizer.*skip_tokenizer_init"), engines.engine(path):
            pass

    def test_int8_is_taken(self) -> None:
        """int8 matrices are given their values again; the results are those of the file."""
        model = GRID[4]
        path = engines.write_grid_model(self.folder, model)
        small = self.folder / "int8.h5"
        subprocess.run([os.environ["PTRT_BIN"], "quantize", path, "-o", small, "--weights", "int8"], check=True,
                       capture_output=True)
        rows = prompts(model)[:4]
        with engines.engine(small, skip_tokenizer_init=True) as llm:
            engines.check(self, ref.load(small), rows, engines.continue_greedily(llm, rows, 8))

    def test_bad_request_harms_no_other(self) -> None:
        with engines.engine(engines.DEMO) as llm:
            with self.assertRaisesRegex(Exception, "512 tokens"):
                llm.generate(["Add 1 and 2.\n" * 100], SamplingParams(max_tokens=4), use_tqdm=False)
            self.assertEqual(engines.answer_demo(llm)[:4], engines.demo_answers()[:4])

    def test_two_workers_end(self) -> None:
        """As vLLM starts several ranks by default: the fault of one worker ends all of them, with its message."""
        path = self.damaged()
        script = self.folder / "start.py"
        script.write_text(START)
        with open(self.folder / "printed", "w+") as printed:
            process = subprocess.Popen([sys.executable, script, path], stdout=printed, stderr=subprocess.STDOUT,
                                       env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, start_new_session=True)
            try:
                status = process.wait(timeout=PATIENCE)
            finally:
                left = members_after(process.pid, 60)
                if left:
                    os.killpg(process.pid, signal.SIGKILL)
            printed.seek(0)
            text = printed.read()
        self.assertNotEqual(status, 0)
        self.assertNotIn("started", text.splitlines())
        self.assertRegex(text, "/tracks/03/layers/001/w_up.*crc32c")
        self.assertEqual(left, [], "workers were left behind")


if __name__ == "__main__":
    unittest.main(verbosity=1)
