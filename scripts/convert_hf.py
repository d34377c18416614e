#!/usr/bin/env python3
"""Converts a Hugging Face checkpoint (safetensors) to a model file of ptrt. docs/CONVERT.md has the details."""

import time
from pathlib import Path

from convert.command import add_options, convert
from convert.errors import BadInput, Parser, run
from convert.huggingface import read_model


def main():
    parser = Parser(prog="convert_hf", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the checkpoint's folder, with config.json")
    add_options(parser)
    options = parser.parse_args()
    start = time.monotonic()
    if not options.folder.is_dir():
        raise BadInput(f"{options.folder}: no such folder")
    convert(options, *read_model(options.folder, set(options.ignore_key)), start)


if __name__ == "__main__":
    run("convert_hf", main)
