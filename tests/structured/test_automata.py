#!/usr/bin/env python3
"""Automata of the program's Python process, against Python's own regular expressions and JSON reader."""

import json
import random
import re
import subprocess
import sys
import unittest
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "python"
ALPHABET = 'ab"cxé€ä漢🙂0 19-\n\u07ff\u0800'
PATTERNS = [r"yes|no|vielleicht", r"\d{4}-\d{2}", r'[^"ä]{1,3}x?', r"(ab*|c){2,3}é+", r".{0,2}", r"[a-zß-ü€]+?[^\x00-\x7f]",
            r"(?:a|b|)*c", r"\w\W\s\S\D", r"[^\d\s]+", r"[\u0700-\U00012345]*", r"a?b{3}c{2,}", r"^a+b$", r"()", r"(a*)*b"]


class Automaton:
    def __init__(self, answer: dict) -> None:
        self.accept, self.edges, self.jumps = answer["accept"], {}, {}
        for i in range(0, len(answer["edges"]), 4):
            start, low, high, end = answer["edges"][i:i + 4]
            self.edges.setdefault(start, []).append((low, high, end))
        for i in range(0, len(answer["jumps"]), 2):
            self.jumps.setdefault(answer["jumps"][i], []).append(answer["jumps"][i + 1])

    def reach(self, states: set) -> set:
        reached, found = set(states), list(states)
        while found:
            for state in self.jumps.get(found.pop(), ()):
                if state not in reached:
                    reached.add(state)
                    found.append(state)
        return reached

    def step(self, states: set, byte: int) -> set:
        return self.reach({end for state in states for low, high, end in self.edges.get(state, ()) if low <= byte <= high})

    def takes(self, text: bytes) -> bool:
        states = self.reach({0})
        for byte in text:
            states = self.step(states, byte)
        return self.accept in states

    def sample(self, rng: random.Random) -> bytes:
        """A text that it takes, at random; empty where none was found within some hundred bytes."""
        states, text = self.reach({0}), b""
        while len(text) < 400:
            edges = [edge for state in sorted(states) for edge in self.edges.get(state, ())]
            if self.accept in states and (not edges or rng.random() < 0.3):
                return text
            low, high, _ = rng.choice(edges)
            text += bytes([rng.randint(low, high)])
            states = self.step(states, text[-1])
        return b""


class Automata(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        script = "".join((FOLDER / f"helper_{part}.py").read_text(encoding="utf-8") for part in ("start", "chat", "output", "serve"))
        cls.process = subprocess.Popen([sys.executable, "-c", script, "30", str(2 << 30)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, encoding="utf-8")
        cls.addClassCleanup(cls.process.wait)
        cls.addClassCleanup(cls.process.communicate)
        cls.process.stdout.readline()

    def ask(self, line: dict) -> dict:
        self.process.stdin.write(json.dumps({"kind": "output", "openai": False, "line": line}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def test_patterns(self) -> None:
        rng = random.Random(1)
        for pattern in PATTERNS:
            with self.subTest(pattern=pattern):
                automaton = Automaton(self.ask({"guided_regex": pattern}))
                expression = re.compile(pattern, re.ASCII)
                for _ in range(400):
                    text = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 6)))
                    self.assertEqual(automaton.takes(text.encode()), expression.fullmatch(text) is not None, text)
                for _ in range(50):
                    if text := automaton.sample(rng):
                        self.assertTrue(expression.fullmatch(text.decode()), text)

    def test_every_character_but_two(self) -> None:
        automaton = Automaton(self.ask({"structured_outputs": {"regex": "[^aé]"}}))
        for code in [*range(0x900), *range(0xD700, 0xD800), *range(0xE000, 0xE100), *range(0xFF00, 0x10100), 0x10FFFF]:
            self.assertEqual(automaton.takes(chr(code).encode()), chr(code) not in "aé", hex(code))
        for text in (b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\x80", b"\xe2\x82"):
            self.assertFalse(automaton.takes(text), text)  # no UTF-8

    def test_json_object(self) -> None:
        automaton = Automaton(self.ask({"response_format": {"type": "json_object"}}))
        rng = random.Random(2)
        texts = [text for text in (automaton.sample(rng) for _ in range(60)) if text]
        self.assertGreater(len(texts), 10)
        for text in texts:
            self.assertIsInstance(json.loads(text), dict)
        for text in ('{}', '{ }', '{"a": [1, {"b": [true, null, {"c": -1.5e+3}]}]}', '{"é\\n": "\\"", "b": []}'):
            self.assertTrue(automaton.takes(text.encode()), text)
        for text in ('[1]', '{"a"}', '{"a": 01}', '{"a": 1,}', '{"a": "\n"}', ""):
            self.assertFalse(automaton.takes(text.encode()), text)

    def test_an_answer_follows_a_refusal(self) -> None:
        self.assertEqual(self.ask({"guided_regex": "("})["error"]["code"], "invalid_request")
        self.process.stdin.write("[" * 100_000 + "]" * 100_000 + "\n")
        self.process.stdin.flush()
        self.assertIn("error", json.loads(self.process.stdout.readline()))
        self.assertIn("states", self.ask({"guided_choice": ["a"]}))


if __name__ == "__main__":
    unittest.main()
