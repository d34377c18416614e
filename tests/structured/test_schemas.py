#!/usr/bin/env python3
"""JSON schemas: each is refused by name, or whatever its automaton takes is JSON that the schema allows."""

import datetime
import ipaddress
import json
import os
import random
import re
import subprocess
import sys
import unittest
import uuid

from helper import Automaton, Helper

OUTLINES = os.environ.get("PTRT_OUTLINES_PYTHON", sys.executable)  # an interpreter that has outlines_core
HAS_OUTLINES = subprocess.run([OUTLINES, "-c", "import outlines_core"], capture_output=True, check=False).returncode == 0
INTEGER, TEXT, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
OBJECT = {"type": "object", "properties": {"a": INTEGER, "b": TEXT}}


def text(**keywords: object) -> dict:
    return {"type": "string", **keywords}


def array(**keywords: object) -> dict:
    return {"type": "array", **keywords}


def with_x(target: object, **keywords: object) -> dict:
    return {**keywords, "$defs": {"x": target}}


X = {"$ref": "#/$defs/x"}
TAKEN = [
    {}, True, {"title": "any"}, INTEGER, TEXT, NULL, {"type": "number"}, {"type": "boolean"}, {"type": "object"}, {"type": "array"},
    OBJECT, {**OBJECT, "required": ["b"]}, {**OBJECT, "required": []}, {**OBJECT, "additionalProperties": False},
    {**OBJECT, "additionalProperties": NULL}, {"properties": {"a": {}, "b": True}, "required": ["a"]},
    {"type": "object", "additionalProperties": False}, {"type": "object", "additionalProperties": INTEGER},
    {"type": "object", "minProperties": 1}, {"type": "object", "maxProperties": 0},
    {"type": ["object", "null"], "properties": {"a": {"const": "x|y"}}, "required": ["a"]},
    {"type": ["array", "string"], "items": INTEGER, "minItems": 2, "maxLength": 3}, {"type": ["string", "null"], "pattern": "^a+$"},
    {"properties": {'q"\\\n.é': NULL, "a b": INTEGER}, "required": ['q"\\\n.é', "a b"]},
    {"enum": ['a"b', 1, 1.5, None, True, [], {}, {"k-l_ é": 1}, "\n\u2028\u0001\\"]}, {"type": "number", "enum": [1, 2.5]},
    {"type": "string", "const": "🙂.*"}, {"const": None},
    text(minLength=3), text(maxLength=2), text(minLength=2, maxLength=2),
    text(pattern=r"^[0-9]+\$"), text(pattern="^a|b$"), text(pattern=r"^\d{3}-\w{2,}$"), text(pattern="foo"), text(pattern=""),
    text(pattern=r"^(?:[a-zß-ü_.-]+@(x|yé)\.com){1,2}?$"), text(pattern=r"[\w-]+\[\*\]?"),
    *(text(format=name) for name in ("date", "time", "date-time", "uuid", "ipv4")),
    array(items=INTEGER), array(items=OBJECT, minItems=1, maxItems=2), array(maxItems=0), array(prefixItems=[INTEGER, TEXT]),
    array(prefixItems=[INTEGER], items=NULL), {"prefixItems": []}, array(minItems=2),
    {"anyOf": [INTEGER, text(pattern="a|b"), {}]}, {"oneOf": [INTEGER, NULL, OBJECT]}, {"oneOf": [{"const": "a"}, {"enum": ["b", "c"]}]},
    with_x(INTEGER, **X), with_x({"anyOf": [INTEGER, NULL]}, **array(items=X)), with_x({"not": {}}, type="integer"),
]
REFUSED = {  # by the word that the message has
    "'false'": [False, {"properties": {"a": False}}, array(items=False)],
    "no object": [5, {"properties": {"a": 1}}, array(items=[INTEGER])],
    "'properties'": [{"properties": 5}, {"type": "integer", "properties": {}}],
    "'required'": [{"properties": {}, "required": "a"}, {**OBJECT, "required": [[1]]}],
    "'c'": [{**OBJECT, "required": ["c"]}],
    "'type'": [{"type": 5}, {"type": "text"}, {"type": []}, {"type": [["null"]]}, {"type": "string", "anyOf": [TEXT]},
               {"type": "string", "const": 5}, {"type": "integer", "enum": [True]}, with_x(INTEGER, type="integer", **X)],
    "'pattern'": [{"pattern": "a"}, {"type": "integer", "pattern": "a"}, text(pattern=5), text(pattern="a", format="date"),
                  text(pattern="a", minLength=1),
                  *(text(pattern=pattern) for pattern in
                    (".", "[^a]", '"', r'\"', r"\\", r"a\n", "\n", r"\s", r"\S", r"\W", r"\D", r"\bx", r"a\\$", "a$b", "^a|^b", "(^a)", "(?!a)b",
                     "(?i)a", "(?P<n>a)", r"(a)\1", "[ -~]", "[!-~]", "[A-z]", "[[:alpha:]]", "[]a]", "[a-\\w]", r"[\d-x]", "a{,3}", "a*+", "{",
                     "]", "*a", "🙂+", r"\u0022", r"\x22", r"\Z"))],
    "regular expression": [text(pattern="("), text(pattern="a{2,1}")],
    "'format'": [{"format": "date"}, text(format="email"), text(format="uri"), text(format=[1]), {"type": "number", "format": "date"}],
    "'minLength'": [{"minLength": 3}, text(minLength=2.0), text(minLength=True), text(minLength="2"), text(minLength=-1),
                    text(minLength=3, maxLength=2), {"type": "integer", "minLength": 1}],
    "'minItems'": [array(prefixItems=[INTEGER], minItems=3), array(minItems=3, maxItems=2), array(minItems=-1), {"minItems": 1}],
    "'maxItems'": [array(prefixItems=[INTEGER], maxItems=0)],
    "'minProperties'": [{"type": "object", "minProperties": 2}, {**OBJECT, "minProperties": 1}],
    "'maxProperties'": [{"type": "object", "maxProperties": 1}, {"type": "object", "maxProperties": 10**30}],
    "'items'": [{"items": INTEGER}], "'prefixItems'": [{"prefixItems": 1}],
    "'enum'": [{"enum": []}, {"enum": "a"}, {"enum": [1], "const": 1}, {"enum": [[{"a.b": 1}]]}], "64 bits": [{"const": 2**63}],
    "'anyOf'": [{"anyOf": []}, {"anyOf": {"a": 1}}, {"anyOf": [TEXT], "minLength": 1}, {"anyOf": [TEXT], "oneOf": [TEXT]}],
    "'oneOf'": [{"oneOf": [INTEGER, {"type": "number"}]}, {"oneOf": [OBJECT, OBJECT]}, {"oneOf": [{"const": "a"}, {"const": "a"}]}],
    "'$ref'": [X, {"$ref": "#"}, {"$ref": 5}, {"$ref": "http://example.com/x"}, with_x(array(items=X), **X), with_x(X, **X), {**X, "$defs": 5}],
    "'$id'": [array(items={"$id": "a", **X})],
    "'minimum'": [{"type": "integer", "minimum": 1}], "'nullable'": [text(nullable=True)], "'allOf'": [{"allOf": [TEXT]}],
}
FORMATS = {"date": datetime.date.fromisoformat, "uuid": uuid.UUID, "ipv4": ipaddress.IPv4Address,
           "time": lambda value: holds_time(value), "date-time": lambda value: (FORMATS["date"](value[:10]), holds_time(value[11:]))}


def holds_time(value: str) -> None:
    found = re.fullmatch(r"(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|[+-](\d\d:\d\d))", value)
    for part in filter(None, found.groups()):
        datetime.time.fromisoformat(part)


def is_of(value: object, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"integer": number and value == int(value) if number and abs(value) < 1e300 else False, "number": number,
            "null": value is None}.get(kind, isinstance(value, {"string": str, "array": list, "object": dict, "boolean": bool}.get(kind, ())))


def same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def allows(schema: object, value: object, root: object) -> bool:
    """Whether a value is allowed: the keywords of JSON Schema that the table has, read plainly."""
    if isinstance(schema, bool):
        return schema
    has = schema.__contains__
    if has("$ref") and not allows(root["$defs"][schema["$ref"].split("/")[-1]], value, root):
        return False
    kinds = schema.get("type", [])
    checks = [not kinds or any(is_of(value, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])),
              not has("enum") or any(same(value, other) for other in schema["enum"]), not has("const") or same(value, schema["const"]),
              not has("anyOf") or any(allows(inner, value, root) for inner in schema["anyOf"]),
              not has("oneOf") or sum(allows(inner, value, root) for inner in schema["oneOf"]) == 1]
    if isinstance(value, str):
        checks += [schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)),
                   re.search(schema.get("pattern", ""), value, re.ASCII)]
        if has("format"):
            FORMATS[schema["format"]](value)
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        checks += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)),
                   all(allows(inner, item, root) for inner, item in zip(first, value)),
                   all(allows(schema.get("items", True), item, root) for item in value[len(first):])]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        checks += [schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)),
                   set(schema.get("required", [])) <= value.keys(),
                   all(allows(known.get(name, schema.get("additionalProperties", True)), inner, root) for name, inner in value.items())]
    return all(checks)


class Schemas(unittest.TestCase):
    def start(self, python: str) -> Helper:
        helper = Helper(python)
        self.addCleanup(helper.close)
        return helper

    def test_what_is_refused(self) -> None:
        helper = self.start(OUTLINES)
        for word, schemas in REFUSED.items():
            if word == "regular expression" and not HAS_OUTLINES:
                continue
            for schema in schemas:
                for outer in (schema, array(items=schema)) if word not in ("'$ref'", "'type'") else (schema,):
                    with self.subTest(schema=outer):
                        error = helper.output({"guided_json": outer}).get("error", {})
                        self.assertIn(error.get("code"), ("unsupported", "invalid_request"))
                        self.assertIn(word, error["message"])

    @unittest.skipUnless(HAS_OUTLINES, f"{OUTLINES} has no outlines_core; PTRT_OUTLINES_PYTHON may name another python3")
    def test_what_is_taken(self) -> None:
        helper, rng = self.start(OUTLINES), random.Random(3)
        for schema in TAKEN:
            inside = with_x(schema["$defs"]["x"], **array(items=X)) if isinstance(schema, dict) and "$ref" in schema else array(items=schema)
            for outer in (schema, inside) if schema is not True and "$defs" not in (schema or ()) else (schema,):
                with self.subTest(schema=outer):
                    answer = helper.output({"guided_json": outer})
                    self.assertIn("states", answer, answer.get("error"))
                    automaton = Automaton(answer)
                    texts = {found for found in (automaton.sample(rng) for _ in range(25)) if found}
                    self.assertTrue(texts)
                    for found in texts:
                        self.assertTrue(allows(outer, json.loads(found), outer), found)


if __name__ == "__main__":
    unittest.main()
