"""A Hugging Face checkpoint as a model: its config.json, safetensors and tokenizer."""

from pathlib import Path

from .errors import BadInput, brief
from .families import Family, family_of, read_config, tensor_names
from .hf_tokenizer import read_tokenizer
from .layout import Dataset, Tokenizer, check_parts, datasets
from .safetensors import load_object, read_checkpoint
from .tensors import Tensor, plus_one


class Checkpoint:
    """Tensors by name; each may be taken once, and all must be taken."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors, self.files = read_checkpoint(folder)
        self._left = set(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise BadInput(f"{self.folder}: tensor {name} is missing")
        self._left.discard(name)
        return self.tensors[name]

    def finish(self, tied: bool) -> None:
        """Refuses tensors that nothing used, but for those that transformers recomputes or ties."""
        left = sorted(name for name in self._left if not name.endswith("rotary_emb.inv_freq")
                      and not (tied and name == "lm_head.weight"))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise BadInput(f"{self.folder}: tensor {left[0]}{more}: not understood, and it might change the result")


def _experts(checkpoint: Checkpoint, family: Family, at: str, dataset: Dataset, name: str) -> list[Tensor]:
    """The experts' matrices: one tensor each, or, as transformers 5 keeps them in memory, all in one."""
    experts, rows, columns = dataset.shape
    fused = f"{at}.mlp.experts.{'down_proj' if name.endswith('w_down') else 'gate_up_proj'}"
    if fused not in checkpoint:
        names = [f"{at}.{tensor_names(family, name).format(expert)}" for expert in range(experts)]
        return [checkpoint.take(each) for each in names]
    whole = checkpoint.take(fused)
    if name.endswith("w_down"):
        return [whole]
    wanted = (experts, 2 * rows, columns)
    if whole.shape != wanted:
        raise BadInput(f"{checkpoint.folder}: tensor {fused}: expected shape {list(wanted)}, as the "
                       f"configuration says, found {list(whole.shape)}")
    first = 0 if name.endswith("w_gate") else rows
    return [whole.part(2 * rows * expert + first, (rows, columns)) for expert in range(experts)]


def _fill(checkpoint: Checkpoint, family: Family, dataset: Dataset) -> None:
    shared = {"/shared/embedding": "model.embed_tokens.weight", "/shared/lm_head": "lm_head.weight",
              "/shared/final_norm": "model.norm.weight"}
    if dataset.path in shared:
        dataset.parts = [checkpoint.take(shared[dataset.path])]
    else:
        _, _, _, _, layer, name = dataset.path.split("/", 5)
        at = f"model.layers.{int(layer)}"
        if name.startswith("experts/"):
            dataset.parts = _experts(checkpoint, family, at, dataset, name)
        elif name == "router" and f"{at}.mlp.gate.weight" in checkpoint:
            dataset.parts = [checkpoint.take(f"{at}.mlp.gate.weight")]
        else:
            dataset.parts = [checkpoint.take(f"{at}.{tensor_names(family, name)}")]
    check_parts(dataset, str(checkpoint.folder))
    if family.windows == "gemma" and dataset.path.endswith("norm"):
        dataset.parts = [plus_one(part) for part in dataset.parts]


def _eos(folder: Path, raw: dict) -> list[int]:
    """eos of generation_config.json, or of config.json."""
    generation = folder / "generation_config.json"
    found = load_object(generation).get("eos_token_id") if generation.is_file() else None
    where = generation if found is not None else folder / "config.json"
    found = raw.get("eos_token_id") if found is None else found
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(number) is int and 0 <= number < raw["vocab_size"] for number in ids):
        raise BadInput(f"{where}: key \"eos_token_id\": expected token ids below vocab_size, found {brief(found)}")
    return list(dict.fromkeys(ids))


def read_model(folder: Path, ignored: set[str]) -> tuple[dict, list[Dataset], Tokenizer | None, list[Path]]:
    """config, datasets, tokenizer, and the files that may have been read."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(f"{folder}: no config.json: not the folder of a Hugging Face checkpoint")
    raw = load_object(path)
    family = family_of(raw, str(path))
    name = Path(str(raw.get("_name_or_path") or "")).name or folder.resolve().name
    config = read_config(raw, family, name, str(path), ignored)
    config["eos_token_ids"] = _eos(folder, raw)
    tokenizer, config["bos_token_id"], read = read_tokenizer(folder, config["vocab_size"])
    checkpoint = Checkpoint(folder)
    wanted = datasets(config)
    for dataset in wanted:
        _fill(checkpoint, family, dataset)
    checkpoint.finish(config["tie_embeddings"])
    others = [folder / name for name in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja",
                                         "chat_template.json")]
    return config, wanted, tokenizer, [path, *read, *checkpoint.files, *others]
