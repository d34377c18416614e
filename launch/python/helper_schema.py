

# --- JSON schemas, of which outlines_core makes regular expressions. It passes over much in silence, and puts patterns and
# names into its expressions as they are: whatever is not surely right is refused before it sees the schema ---

KINDS = {  # which keywords are for which type
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "integer": set(), "number": set(), "boolean": set(), "null": set()}
WHOLE = ("$ref", "enum", "const", "anyOf", "oneOf")  # each says everything about the value
SILENT = {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated",
          "readOnly", "writeOnly"}
ANY = [kind for kind in KINDS if kind != "integer"]
MONTHS = r"(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8])"
LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29"
DATE = rf"(?:\d{{4}}-(?:{MONTHS})|{LEAP})"
TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {"date": DATE, "time": TIME, "date-time": f"{DATE}T{TIME}", "ipv4": rf"{BYTE}(?:\.{BYTE}){{3}}",
           "uuid": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"}  # those of outlines_core take what is not of the format

# Patterns: what is read alike by JavaScript and by Python, and has no character that JSON text escapes.
PLAIN = r"[^\\\"^$.|?*+()\[\]{}\x00-\x1F\x7F-\x9F\uD800-\uDFFF\U00010000-\U0010FFFF]"
ESCAPED = r"\\[-!#$%&'()*+,./:;<=>?@\[\]^_`{|}~ ]"
INSIDE = rf"(?:(?!-){PLAIN}|[.$|?*+(){{}}]|{ESCAPED})"  # one character of a class
CLASS = rf"\[-?(?:{INSIDE}(?:-{INSIDE})?|\\[dw](?!-[^\]]))+-?\]"
REPEATED = r"(?:(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})\??)?"
PATTERN = rf"(?:\((?:\?:)?|\||(?:{PLAIN}|{ESCAPED}|\\[dw]|{CLASS}|\)){REPEATED})*"


class SchemaReader:
    """Writes a schema so that outlines_core cannot mistake it: references resolved, one type to an alternative."""

    def __init__(self, root: object) -> None:
        self.root, self.at, self.open = root, ["#"], []  # `open`: the references that are being followed

    def refuse(self, what: str, code: str = "unsupported") -> None:
        raise Refused(code, f"structured output: {what} in the JSON schema at {'/'.join(self.at)}")

    def wrong(self, key: str, must: str) -> None:
        self.refuse(f"'{key}' must be {must}", "invalid_request")

    def inner(self, schema: object, *steps: object) -> dict:
        self.at += [str(step) for step in steps]
        read = self.read(schema)
        del self.at[-len(steps):]
        return read

    def read(self, schema: object) -> dict:
        if schema is True:
            schema = {}
        if schema is False:
            self.refuse("'false'")
        if not isinstance(schema, dict):
            self.refuse("what is no object", "invalid_request")
        for key in schema:
            if key not in SILENT and key != "type" and key not in WHOLE and not any(key in keys for keys in KINDS.values()):
                self.refuse(f"'{key}'")
        if "$id" in schema and len(self.at) > 1:
            self.refuse("'$id'")
        found = {key: value for key, value in schema.items() if key not in SILENT}
        whole = [key for key in WHOLE if key in found]
        kinds = self.kinds(found)
        if not whole:
            return self.typed(found, kinds)
        others = sorted(found.keys() - {whole[0], "type"})
        if others:
            self.refuse(f"'{whole[0]}' beside '{others[0]}'")
        if whole[0] in ("enum", "const"):
            return self.values(whole[0], found[whole[0]], kinds)
        if kinds is not None:
            self.refuse(f"'{whole[0]}' beside 'type'")
        return self.reference(found["$ref"]) if whole[0] == "$ref" else self.alternatives(whole[0], found[whole[0]])

    def kinds(self, schema: dict) -> object:
        if "type" not in schema:
            return None
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not kinds or not all(isinstance(kind, str) and kind in KINDS for kind in kinds):
            self.wrong("type", f"one or some of {', '.join(KINDS)}")
        return list(dict.fromkeys(kinds))

    def typed(self, schema: dict, kinds: object) -> dict:
        if kinds is None:
            kinds = [kind for kind, key in (("object", "properties"), ("array", "prefixItems")) if key in schema]
            if not kinds and schema:
                self.refuse(f"'{next(iter(schema))}' without 'type'")
            kinds = kinds[:1] or ANY
        for key in schema.keys() - {"type"}:
            if not any(key in KINDS[kind] for kind in kinds):
                self.refuse(f"'{key}' beside 'type', which is for another type,")
        read = []
        for kind in kinds:
            own = {key: value for key, value in schema.items() if key in KINDS[kind]}
            read.append({"type": kind, **getattr(self, kind, lambda own: {})(own)})
        return read[0] if len(read) == 1 else {"anyOf": read}

    def counts(self, schema: dict, least: str, most: str) -> dict:
        found = {key: schema[key] for key in (least, most) if key in schema}
        for key, value in found.items():
            if type(value) is not int or value < 0:
                self.wrong(key, "an integer that is not negative")
        if found.get(least, 0) > found.get(most, LAST):
            self.refuse(f"'{least}' above '{most}'", "invalid_request")
        return found

    def string(self, schema: dict) -> dict:
        if len(schema) > 1 and schema.keys() != {"minLength", "maxLength"}:
            self.refuse(" beside ".join(f"'{key}'" for key in sorted(schema)))
        if "format" in schema:
            if schema["format"] not in list(FORMATS):
                self.refuse(f"'format' other than {', '.join(FORMATS)}")
            return {"pattern": f"(?:{FORMATS[schema['format']]})"}
        return {"pattern": self.pattern(schema["pattern"])} if "pattern" in schema \
            else {**schema, **self.counts(schema, "minLength", "maxLength")}

    def pattern(self, pattern: object) -> str:
        import re
        if not isinstance(pattern, str):
            self.wrong("pattern", "a string")
        inner = pattern.removeprefix("^")
        ends = re.search(r"(\\*)\$\Z", inner)
        if ends and len(ends[1]) % 2 == 0:
            inner = inner[:-1]
        if not re.fullmatch(PATTERN, inner) or has_quotes(inner):
            self.refuse("a part of 'pattern' that is not supported")
        return f"(?:{inner})"

    def array(self, schema: dict) -> dict:
        counts = self.counts(schema, "minItems", "maxItems")
        read = dict(counts)
        if "items" in schema:
            read["items"] = self.inner(schema["items"], "items")
        if "prefixItems" in schema:
            if counts:
                self.refuse(f"'{next(iter(counts))}' beside 'prefixItems'")
            if not isinstance(schema["prefixItems"], list):
                self.wrong("prefixItems", "an array")
            return {"prefixItems": [self.inner(item, "prefixItems", i) for i, item in enumerate(schema["prefixItems"])]}
        return read

    def object(self, schema: dict) -> dict:
        counts = self.counts(schema, "minProperties", "maxProperties")
        properties, required = schema.get("properties"), schema.get("required", [])
        if not isinstance(properties, dict) and "properties" in schema:
            self.wrong("properties", "an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self.wrong("required", "an array of strings")
        for name in required:
            if name not in (properties or {}):
                self.refuse(f"the required property {name!r}, which has no schema,")
        further = schema.get("additionalProperties", True)
        if not isinstance(further, bool):
            further = self.inner(further, "additionalProperties")
        if properties is None and further is False:
            properties = {}
        if properties is None:
            if counts.get("minProperties", 0) > 1:  # a name may come twice
                self.refuse("'minProperties' above 1")
            if counts.get("maxProperties", 0) > 0:
                self.refuse("'maxProperties' above 0")
            return counts if further is True else {**counts, "additionalProperties": further}
        if counts:
            self.refuse(f"'{next(iter(counts))}' beside the names of properties")
        return {"properties": {in_json(name): self.inner(inner, "properties", name) for name, inner in properties.items()},
                "required": [in_json(name) for name in dict.fromkeys(required)]}

    def values(self, key: str, given: object, kinds: object) -> dict:
        if key == "enum" and (not isinstance(given, list) or not given):
            self.wrong(key, "an array that is not empty")
        for value in given if key == "enum" else [given]:
            kind = kind_of(value)
            if kinds is not None and kind not in kinds and not (kind == "integer" and "number" in kinds):
                self.refuse(f"'{key}' with a value that is not of the 'type'", "invalid_request")
        return {key: self.value(given)}

    def value(self, value: object) -> object:
        """outlines_core takes names of properties here for expressions, and large integers for what is near them."""
        if isinstance(value, dict):
            for name in value:
                if not all(mark.isalnum() or mark in "_- " for mark in name):
                    self.refuse(f"the name {name!r} in a value of 'enum' or 'const'")
            return {name: self.value(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner) for inner in value]
        if isinstance(value, int) and abs(value) >= 1 << 63:
            self.refuse("an integer of more than 64 bits")
        return value

    def alternatives(self, key: str, given: object) -> dict:
        if not isinstance(given, list) or not given:
            self.wrong(key, "an array that is not empty")
        read = [self.inner(inner, key, i) for i, inner in enumerate(given)]
        kinds = [kind for inner in read for kind in kinds_of(inner)]
        texts = [text for inner in read for text in inner.get("enum", [inner.get("const")])]
        distinct = all(isinstance(text, str) for text in texts) and len(texts) == len(set(texts))
        if key == "oneOf" and not distinct and (len(kinds) > len(set(kinds)) or {"integer", "number"} <= set(kinds)):
            self.refuse("'oneOf' with alternatives of one type: 'anyOf' takes them")
        return {"anyOf": read}

    def reference(self, name: object) -> dict:
        steps = name.split("/") if isinstance(name, str) else []
        if len(steps) != 3 or steps[0] != "#" or steps[1] not in ("$defs", "definitions"):
            self.refuse("'$ref' to what is not in the '$defs' of the schema")
        group = self.root.get(steps[1])
        if not isinstance(group, dict) or steps[2] not in group:
            self.refuse(f"'$ref' to {name!r}, which is not there,", "invalid_request")
        if name in self.open:
            self.refuse(f"'$ref' to {name!r}, which leads to itself,")
        self.open.append(name)
        read = self.inner(group[steps[2]], "$ref")
        self.open.pop()
        return read


def has_quotes(pattern: str) -> bool:
    """Whether a class of the pattern has a range in which a quote or a backslash is."""
    import re
    for part in re.finditer(rf"{ESCAPED}|({CLASS})|(?s:.)", pattern):
        for low, high in re.findall(rf"({INSIDE})-({INSIDE})|{INSIDE}|\\\\[dw]", part[1] or ""):
            if low and any(low[-1] <= mark <= high[-1] for mark in '"\\'):
                return True
    return False


def in_json(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)[1:-1]


def kind_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == value // 1 else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def kinds_of(read: dict) -> set:
    """The types of the values that a schema takes, once it has been read."""
    if "anyOf" in read:
        return set().union(*map(kinds_of, read["anyOf"]))
    if "type" in read:
        return {read["type"]}
    return {kind_of(value) for value in (read["enum"] if "enum" in read else [read["const"]])}


def expression_of_schema(schema: object) -> str:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            raise Refused("invalid_request", "structured output: the JSON schema is not JSON") from None
    text = json.dumps(SchemaReader(schema).read(schema))
    try:
        from outlines_core import json_schema
    except ImportError:
        raise Refused("structured_output_unavailable",
                      f"JSON schemas need outlines_core, which {sys.executable} does not have: "
                      "pip install outlines_core, or let PTRT_PYTHON name another interpreter") from None
    try:
        return json_schema.build_regex_from_schema(text)
    except Exception as error:  # whatever the library raises
        raise Refused("unsupported", f"structured output: {str(error).splitlines()[0]}") from None
