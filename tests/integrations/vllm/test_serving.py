"""vllm serve through the openai client, and vllm run-batch, with no option that names a format."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import engines
import h5py
import openai

PATIENCE = 600
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
SMALL = ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(engines.CACHE)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}


def write_chat_model(folder: Path) -> Path:
    """The demo model with a chat template: each message is a line of the prompt."""
    path = folder / "chat.h5"
    shutil.copy(engines.DEMO, path)
    with h5py.File(path, "r+") as file:
        file["tokenizer"].attrs["chat_template"] = TEMPLATE
    return path


class Server:
    """vllm serve on a free port of this machine."""

    def __init__(self, model: Path, *options: str):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.printed = tempfile.TemporaryFile()
        command = ["vllm", "serve", str(model), "--host", "127.0.0.1", "--port", str(self.port), *SMALL, *options]
        self.process = subprocess.Popen(command, env=environment(), stdout=self.printed, stderr=subprocess.STDOUT,
                                        start_new_session=True)

    def text(self) -> str:
        return os.pread(self.printed.fileno(), 1 << 20, 0).decode("utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.text()[-8000:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(f"no server after {PATIENCE} s:\n{self.text()[-8000:]}")

    def stop(self) -> None:
        for how, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, 30)):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(timeout=patience)
                return
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


class Serve(unittest.TestCase):
    """Two ranks, in processes that the server starts."""

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.server = Server(write_chat_model(Path(folder.name)), "--served-model-name", "pt-demo",
                            "--tensor-parallel-size", "2")
        cls.addClassCleanup(cls.server.stop)
        cls.server.wait_until_ready()
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key="none")

    def complete(self, prompt, **options):
        return self.client.completions.create(model="pt-demo", prompt=prompt, max_tokens=16, temperature=0, **options)

    def test_models(self) -> None:
        (model,) = self.client.models.list().data
        self.assertEqual((model.id, model.max_model_len), ("pt-demo", 512))

    def test_completions(self) -> None:
        prompts = [request["prompt"] for request in engines.demo_requests()]
        answer = self.complete(prompts)
        texts = [bytes(token for token in tokens if token < 256).decode() for tokens in engines.demo_answers()]
        self.assertEqual([choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)], texts)
        self.assertEqual({choice.finish_reason for choice in answer.choices}, {"stop"})

    def test_logprobs(self) -> None:
        choice = self.complete("What is 40 + 17?\n", logprobs=2).choices[0]
        self.assertEqual(choice.text, "57")
        self.assertEqual(len(choice.logprobs.token_logprobs), 3)  # and eos
        self.assertTrue(all(-0.5 < chance <= 0 for chance in choice.logprobs.token_logprobs))

    def test_streaming(self) -> None:
        pieces = [chunk.choices[0].text for chunk in self.complete("Spell rabbit backwards.\n", stream=True)]
        self.assertEqual("".join(pieces), "tibbar")
        self.assertGreater(len(pieces), 3)

    def test_chat(self) -> None:
        """By the template in the file."""
        asked = {"model": "pt-demo", "messages": [{"role": "user", "content": "What is 40 + 17?"}], "max_tokens": 16,
                 "temperature": 0}
        answer = self.client.chat.completions.create(**asked)
        self.assertEqual(answer.choices[0].message.content, "57")
        self.assertEqual(answer.usage.prompt_tokens, len("What is 40 + 17?\n") + 1)
        pieces = [chunk.choices[0].delta.content or "" for chunk in
                  self.client.chat.completions.create(**asked, stream=True) if chunk.choices]
        self.assertEqual("".join(pieces), "57")

    def test_bad_request(self) -> None:
        with self.assertRaises(openai.BadRequestError) as raised:
            self.complete("Add 1 and 2.\n" * 100)
        self.assertIn("512", str(raised.exception))
        self.assertEqual(self.complete("What is 40 + 17?\n").choices[0].text, "57")


class RunBatch(unittest.TestCase):

    def test_openai_file(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = write_chat_model(folder)
            questions = {"sum": ("What is 40 + 17?", "57"), "word": ("Spell rabbit backwards.", "tibbar")}
            (folder / "in.jsonl").write_text("".join(json.dumps(
                {"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
                 "body": {"model": str(model), "messages": [{"role": "user", "content": question}], "max_tokens": 16,
                          "temperature": 0}}) + "\n" for key, (question, _) in questions.items()))
            done = subprocess.run(["vllm", "run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", str(model), *SMALL],
                                  cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            answers = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        found = {answer["custom_id"]: answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers}
        self.assertEqual(found, {key: answer for key, (_, answer) in questions.items()})


if __name__ == "__main__":
    unittest.main(verbosity=1)
