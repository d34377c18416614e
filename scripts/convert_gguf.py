#!/usr/bin/env python3
"""Converts a GGUF file, or a .whl or .zip that holds one, to a model file of ptrt. Quantised ones need the Python
package gguf; docs/CONVERT.md has the details."""

import time
from pathlib import Path

from convert.command import add_options, convert
from convert.errors import Parser, run
from convert.gguf_file import unpacked
from convert.gguf_model import read_model


def main():
    parser = Parser(prog="convert_gguf", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="FILE.gguf, or a .whl or .zip with one GGUF file")
    add_options(parser)
    parser.add_argument("--tokenizer", type=Path, metavar="FILE",
                        help="a tokenizer.json or tokenizer.model, instead of what the GGUF file says")
    options = parser.parse_args()
    start = time.monotonic()
    with unpacked(options.file, options.output) as path:
        model = read_model(path, set(options.ignore_key), options.tokenizer)
        inputs = [options.file, path] + ([options.tokenizer] if options.tokenizer else [])
        convert(options, *model, inputs, start)


if __name__ == "__main__":
    run("convert_gguf", main)
