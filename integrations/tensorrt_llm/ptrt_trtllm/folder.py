"""Makes the folder that TensorRT-LLM takes as a model:  python -m ptrt_trtllm.folder model.h5 FOLDER

It holds a link to the model file, and what TensorRT-LLM reads by itself: config.json, generation_config.json (all eos tokens)
and, where the file has a tokenizer, that with its chat template.
"""

import argparse
import os
from pathlib import Path

from ptrt_torch import BadInput, read_config
from ptrt_torch.tokenizer import hf_tokenizer
from transformers import GenerationConfig

from .config import MODEL_FILE, PTConfig


def make_folder(model, folder) -> Path:
    """model: a model file; the files of its tracks are found where it really lies. Raises BadInput for a bad one."""
    folder = Path(folder)
    config = PTConfig(read_config(model))
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / MODEL_FILE
    if link.is_symlink() or link.exists():
        raise BadInput(f"{link}: is there already")
    link.symlink_to(os.path.realpath(model))
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id).save_pretrained(folder)
    try:
        hf_tokenizer(model).save_pretrained(folder)
    except BadInput as error:
        print(f"note: {error} (skip_tokenizer_init=True)")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m ptrt_trtllm.folder")
    parser.add_argument("model", help="a model file of ptrt")
    parser.add_argument("folder", help="where to make it")
    arguments = parser.parse_args()
    try:
        make_folder(arguments.model, arguments.folder)
    except (BadInput, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
