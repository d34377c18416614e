#!/usr/bin/env python3
"""The program's Python process gives chats the texts that transformers gives them (goldens.json)."""

import json
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "structured"))

from helper import Helper

CHAT = Path(os.environ.get("PTRT_CHAT_GOLDENS", Path(__file__).resolve().parent))


class Templates(unittest.TestCase):
    def test_render_as_transformers_does(self) -> None:
        golden = json.loads((CHAT / "goldens.json").read_text(encoding="utf-8"))
        common = {"kind": "chat", "openai": False, "date": golden["date"],
                  "bos_token": golden["bos_token"], "eos_token": golden["eos_token"]}
        helper = Helper()
        rendered = 0
        for case in golden["cases"]:
            with self.subTest(template=case["template"], body=case["body"]):
                template = (CHAT / "templates" / f"{case['template']}.jinja").read_text(encoding="utf-8")
                ask = {**common, "template": template, "line": golden["bodies"][case["body"]]}
                answer = helper.ask(ask)
                if "error" in case:
                    self.assertIn("error", answer, case["error"])
                else:
                    self.assertEqual(answer.get("text"), case["text"], answer)
                    rendered += 1
        self.assertGreater(rendered, 60)  # the others are refused by their templates
        self.assertEqual(helper.close(), 0)

    def test_two_runs_render_alike(self) -> None:
        helper = Helper()
        self.addCleanup(helper.close)

        def ask(template: str, **body: object) -> dict:
            return helper.ask({"kind": "chat", "openai": False, "date": "2026-02-28", "bos_token": "<s>", "template": template,
                               "line": {"messages": [{"role": "user", "content": "hi"}], **body}})

        for template in ("{{ [1, 2] | random }}", "{{ lipsum() }}"):
            self.assertEqual(ask(template)["error"]["code"], "chat_template_error", template)
        long = ask("{{ raise_exception('x' * 100000) }}")["error"]["message"]
        self.assertIn("xxx…", long)
        self.assertLess(len(long), 500)
        for name in ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "bos_token", "strftime_now", "range"):
            error = ask("x", chat_template_kwargs={name: None})["error"]
            self.assertEqual(error["code"], "invalid_request")
            self.assertIn(f"'{name}'", error["message"])
        self.assertEqual(ask("{{ bos_token }}{{ eos_token }}", chat_template_kwargs={"eos_token": "</s>"}), {"text": "<s></s>"})


if __name__ == "__main__":
    unittest.main()
