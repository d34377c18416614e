#!/usr/bin/python3
"""Chat requests through the program: the template of a model file and of a file, dates, shards, and signals."""

import os
import re
import signal
import sys
import time
import unittest
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PATIENCE, CliTest, Running, attribute, error_code, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

TEMPLATE = """{{ bos_token }}{% for m in messages %}
{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"""
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
USER = [{"role": "user", "content": "hi"}]
PROMPT = [256, *b"user: hi\nbot: "]


def helpers() -> set[int]:
    """The Python processes of running programs, those of other tests included."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"What ptrt leaves to Python" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


class Chat(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, ffn_size=32, max_context=128,
                             vocab_size=259, bos_token_id=256, eos_token_ids=[257])
        cls.bare = write_random(cls.dir / "bare.h5", config, 5)
        cls.model = write_random(cls.dir / "model.h5", config, 5)
        with h5py.File(cls.model, "a") as file:
            file["tokenizer"].attrs["chat_template"] = TEMPLATE
        cls.template = cls.dir / "template.jinja"
        cls.template.write_text(TEMPLATE)

    def test_a_chat_is_its_prompt(self) -> None:
        sampling = {"max_tokens": 6, "temperature": 1.0, "seed": 3}
        rows = [{"messages": USER, **sampling}, {"tokens": PROMPT, **sampling}, {"messages": USER},
                {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions",
                 "body": {"messages": USER, **sampling}},
                {"messages": [{"content": "no role"}]}]
        lines = self.lines("generate", self.model, rows)
        whole = self.last_results.read_bytes()
        self.assertEqual([error_code(line) for line in lines], ["", "", "", "", "invalid_request"], lines)
        self.assertEqual(lines[0]["tokens"], lines[1]["tokens"])
        self.assertEqual(lines[0]["usage"], {"prompt_tokens": len(PROMPT), "completion_tokens": len(lines[1]["tokens"])})
        self.assertTrue(lines[2]["finish_reason"] == "stop" or len(lines[2]["tokens"]) == 128 - len(PROMPT))
        self.assertEqual(lines[3]["response"]["status_code"], 200)
        self.assertEqual(error_code(lines[4]), "invalid_request")
        for options, ranks in (((), 4), (("--max-batch", "1"), 2)):
            self.batch("generate", self.model, rows, *options, ranks=ranks)
            self.assertEqual(self.last_results.read_bytes(), whole)
        self.batch("generate", self.bare, rows, "--chat-template", self.template)
        self.assertEqual(self.last_results.read_bytes(), whole)
        missing = self.lines("generate", self.bare, rows)
        self.assertEqual([error_code(line) for line in missing],
                         ["no_chat_template", "", "no_chat_template", "no_chat_template", "invalid_request"])
        scored = self.lines("score", self.model, [{"messages": USER}, {"tokens": PROMPT}])
        self.assertEqual(scored[0]["sum_logprob"], scored[1]["sum_logprob"])

    def test_copies_of_a_model_keep_the_template(self) -> None:
        for command, options in (("pack", []), ("quantize", ["--weights", "int8"])):
            copy = self.fresh(".h5")
            self.assert_done(ptrt(command, self.model, "-o", copy, *options))
            with h5py.File(copy) as file:
                self.assertEqual(attribute(file["tokenizer"], "chat_template"), TEMPLATE, command)

    def test_one_date_for_the_whole_job(self) -> None:
        dated = self.dir / "dated.jinja"
        dated.write_text("{{ strftime_now('%Y %j') }}{{ messages[0].content }}")
        requests = write_requests(self.fresh(".jsonl"), [{"messages": USER, "max_tokens": 2}] * 3)
        results, text = self.fresh("-results.jsonl"), ["generate", self.model, requests, "--chat-template", dated]
        first = ptrt(*text, "-o", results, "--chat-date", "2020-12-31")
        self.assert_done(first)
        self.assertEqual(read_results(results)[0]["usage"]["prompt_tokens"], len("2020 366hi"))
        self.assertIn("is complete", ptrt(*text, "-o", results, "--resume").output)  # on any later day
        self.assertEqual(ptrt(*text, "-o", results, "--resume", "--chat-date", "2021-01-01").status, 2)
        for shard in ("0/2", "1/2"):
            refused = ptrt(*text, "-o", self.fresh("-shard.jsonl"), "--shard", shard)
            self.assertEqual(refused.status, 2)
            self.assertIn("--chat-date", refused.stderr)
        shards = [self.fresh("-shard.jsonl") for _ in range(2)]
        for index, shard in enumerate(shards):
            self.assert_done(ptrt(*text, "-o", shard, "--shard", f"{index}/2", "--chat-date", "2020-12-31"))
        merged = self.fresh("-merged.jsonl")
        self.assert_done(ptrt("merge", merged, *shards))
        self.assertEqual(merged.read_bytes(), results.read_bytes())

    def test_bad_options(self) -> None:
        requests, results = write_requests(self.fresh(".jsonl"), [{"messages": USER}]), self.fresh("-results.jsonl")
        empty = self.dir / "empty.jinja"
        empty.write_text("")
        for options, named in ((["--chat-date", "2026-02-30"], "2026-02-30"), (["--chat-date", "today"], "today"),
                               (["--chat-template", self.dir / "none.jinja"], "none.jinja"),
                               (["--chat-template", empty], "empty.jinja")):
            outcome = ptrt("generate", self.model, requests, "-o", results, *options)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn(named, outcome.stderr)
        kept = ptrt("generate", self.model, requests, "-o", self.template, "--chat-template", self.template)
        self.assertEqual(kept.status, 2, kept.output)
        self.assertEqual(self.template.read_text(), TEMPLATE)

    def test_a_signal_ends_a_run_whose_lines_are_slow_to_read(self) -> None:
        """Each takes 5 s; what was read before is stored meanwhile, and the rest has no result."""
        endless = self.dir / "slow.jinja"
        endless.write_text("{% if messages[0].role == 'loop' %}" + ENDLESS + "{% endif %}ok")
        rows = [{"messages": USER, "max_tokens": 2}] * 3 + [{"messages": [{"role": "loop"}]}] * 100
        requests, results = write_requests(self.fresh(".jsonl"), rows), self.fresh("-results.jsonl")
        run = Running(["generate", str(self.model), str(requests), "-o", str(results), "--chat-template", str(endless)])
        journal, started = Path(f"{results}.partial"), time.monotonic()
        while time.monotonic() < started + PATIENCE:
            if journal.exists() and journal.read_bytes().count(b'"finish_reason"') == 3:
                break
            time.sleep(0.05)
        asked = time.monotonic()
        os.kill(run.process.pid, signal.SIGTERM)
        outcome = run.finish()
        self.assertLess(time.monotonic() - asked, 60, "100 lines take 500 s")
        self.assertIn("of 103 results", outcome.output)
        self.assertEqual(outcome.status, 75, outcome.output)
        lines = journal.read_bytes().splitlines()[1:]
        self.assertLess(len(lines), 50)
        self.assertEqual(sum(b"5 s of processor time" in line for line in lines), len(lines) - 3, lines)

    def test_errors_of_the_host_run_again(self) -> None:
        rows = [{"messages": USER, "max_tokens": 2}, {"tokens": [1], "max_tokens": 30, "ignore_eos": True}]
        requests, results = write_requests(self.fresh(".jsonl"), rows), self.fresh("-results.jsonl")
        text = ["generate", self.model, requests, "-o", results]
        stopped = ptrt(*text, env={"PTRT_PYTHON": "/nowhere/python3", "PTRT_FAULT": "rank=0,at=step,after=15"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.assertIn(b'"code":"chat_template_unavailable"', Path(f"{results}.partial").read_bytes())
        self.assert_done(ptrt(*text, "--resume"))
        self.assertEqual([error_code(line) for line in read_results(results)], ["", ""])

    def test_a_template_without_end(self) -> None:
        """It is an error line; a killed job leaves no process behind, even one that is busy."""
        endless = self.dir / "endless.jinja"
        endless.write_text("{% if messages[0].role == 'loop' %}" + ENDLESS + "{% endif %}ok")
        rows = [{"messages": [{"role": "loop"}]}, {"messages": USER, "max_tokens": 2}]
        before = helpers()
        lines = self.lines("generate", self.model, rows, "--chat-template", endless)
        self.assertEqual([error_code(line) for line in lines], ["chat_template_error", ""])
        self.assertRegex(lines[0]["error"]["message"], re.escape("5 s of processor time"))
        run = Running(["generate", str(self.model), str(write_requests(self.fresh(".jsonl"), rows * 50)), "-o",
                       str(self.fresh("-results.jsonl")), "--chat-template", str(endless)])
        started = time.monotonic()
        while not (mine := helpers() - before) and time.monotonic() < started + PATIENCE:
            time.sleep(0.05)
        self.assertTrue(mine)
        os.kill(run.process.pid, signal.SIGKILL)
        self.assertEqual(run.finish().status, -signal.SIGKILL)
        killed = time.monotonic()
        while helpers() & mine:
            self.assertLess(time.monotonic(), killed + PATIENCE)
            time.sleep(0.1)


if __name__ == "__main__":
    unittest.main()
