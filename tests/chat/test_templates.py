#!/usr/bin/env python3
"""The program's Python process gives chats the texts that transformers gives them (goldens.json)."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

CHAT = Path(os.environ.get("PTRT_CHAT_GOLDENS", Path(__file__).resolve().parent))
SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "python"


class Templates(unittest.TestCase):
    def test_render_as_transformers_does(self) -> None:
        golden = json.loads((CHAT / "goldens.json").read_text(encoding="utf-8"))
        common = {"kind": "chat", "openai": False, "date": golden["date"],
                  "bos_token": golden["bos_token"], "eos_token": golden["eos_token"]}
        script = "".join((SCRIPT / f"helper_{part}.py").read_text(encoding="utf-8") for part in ("start", "chat", "output", "serve"))
        process = subprocess.Popen([sys.executable, "-c", script, "30", str(2 << 30)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        with process:
            self.assertEqual(json.loads(process.stdout.readline()), {"ready": True})
            rendered = 0
            for case in golden["cases"]:
                with self.subTest(template=case["template"], body=case["body"]):
                    template = (CHAT / "templates" / f"{case['template']}.jinja").read_text(encoding="utf-8")
                    ask = {**common, "template": template, "line": golden["bodies"][case["body"]]}
                    process.stdin.write(json.dumps(ask) + "\n")
                    process.stdin.flush()
                    answer = json.loads(process.stdout.readline())
                    if "error" in case:
                        self.assertIn("error", answer, case["error"])
                    else:
                        self.assertEqual(answer.get("text"), case["text"], answer)
                        rendered += 1
            self.assertGreater(rendered, 60)  # the others are refused by their templates
            process.stdin.close()
            self.assertEqual(process.wait(timeout=60), 0)


if __name__ == "__main__":
    unittest.main()
