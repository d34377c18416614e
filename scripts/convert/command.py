"""What the converters' command lines have in common."""

import time
from pathlib import Path

from .errors import BadInput
from .layout import Dataset, Tokenizer, stored_bytes, write_model
from .ptrt_file import ModelWriter


def add_options(parser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL.h5", help="the model file to write")
    parser.add_argument("--dtype", choices=("keep", "float32", "bfloat16", "float16"), default="keep",
                        help="element type of matrices and embeddings; keep: that of the checkpoint, float32 for "
                             "quantised ones (default). Norms and biases are never rounded")
    parser.add_argument("--split", action="store_true", help="a file of its own for the track, beside MODEL.h5")
    parser.add_argument("--max-context", type=int, metavar="N", help="most tokens of a sequence, instead of the "
                                                                     "checkpoint's own")
    parser.add_argument("--ignore-key", action="append", default=[], metavar="KEY",
                        help="a key of the configuration that changes nothing though it is not understood; may be "
                             "repeated")


def convert(options, config: dict, datasets: list[Dataset], tokenizer: Tokenizer | None, inputs: list[Path],
            start: float) -> None:
    """Writes the model and says so in one line. start: the monotonic clock at the beginning."""
    if options.max_context is not None:
        if options.max_context < 1:
            raise BadInput(f"--max-context: expected an integer from 1, found {options.max_context}")
        config["max_context"] = options.max_context
    size = stored_bytes(datasets, options.dtype)
    with ModelWriter(options.output, config, inputs, options.split, size) as writer:
        write_model(writer, datasets, options.dtype, tokenizer)
        writer.commit()
    print(f"{options.output}: {len(datasets)} tensors, {size / 2**20:.1f} MiB, {time.monotonic() - start:.1f} s")
