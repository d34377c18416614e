#!/usr/bin/env python3
"""Automata of the program's Python process, against Python's own regular expressions and JSON reader."""

import json
import random
import re
import unittest

from helper import Automaton, Helper

ALPHABET = 'ab"cxé€ä漢🙂0 19-\n\u07ff\u0800'
PATTERNS = [r"yes|no|vielleicht", r"\d{4}-\d{2}", r'[^"ä]{1,3}x?', r"(ab*|c){2,3}é+", r".{0,2}", r"[a-zß-ü€]+?[^\x00-\x7f]",
            r"(?:a|b|)*c", r"\w\W\s\S\D", r"[^\d\s]+", r"[\u0700-\U00012345]*", r"a?b{3}c{2,}", r"^a+b$", r"()", r"(a*)*b"]


class Automata(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.helper = Helper()
        cls.addClassCleanup(cls.helper.close)
        cls.ask = cls.helper.output

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
        self.assertIn("error", self.helper.ask_text("[" * 100_000 + "]" * 100_000))
        self.assertIn("error", self.helper.ask_text('{"kind": 5}'))
        error = self.ask({"structured_outputs": {"x" * 100_000: 1}})["error"]
        self.assertLess(len(error["message"]), 500)
        self.assertIn("states", self.ask({"guided_choice": ["a"]}))

    def test_what_names_no_constraint(self) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"minimum": 1}}}
        cases = [({"structured_outputs": {}}, "no constraint"), ({"structured_outputs": {"regex": None}}, "no constraint"),
                 ({"structured_outputs": {"json_object": False}}, "no constraint"),
                 ({"structured_outputs": {"json_object": 5}}, "'json_object'"),
                 ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "'whitespace_pattern'"),
                 ({"structured_outputs": {"regex": "a", "json_object": True}}, "more than one"),
                 ({"response_format": {"type": "text", "schema": {}}}, "'schema'"),
                 ({"response_format": {"type": "json_object", "json_schema": {}}}, "'json_schema'"),
                 ({"response_format": {"type": ["text"]}}, "'type'"),
                 ({"response_format": {**schema, "strict": True}}, "'strict'"),
                 ({"response_format": {**schema, "json_schema": {"schema": {}, "regex": "a"}}}, "'regex'"),
                 ({"response_format": schema}, "'minimum'")]
        for line, words in cases:
            with self.subTest(line=line):
                self.assertIn(words, self.ask(line).get("error", {}).get("message", "no error"))
        self.assertEqual(self.ask({"response_format": {"type": "text", "json_schema": None}}), {})


if __name__ == "__main__":
    unittest.main()
