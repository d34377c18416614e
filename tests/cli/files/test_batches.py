#!/usr/bin/python3
"""The batch files behind scripts/lm_eval_ptrt.py: made, run, read back and continued, without lm-eval or torch."""

import importlib.util
import json
import os
import subprocess
import sys
import unittest
import unittest.mock
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PATIENCE, PTRT, ROOT, CliTest, under_mpirun  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

sys.path.insert(0, str(ROOT))
from scripts.model_text import ModelText, NoTokenizer
from scripts.ptrt_batches import Batches, BatchFailed, find_program

MPI_ENV = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
PAIRS = [([1, 2, 3], [4, 5]), ([9] * 30, [1]), ([1, 2, 3], [4, 5]), ([7], [8, 9, 10])]


class BatchFiles(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=2, hidden_size=32, ffn_size=64, max_context=64, bos_token_id=256,
                                 eos_token_ids=[257])
        cls.model = write_random(cls.fresh(".h5"), cls.config, 1)

    def setUp(self) -> None:
        self.work = self.fresh("-work")
        self.enterContext(unittest.mock.patch.dict(os.environ, MPI_ENV))
        os.environ.pop("PTRT_FAULT", None)

    def batches(self, *, model: Path | None = None, launcher: str = "", program: str | None = None,
                options: str = "--quiet") -> Batches:
        return Batches(str(model or self.model), str(self.work), launcher, program or str(PTRT), options)

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.work.glob(pattern))

    def test_score(self) -> None:
        rows = [{"context": a, "continuation": b} for a, b in PAIRS]
        want = [(line["sum_logprob"], line["is_greedy"]) for line in self.lines("score", self.model, rows)]
        self.assertEqual(self.batches().score(PAIRS), want)
        requests, = (path for path in self.files("score-*.jsonl") if "results" not in path.name)
        self.assertEqual(len(requests.read_text().splitlines()), 3, "equal pairs are scored once")
        self.assertEqual(self.batches().score([]), [])

    def test_generate(self) -> None:
        rows = [{"tokens": [1, 2], "max_tokens": 5, "stop": []}, {"tokens": [3], "max_tokens": 9, "stop": ["x"]}]
        want = [line["text"] for line in self.lines("generate", self.model, rows)]
        self.assertEqual(self.batches().generate(rows), want)

    def test_launcher(self) -> None:
        want = self.batches().score(PAIRS)
        self.work = self.fresh("-ranks")
        self.assertEqual(self.batches(launcher=" ".join(under_mpirun([], 2, {}))).score(PAIRS), want)

    def test_rerun_and_resume(self) -> None:
        """What is finished stays, what is not is continued, and other options or requests are other batches."""
        os.environ["PTRT_FAULT"] = "rank=0,at=step,after=2"
        slow = {"options": "--max-batch 1 --quiet"}
        with self.assertRaises(BatchFailed) as failed:
            self.batches(**slow).score(PAIRS)
        self.assertEqual(failed.exception.status, 1)
        self.assertEqual(len(self.files("*.partial")), 1)
        del os.environ["PTRT_FAULT"]
        first = self.batches(**slow).score(PAIRS)
        self.assertEqual(self.files("*.partial"), [])
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.work.iterdir()}
        self.assertEqual(self.batches(**slow).score(PAIRS), first)
        self.assertEqual({path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.work.iterdir()}, before)
        self.batches(options="--compute float32 --quiet").score(PAIRS)
        self.batches(**slow).score(PAIRS[:1])
        self.assertEqual(len(self.files("*.results.jsonl")), 3)

    def test_another_model_under_the_same_name(self) -> None:
        model = write_random(self.fresh(".h5"), self.config, 2)
        self.batches(model=model).score(PAIRS)
        write_random(model, self.config, 3)
        with self.assertRaises(BatchFailed) as failed:
            self.batches(model=model).score(PAIRS)
        self.assertEqual(failed.exception.status, 2)

    def test_failures_have_a_status(self) -> None:
        with self.assertRaisesRegex(BatchFailed, "1 of 2 requests failed.*context_length_exceeded"):
            self.batches().score([([1] * 64, [2]), ([1], [2])])
        stopped = self.fresh(".sh")
        stopped.write_text("#!/bin/sh\nexit 75\n")
        stopped.chmod(0o755)
        with self.assertRaisesRegex(BatchFailed, "continues") as failed:
            self.batches(program=str(stopped)).score(PAIRS)
        self.assertEqual(failed.exception.status, 75)
        short = self.fresh(".sh")
        short.write_text('#!/bin/sh\necho "{}" > "$5"\n')
        short.chmod(0o755)
        with self.assertRaisesRegex(BatchFailed, "1 results of 3"):
            self.batches(program=str(short), options="").score(PAIRS)

    def test_program(self) -> None:
        os.environ["PTRT_BIN"] = "/some/ptrt"
        self.assertEqual(find_program(), "/some/ptrt")
        self.assertEqual(find_program("mine"), "mine")

    @unittest.skipIf(importlib.util.find_spec("lm_eval"), "lm_eval is there")
    def test_without_lm_eval(self) -> None:
        run = subprocess.run([sys.executable, "-m", "scripts.lm_eval_ptrt", "--help"], cwd=ROOT, capture_output=True,
                             text=True, timeout=PATIENCE, check=False)
        self.assertEqual(run.returncode, 2, run.stderr)
        self.assertRegex(run.stderr, "^lm_eval_ptrt: .*pip install lm-eval")

    def test_text_of_a_model(self) -> None:
        text = ModelText(str(self.model))
        self.assertEqual((text.bos, text.eos, text.max_context), (256, [257], 64))
        self.assertEqual(text.encode("aü"), list("aü".encode()))
        line = self.lines("score", self.model, [{"prompt": "grün"}])[0]
        self.assertEqual([text.bos, *text.encode("grün")], line["tokens"])
        with self.assertRaisesRegex(OSError, "test_batches.py: no model file"):
            ModelText(__file__)
        for options, word in (({"tokenizer": None}, "no tokenizer"), ({"tokenizer": "words"}, "'words'")):
            with self.assertRaisesRegex(NoTokenizer, word):
                ModelText(str(write_random(self.fresh(".h5"), self.config, 1, **options)))

    @unittest.skipUnless(importlib.util.find_spec("jinja2"), "needs jinja2")
    def test_chats(self) -> None:
        model = write_random(self.fresh(".h5"), self.config, 1)
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "grün"}]
        with self.assertRaisesRegex(ValueError, "no chat template"):
            ModelText(str(model)).render(turns)
        for template, want in (
                ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
                 "{% if add_generation_prompt %}[a]{% endif %}", "[system] s\n[user] grün\n[a]"),
                ("{{ messages[1] | tojson }}", '{"role": "user", "content": "grün"}')):
            self.set_template(model, template)
            self.assertEqual(ModelText(str(model)).render(turns), want)
        open_end = [*turns, {"role": "assistant", "content": "Well, "}]
        self.set_template(model, "{% for m in messages %}<{{ m.content }}>{% endfor %}")
        self.assertEqual(ModelText(str(model)).render(open_end, False), "<s><grün><Well, ")
        for template, word in (("{{ raise_exception('no system') }}", "no system"), ("{% if %}", "chat template"),
                               ("{{ messages.append(1) }}", "chat template")):
            self.set_template(model, template)
            with self.assertRaisesRegex(ValueError, word):
                ModelText(str(model)).render(turns)
        bare = write_random(self.fresh(".h5"), self.config | {"bos_token_id": None}, 1)
        self.set_template(bare, "{{ bos_token }}{{ messages[0].content }}")
        with self.assertRaisesRegex(ValueError, "bos_token"):
            ModelText(str(bare)).render(turns)

    @staticmethod
    def set_template(model: Path, template: str) -> None:
        with h5py.File(model, "r+") as file:
            file["tokenizer"].attrs["chat_template"] = template

    def test_requests_are_lines_of_json(self) -> None:
        requests, results = self.batches().make_files("generate", [{"tokens": [1], "stop": ["ü\n"]}])
        self.assertEqual([json.loads(line) for line in requests.read_text().splitlines()],
                         [{"tokens": [1], "stop": ["ü\n"]}])
        self.assertFalse(results.exists())
        self.assertEqual(self.files("*.tmp"), [])


if __name__ == "__main__":
    unittest.main(verbosity=1)
