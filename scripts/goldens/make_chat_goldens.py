#!/usr/bin/env python3
"""Writes tests/chat/goldens.json: what transformers' apply_chat_template makes of templates of public models.

Needs transformers (5.24). Another folder of templates and another output may be given: FOLDER OUTPUT.
"""

import copy
import datetime
import json
import sys
from pathlib import Path
from unittest import mock

import transformers
from tokenizers import Tokenizer, models
from transformers.utils import chat_template_utils

CHAT = Path(__file__).resolve().parents[2] / "tests" / "chat"
DATE = "2026-02-28"
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a \"city\" <now>",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "unit": {"type": "string", "enum": ["°C", "°F"]}, "city": {"type": "string", "description": "its name"}}}}}
CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Zürich", "unit": "°C"}}}
SYSTEM = {"role": "system", "content": "Answer in one word.\n"}
USER = {"role": "user", "content": "  Is 2 < 3 & \"x\" = 'y'? Ünïcödé 漢字 🙂 "}
ASSISTANT = {"role": "assistant", "content": "Yes.  "}
BODIES = {
    "one": {"messages": [USER]},
    "no prompt": {"messages": [USER], "add_generation_prompt": False},
    "turns": {"messages": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "Why?"}]},
    "continue": {"messages": [USER, {"role": "assistant", "content": "Yes, because"}], "continue_final_message": True},
    "continue spaces": {"messages": [USER, ASSISTANT], "continue_final_message": True},
    "tools": {"messages": [SYSTEM, USER], "tools": [TOOL]},
    "calls": {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                           {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "21 °C"},
                           {"role": "assistant", "content": "21 degrees."}, {"role": "user", "content": "Thanks"}],
              "tools": [TOOL]},
    "thinking": {"messages": [USER, {"role": "assistant", "reasoning": "2 is less.", "content": "Yes."}, USER],
                 "chat_template_kwargs": {"enable_thinking": False, "thinking": True, "reasoning_effort": "low"}},
    "roles": {"messages": [ASSISTANT, SYSTEM, USER, USER]},
}
SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


class Today(datetime.datetime):
    @classmethod
    def now(cls, *_):
        return cls.fromisoformat(DATE)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CHAT / "templates"
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else CHAT / "goldens.json"
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), **SPECIAL)
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for name, body in BODIES.items():
            given = copy.deepcopy(body)
            extra = given.pop("chat_template_kwargs", {})
            given.setdefault("add_generation_prompt", not given.get("continue_final_message"))
            try:
                with mock.patch.object(chat_template_utils, "datetime", Today):
                    text = tokenizer.apply_chat_template(given.pop("messages"), chat_template=template, tokenize=False,
                                                         **given, **extra)
                cases.append({"template": path.stem, "body": name, "text": text})
            except Exception as error:  # noqa: BLE001  (a template may refuse a chat, or fail over it)
                cases.append({"template": path.stem, "body": name, "error": f"{type(error).__name__}: {error}"})
    output.write_text(json.dumps({
        "transformers": transformers.__version__, "date": DATE, **SPECIAL, "bodies": BODIES, "cases": cases,
    }, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
