

# --- Structured output: from a regular expression or a JSON schema to a nondeterministic automaton over bytes ---

STATES = 200_000  # most states of an automaton
JSON_DEPTH = 5  # most levels of arrays and objects within the object of json_object
LAST = 0x10FFFF
LIST = "list"  # a node of its own in a parsed expression: one or more of an item, with separators between them
CATEGORIES = {"digit": [(48, 57)], "space": [(9, 13), (32, 32)], "word": [(48, 57), (65, 90), (95, 95), (97, 122)]}
UTF8_ENDS = (0x7F, 0x7FF, 0xFFFF, LAST)  # the last code point of one, two, three and four bytes


def expression_parser():
    try:
        import re._constants as constants
        import re._parser as parser
    except ImportError:  # before Python 3.11
        import sre_constants as constants
        import sre_parse as parser
    return parser, constants


def complement(ranges: list) -> list:
    free, at = [], 0
    for low, high in sorted(ranges):
        if at < low:
            free.append((at, low - 1))
        at = max(at, high + 1)
    return free + ([(at, LAST)] if at <= LAST else [])


def byte_sequences(low: int, high: int):
    """The UTF-8 of the code points low … high, as sequences of ranges of bytes."""
    for end in UTF8_ENDS[:-1]:
        if low <= end < high:
            yield from byte_sequences(low, end)
            yield from byte_sequences(end + 1, high)
            return
    for bits in (6, 12, 18):  # a range that is not whole blocks of the last bytes is cut where a block ends
        block = (1 << bits) - 1
        if high > UTF8_ENDS[0] and low & ~block != high & ~block:
            cut = (low | block) if low & block else (high & ~block) - 1 if high & block != block else None
            if cut is not None:
                yield from byte_sequences(low, cut)
                yield from byte_sequences(cut + 1, high)
                return
    yield list(zip(chr(low).encode(), chr(high).encode()))


class Automaton:
    """States are numbered from 0, the start; the last added is the accepting one. A jump takes no byte."""

    def __init__(self) -> None:
        self.states, self.edges, self.jumps = 1, [], []
        self.parser, self.constants = expression_parser()

    def new_state(self) -> int:
        if self.states >= STATES:
            raise Refused("unsupported", f"structured output: more than {STATES} states: the constraint is too large")
        self.states += 1
        return self.states - 1

    def add_class(self, ranges: list, start: int) -> int:
        end, joined = self.new_state(), {}
        for low, high in ranges:
            for first, last in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):  # without surrogates
                if first > last:
                    continue
                for sequence in byte_sequences(first, last):
                    self.edges.append((start, *sequence[0], self.tail(tuple(sequence[1:]), end, joined)))
        return end

    def tail(self, rest: tuple, end: int, joined: dict) -> int:
        """The state from which the rest of a character leads to the end: one for all characters that end alike."""
        if not rest:
            return end
        if rest not in joined:
            joined[rest] = self.new_state()
            self.edges.append((joined[rest], *rest[0], self.tail(rest[1:], end, joined)))
        return joined[rest]

    def add_all(self, items, start: int) -> int:
        for op, value in items:
            start = self.add(op, value, start)
        return start

    def add_pattern(self, pattern: str, start: int) -> int:
        import re
        try:
            parsed = self.parser.parse(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise Refused("invalid_request", f"structured output: not a regular expression: {error}") from None
        if parsed.state.flags & ~re.UNICODE:
            raise Refused("unsupported", "structured output: flags in a regular expression")
        items = list(parsed)
        anchors = [(self.constants.AT, self.constants.AT_BEGINNING), (self.constants.AT, self.constants.AT_END)]
        if items[:1] == anchors[:1]:  # the whole output matches in any case
            items = items[1:]
        if items[-1:] == anchors[1:]:
            items = items[:-1]
        return self.add_all(items, start)

    def add(self, op, value, start: int) -> int:
        c = self.constants
        if op is c.LITERAL:
            return self.add_class([(value, value)], start)
        if op is c.NOT_LITERAL:
            return self.add_class(complement([(value, value)]), start)
        if op is c.ANY:
            return self.add_class(complement([(10, 10)]), start)
        if op is c.IN:
            return self.add_class(self.ranges_of(value), start)
        if op is c.SUBPATTERN and not value[1] and not value[2]:
            return self.add_all(value[3], start)
        if op is c.BRANCH:
            end = self.new_state()
            self.jumps += [(self.add_all(branch, start), end) for branch in value[1]]
            return end
        if op is c.MAX_REPEAT or op is c.MIN_REPEAT:
            return self.add_repeat(*value, start)
        if op is LIST:
            item, separator = value
            first = self.new_state()
            self.jumps.append((start, first))
            end = self.add_all(item, first)
            self.jumps.append((self.add_all(separator, end), first))
            return end
        raise Refused("unsupported", f"structured output: {str(op).lower()} in a regular expression")

    def add_repeat(self, least: int, most: int, item, start: int) -> int:
        for _ in range(least):
            start = self.add_all(item, start)
        if most == self.constants.MAXREPEAT:
            loop = self.new_state()
            self.jumps.append((start, loop))
            self.jumps.append((self.add_all(item, loop), loop))
            start = loop
        else:
            skipped = [start]
            for _ in range(most - least):
                start = self.add_all(item, start)
                skipped.append(start)
            skipped.pop()
            if skipped:
                end = self.new_state()
                self.jumps += [(state, end) for state in [*skipped, start]]
                return end
        end = self.new_state()  # what follows must not join the loop
        self.jumps.append((start, end))
        return end

    def ranges_of(self, items: list) -> list:
        c, ranges = self.constants, []
        for op, value in items:
            if op is c.LITERAL:
                ranges.append((value, value))
            elif op is c.RANGE:
                ranges.append(value)
            elif op is c.CATEGORY:
                name = str(value).lower().rpartition("category_")[2]
                known = CATEGORIES.get(name.removeprefix("not_"))
                if known is None:
                    raise Refused("unsupported", f"structured output: {name} in a regular expression")
                ranges += complement(known) if name.startswith("not_") else known
            elif op is not c.NEGATE:
                raise Refused("unsupported", f"structured output: {str(op).lower()} in a regular expression")
        return complement(ranges) if items and items[0][0] is c.NEGATE else ranges

    def answer(self, accept: int) -> dict:
        """What does not lead to the accepting state is left out."""
        back: dict = {}
        for edge in self.edges:
            back.setdefault(edge[3], []).append(edge[0])
        for source, target in self.jumps:
            back.setdefault(target, []).append(source)
        useful, found = {accept}, [accept]
        while found:
            for state in back.get(found.pop(), ()):
                if state not in useful:
                    useful.add(state)
                    found.append(state)
        if 0 not in useful:
            raise Refused("invalid_request", "structured output: no text fits the constraint")
        return {"states": self.states, "accept": accept,
                "edges": [n for edge in self.edges if edge[3] in useful for n in edge],
                "jumps": [n for jump in self.jumps if jump[1] in useful for n in jump]}


def add_json_object(automaton: Automaton) -> int:
    parse = automaton.parser.parse
    text = list(parse(r'"(?:[^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt])*"'))
    simple = list(parse(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-][0-9]+)?"))
    c, space, comma = automaton.constants, list(parse("[ ]?")), list(parse("[ ]?,[ ]?"))
    value = [(c.BRANCH, (None, [text, simple]))]

    def bracketed(opening: str, item: list, closing: str) -> list:
        some = (c.MAX_REPEAT, (0, 1, [(LIST, (item, comma)), *space]))
        return [*parse(re_escape(opening)), *space, some, *parse(re_escape(closing))]

    for _ in range(JSON_DEPTH):
        pair = [*text, *parse("[ ]?:[ ]?"), *value]
        value = [(c.BRANCH, (None, [text, simple, bracketed("[", value, "]"), bracketed("{", pair, "}")]))]
    return automaton.add_all(bracketed("{", [*text, *parse("[ ]?:[ ]?"), *value], "}"), 0)


def re_escape(text: str) -> str:
    import re
    return re.escape(text)


def constraint_of(body: dict) -> tuple:
    """What is asked for: ("regex", …), ("choice", …), ("json", …), ("json_object", None) or ("text", None)."""
    found = [*constraint_of_format(body.get("response_format")), *constraint_of_outputs(body.get("structured_outputs"))]
    found += [(key, body[f"guided_{key}"]) for key in ("json", "regex", "choice") if body.get(f"guided_{key}") is not None]
    if len(found) > 1:
        raise Refused("invalid_request", "more than one constraint of the output")
    return found[0] if found else ("text", None)


def constraint_of_format(shape: object) -> list:
    if shape is None:
        return []
    kind = shape.get("type") if isinstance(shape, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise Refused("invalid_request", "'response_format' must have a 'type' of text, json_object or json_schema")
    refuse_others(shape, ("type", "json_schema") if kind == "json_schema" else ("type",), "response_format")
    if kind != "json_schema":
        return [(kind, None)] if kind == "json_object" else []
    inner = shape.get("json_schema")
    if not isinstance(inner, dict) or inner.get("schema") is None:
        raise Refused("invalid_request", "'response_format' needs 'json_schema' with a 'schema'")
    refuse_others(inner, ("name", "description", "schema", "strict"), "json_schema")
    return [("json", inner["schema"])]


def constraint_of_outputs(outputs: object) -> list:
    if outputs is None:
        return []
    if not isinstance(outputs, dict):
        raise Refused("invalid_request", "'structured_outputs' must be an object")
    refuse_others(outputs, ("json", "regex", "choice", "json_object"), "structured_outputs")
    wants = outputs.get("json_object")
    if wants is not None and not isinstance(wants, bool):
        raise Refused("invalid_request", "'json_object' must be true or false")
    found = [(key, value) for key, value in outputs.items() if value is not None and key != "json_object"]
    if wants:
        found.append(("json_object", None))
    if not found:
        raise Refused("invalid_request", "'structured_outputs' names no constraint")
    return found


def refuse_others(given: dict, known: tuple, where: str) -> None:
    for key, value in given.items():
        if key not in known and value is not None:
            raise Refused("unsupported", f"'{key}' of '{where}' is not supported")


class Outputs:
    """Automata of constraints; the last ones are kept, since the lines of a file often share one."""

    def __init__(self) -> None:
        self.kept: dict[str, dict] = {}

    def answer(self, ask: dict) -> dict:
        kind, value = constraint_of(ask["line"]["body"] if ask["openai"] else ask["line"])
        key = json.dumps([kind, value])
        if key not in self.kept:
            answer = self.compile(kind, value)
            if len(self.kept) >= 64:
                self.kept.clear()
            self.kept[key] = answer
        return self.kept[key]

    def compile(self, kind: str, value: object) -> dict:
        automaton = Automaton()
        if kind == "text":
            return {}
        if kind == "json_object":
            return automaton.answer(add_json_object(automaton))
        if kind == "choice":
            if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
                raise Refused("invalid_request", "'choice' must be an array of texts, none of them empty")
            return automaton.answer(automaton.add_pattern("|".join(map(re_escape, value)), 0))
        if kind == "regex":
            if not isinstance(value, str):
                raise Refused("invalid_request", "'regex' must be a string")
            return automaton.answer(automaton.add_pattern(value, 0))
        return automaton.answer(automaton.add_pattern(expression_of_schema(value), 0))
