"""A model file by a relative path, which looks like a repository of the hub: nothing is asked of a network."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import engines

PATIENCE = 600
# Python runs it first in every process that vLLM starts.
GUARD = """
import os, socket
real = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if host in (None, "", "localhost", "127.0.0.1", "0.0.0.0", "::1", "::", socket.gethostname()):
        return real(host, *args, **kwargs)
    with open(os.environ["LOOKED_UP"], "a") as file:
        print(host, file=file)
    raise socket.gaierror(socket.EAI_NONAME, f"{host} was looked up")
socket.getaddrinfo = getaddrinfo
"""
GUARD_WORKS = "import socket; socket.getaddrinfo('huggingface.co', 443)"
START = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM("demo/model.h5", dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, **json.loads(sys.argv[1]))
    print("name:", llm.llm_engine.vllm_config.model_config.served_model_name)
    params = SamplingParams(temperature=0, max_tokens=8)
    print("answer:", llm.generate("What is 40 + 17?\\n", params, use_tqdm=False)[0].outputs[0].text)
"""


class RelativePath(unittest.TestCase):

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.looked_up = self.folder / "looked_up"
        (self.folder / "demo").mkdir()
        shutil.copy(engines.DEMO, self.folder / "demo" / "model.h5")
        (self.folder / "sitecustomize.py").write_text(GUARD)
        (self.folder / "start.py").write_text(START)

    def run_python(self, *arguments: str):
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"PYTHONPATH": f"{self.folder}:{environment['PYTHONPATH']}", "LOOKED_UP": str(self.looked_up),
                        "HF_HOME": str(self.folder / "hub")}
        return subprocess.run([sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True,
                              timeout=PATIENCE)

    def test_guard(self) -> None:
        self.assertNotEqual(self.run_python("-c", GUARD_WORKS).returncode, 0)
        self.assertEqual(self.looked_up.read_text(), "huggingface.co\n")

    def check(self, options: str) -> None:
        done = self.run_python("start.py", options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("name: demo/model.h5", done.stdout.splitlines())
        self.assertIn("answer: 57", done.stdout.splitlines())
        self.assertFalse(self.looked_up.exists() and self.looked_up.read_text())

    def test_model(self) -> None:
        self.check("{}")

    def test_tokenizer(self) -> None:
        self.check('{"tokenizer": "demo/model.h5"}')


if __name__ == "__main__":
    unittest.main(verbosity=1)
