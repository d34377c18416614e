#!/usr/bin/python3
"""--trace, --metrics and --log-file: what they tell, and that they neither change results nor end a job."""

import json
import re
import sys
import unittest
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import ROOT, CliTest, ptrt, write_requests  # noqa: E402

DEMO = ROOT / "examples" / "demo" / "demo.h5"
REQUESTS = [{"id": str(i), "prompt": "Q: What is 2 + 2?", "max_tokens": 4 + i} for i in range(3)]


class Observe(CliTest):
    def setUp(self) -> None:
        self.folder = self.fresh("-case")
        self.folder.mkdir()
        write_requests(self.folder / "r.jsonl", REQUESTS)

    def generate(self, out: str, *options, **keywords):
        return ptrt("generate", DEMO, "r.jsonl", "-o", out, *options, cwd=self.folder, **keywords)

    def events(self, name: str) -> list[dict]:
        return json.loads((self.folder / name).read_text())["traceEvents"]

    def check_trace(self, ranks: int) -> None:
        events = self.events("t.json")
        names = Counter(event["name"] for event in events)
        self.assertEqual(names["process_name"], ranks)
        self.assertEqual({event["pid"] for event in events}, set(range(ranks)))
        for event in (event for event in events if event["ph"] == "X"):
            self.assertGreaterEqual(event["ts"], 0)
            self.assertGreaterEqual(event["dur"], 0)
        steps = {rank: [event for event in events if event["pid"] == rank and event["name"].endswith(" step")]
                 for rank in range(ranks)}
        self.assertGreater(len(steps[0]), 4)
        self.assertEqual(len({len(of_rank) for of_rank in steps.values()}), 1)
        syncs = [[event for event in events if event["pid"] == rank and event["name"] == "sync"]
                 for rank in range(ranks)]
        blocks = 2  # of the demo model
        self.assertEqual([len(of_rank) for of_rank in syncs], [blocks * len(steps[0])] * ranks)
        # No rank leaves a sync before the last one is there; their clocks are one.
        for together in zip(*syncs):
            self.assertLessEqual(max(event["ts"] for event in together),
                                 min(event["ts"] + event["dur"] for event in together) + 1)

    def check_metrics(self, ranks: int) -> None:
        text = (self.folder / "m.prom").read_text()
        values = dict(re.findall(r"^(ptrt_\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE))
        self.assertEqual(values["ptrt_ranks"], str(ranks))
        self.assertEqual((values["ptrt_requests"], values["ptrt_requests_done"]), ("3", "3"))
        self.assertEqual(values["ptrt_running"], "0")
        self.assertGreater(int(values["ptrt_sync_points_total"]), 10)
        self.assertGreater(int(values["ptrt_job_output_tokens"]), 3)

    def test_all_at_once(self) -> None:
        self.assert_done(self.generate("plain"))
        options = ("--trace", "t.json", "--metrics", "m.prom", "--log-file", "l.%r.log")
        outcome = self.generate("out", *options, ranks=2)
        self.assert_done(outcome)
        self.assertEqual((self.folder / "out").read_bytes(), (self.folder / "plain").read_bytes())
        self.check_trace(2)
        self.check_metrics(2)
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z rank 0 of 2 \(.*\): "
        log = (self.folder / "l.0.log").read_text()
        self.assertTrue(log.startswith("# ptrt log 1\n"))
        for words in ("loading", "publishing the results", "  requests +3 done", "done"):
            self.assertRegex(log, f"(?m)^{stamp}{words}$")
        self.assertIn("rank 1 of 2", (self.folder / "l.1.log").read_text())
        # The next run continues the same log, and an error is in it.
        outcome = self.generate("none/out", "--log-file", "l.%r.log", ranks=2)
        self.assertEqual(outcome.status, 2)
        both = "".join((self.folder / f"l.{rank}.log").read_text() for rank in range(2))
        self.assertTrue(both.startswith(log))
        self.assertRegex(both, r"error: .*none")

    def test_what_cannot_be_written_ends_nothing(self) -> None:
        outcome = self.generate("out", "--trace", "/dev/full", "--metrics", "/dev/full")
        self.assert_done(outcome)
        self.assertRegex(outcome.stderr, "warning: the trace was not written: .*/dev/full")
        self.assertRegex(outcome.stderr, "warning: the metrics are not written: .*/dev/full")
        self.assertEqual(outcome.stderr.count("warning"), 2)

    def test_refused(self) -> None:
        (self.folder / "mine0").write_text("precious\n")
        for options, words in ((("--log-file", "l.log"), "2 ranks would write one file.*%r"),
                               (("--log-file", "l.%x"), "after a percent sign"),
                               (("--log-file", "mine%r"), "mine0 is there and is no log"),
                               (("--trace", "none/t.json"), "none"),
                               (("--metrics", "none/m.prom"), "none")):
            with self.subTest(options=options):
                outcome = self.generate("out", *options, ranks=2)
                self.assertEqual(outcome.status, 2, outcome.output)
                self.assertEqual(len(outcome.errors), 1, outcome.output)
                self.assertRegex(outcome.output, words)
                self.assertFalse((self.folder / "out").exists())
        self.assertEqual((self.folder / "mine0").read_text(), "precious\n")


if __name__ == "__main__":
    unittest.main()
