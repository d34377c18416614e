"""The documents against the tree: links, paths, names and options exist, rooms include only rooms above them in
docs/ARCHITECTURE.md, and the text keeps to plain English."""

import fnmatch
import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ("kernels", "model_io", "runtime", "launch", "scripts", "perf", "tests", "docs", "examples", "integrations")
CODE = (".h", ".cpp", ".cu", ".cuh", ".py", ".sh", ".cmake", ".sbatch", ".txt", ".inc")
LONGEST_SENTENCE = 35  # words
FOREIGN = {"output_throughput", "request_throughput", "total_token_throughput", "MADV_POPULATE_READ"}  # names of others
FORBIDDEN = re.compile(
    r"\bhang(s|ing)?[ ]on\b|told[ ]apart|\bgo(es)?[ ]on\b|went[ ]apart|is[ ]to count|in the place[ ]of|under[ ]way|\blet in\b|"
    r"\btold of\b", re.IGNORECASE)


def tree():
    paths = [name for name in os.listdir(ROOT) if os.path.isfile(os.path.join(ROOT, name))]
    for folder in FOLDERS:
        for path, names, files in os.walk(os.path.join(ROOT, folder)):
            names[:] = [name for name in names if name != "__pycache__"]
            inside = os.path.relpath(path, ROOT)
            paths.append(inside)
            paths += [os.path.join(inside, name) for name in files]
    return paths


PATHS = tree()
DOCUMENTS = sorted(path for path in PATHS if path.endswith(".md"))
SOURCES = sorted(path for path in PATHS if path.endswith(CODE) and "/golden/" not in path and "/corpus/" not in path)


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def without_code_blocks(text):
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block.group().count("\n"), text, flags=re.M | re.S)


def in_backticks(text):
    return re.findall(r"`([^`\n]+)`", without_code_blocks(text))


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", without_code_blocks(read(path)), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sentences(text):
    """The sentences of paragraphs and list items; tables, headings and code blocks are left out."""
    paragraph = []
    for line in without_code_blocks(text).split("\n") + [""]:
        stripped = line.strip()
        starts_item = re.match(r"([*-]|\d+\.) ", stripped)
        if not stripped or starts_item or stripped[0] in "|#!":
            yield from re.split(r"(?<=[.!?:;])[)*]*\s+", " ".join(paragraph))
            paragraph = []
        if stripped and stripped[0] not in "|#!":
            paragraph.append(stripped)


class Documents(unittest.TestCase):
    def each(self, found):
        self.assertFalse(found, "\n" + "\n".join(sorted(set(found))))

    def test_links_resolve(self):
        bad = []
        for document in DOCUMENTS:
            for target in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(read(document))):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, anchor = target.partition("#")
                path = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
                if path not in PATHS or (anchor and anchor not in anchors(path)):
                    bad.append(f"{document}: {target}")
        self.each(bad)

    def test_paths_exist(self):
        names = {os.path.basename(path) for path in PATHS}
        stems = {os.path.splitext(path)[0] for path in PATHS}
        bad = []
        for document in DOCUMENTS:
            for quoted in in_backticks(read(document)):
                for word in re.findall(r"[\w./*-]+", quoted):
                    word = word.rstrip("/.")
                    top = word.split("/")[0]
                    if "/" in word and (top in FOLDERS or top == "results"):
                        path = f"perf/{word}" if top == "results" else word
                        if not any(fnmatch.fnmatch(known, path) for known in PATHS) and path not in stems:
                            bad.append(f"{document}: {word}")
                    elif re.fullmatch(r"[\w-]+\.(h|cpp|cu|cuh|py|sh|cmake)", word) and word not in names:
                        bad.append(f"{document}: {word}")
        self.each(bad)

    def test_names_and_options_exist(self):
        code = "\n".join(read(path) for path in SOURCES)
        words = set(re.findall(r"[A-Za-z_]\w*", code))
        options = set(re.findall(r"--[a-z][\w-]*", code))
        bad = []
        for document in DOCUMENTS:
            for quoted in in_backticks(read(document)):
                named = re.fullmatch(r"((?:\w+::)*\w+)(\(\))?", quoted)
                if named and ("_" in quoted or "::" in quoted or re.search(r"[a-z][A-Z]", quoted)):
                    if not set(re.findall(r"\w+", named.group(1))) <= words | FOREIGN:
                        bad.append(f"{document}: {quoted}")
                bad += [f"{document}: {option}" for option in re.findall(r"(?<!\S)--[a-z][\w-]*", quoted)
                        if option not in options]
        self.each(bad)

    def test_rooms_include_only_rooms_above(self):
        rooms = re.findall(r"^\| `((?:kernels|model_io|runtime|launch)[/\w]*)` \|", read("docs/ARCHITECTURE.md"), re.M)
        bad = [f"no room {room}" for room in rooms if room not in PATHS]
        for path in SOURCES:
            room = os.path.dirname(path)
            if not room.startswith(("kernels", "model_io", "runtime", "launch")) or path.endswith(".txt"):
                continue
            if room not in rooms:
                bad.append(f"{room} is not in the table of rooms")
                continue
            for included in re.findall(r'^#include "([^"]+)"', read(path), re.M):
                other = os.path.dirname(included)
                if other in rooms and rooms.index(other) > rooms.index(room):
                    bad.append(f"{path} includes {included}")
        self.each(bad)

    def test_plain_english(self):
        bad = []
        this = os.path.relpath(os.path.abspath(__file__), ROOT)
        for path in DOCUMENTS + [path for path in SOURCES if path != this]:
            for number, line in enumerate(read(path).split("\n"), 1):
                if found := FORBIDDEN.search(line):
                    bad.append(f"{path}:{number}: {found.group()}")
        self.each(bad)

    def test_sentences_are_short(self):
        bad = []
        for document in DOCUMENTS:
            for sentence in sentences(read(document)):
                words = re.findall(r"\w[\w.,/-]*", re.sub(r"`[^`]*`|\]\([^)]*\)", " x ", sentence))
                if len(words) > LONGEST_SENTENCE:
                    bad.append(f"{document}: {len(words)} words: {sentence[:100]} …")
        self.each(bad)


if __name__ == "__main__":
    unittest.main()
