#!/usr/bin/env python3
"""Makes a model file of a Parallel Track model that was trained in PyTorch.

    scripts/convert_pt.py CHECKPOINT --config CONFIG.json -o MODEL.h5                  the layout of scripts/pt_model.py
    scripts/convert_pt.py CHECKPOINT --config CONFIG.json -o MODEL.h5 --layout tamm    Apple's PT-MoE

CHECKPOINT is a state dict, .safetensors or .pt (which needs torch). CONFIG.json is the model file's configuration
(docs/SPEC.md), for tamm the fields of AFMParallelTrackMoEConfig. Needs numpy and h5py. docs/TRAIN.md has more.
"""

import time
from pathlib import Path

from convert.command import convert
from convert.errors import BadInput, Parser, run
from convert.layout import Dataset, Tokenizer
from convert.pt_checkpoint import Checkpoint, module_parts
from convert.pt_config import check_config, dataset_shapes, stored_config
from convert.safetensors import load_object
from convert.tamm_layout import tamm_config, tamm_parts

MAX_CONTEXT = 8192  # of a tamm model, whose configuration has none


def arguments():
    parser = Parser(prog="convert_pt.py", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="state dict: .safetensors or .pt")
    parser.add_argument("--config", type=Path, required=True, metavar="CONFIG.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL.h5")
    parser.add_argument("--layout", choices=("pt_model", "tamm"), default="pt_model", help="names and order of the tensors")
    parser.add_argument("--dtype", choices=("keep", "float32", "bfloat16", "float16"), default="keep",
                        help="type of matrices in the file; norms and biases are never rounded")
    parser.add_argument("--split", action="store_true", help="one file a track beside MODEL.h5")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json, tokenizer.model, or the word bytes")
    tamm = parser.add_argument_group("for --layout tamm, whose configuration does not say")
    tamm.add_argument("--max-context", type=int, metavar="N", help=f"tokens of the longest sequence ({MAX_CONTEXT})")
    tamm.add_argument("--bos-token-id", type=int, metavar="ID")
    tamm.add_argument("--eos-token-ids", type=int, nargs="+", metavar="ID")
    args = parser.parse_args()
    if args.layout != "tamm" and (args.max_context or args.bos_token_id is not None or args.eos_token_ids):
        parser.error("--max-context, --bos-token-id and --eos-token-ids are for --layout tamm: CONFIG.json has them")
    return args


def read_config(args):
    """The configuration of the model file, and the object that the user gave."""
    if not args.config.is_file():
        raise BadInput(f"{args.config}: no such file")
    values = load_object(args.config)
    try:
        if args.layout != "tamm":
            return check_config(values), values
        config = tamm_config(values, args.max_context or MAX_CONTEXT)
        return check_config({**config, "bos_token_id": args.bos_token_id, "eos_token_ids": args.eos_token_ids or []}), values
    except BadInput as error:
        raise BadInput(f"{args.config}: {error}") from None


def read_tokenizer(name):
    """The tokenizer of that name, and the files that it is made of."""
    if name is None or name == "bytes":
        return name and Tokenizer("bytes", None), []
    if not Path(name).is_file():
        raise BadInput(f"{name}: no such file")
    return Tokenizer("huggingface" if name.endswith(".json") else "sentencepiece", Path(name).read_bytes()), [Path(name)]


def main():
    start = time.monotonic()
    args = arguments()
    config, values = read_config(args)
    tokenizer, files = read_tokenizer(args.tokenizer)
    checkpoint = Checkpoint(args.checkpoint)
    shapes = dataset_shapes(config)
    parts = tamm_parts(config, values, checkpoint) if args.layout == "tamm" else module_parts(config, shapes, checkpoint)
    checkpoint.check_all_taken()
    datasets = [Dataset(path, shape, parts[path]) for path, shape in shapes.items()]
    convert(args, stored_config(config), datasets, tokenizer, [args.checkpoint, args.config, *files], start)


if __name__ == "__main__":
    run("convert_pt.py", main)
