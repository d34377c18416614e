"""Model files of ptrt as a checkpoint format of TensorRT-LLM. Importing this registers the format and the model.

    LLM(model=FOLDER, checkpoint_loader=PTRTCheckpointLoader(), tensor_parallel_size=N)

FOLDER is one that ptrt_trtllm.folder made. A loader that reaches a worker process imports this module there, too.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from ptrt_torch import ShardReader, main_type, read_config, tracks_of_rank
from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.checkpoints.base_checkpoint_loader import BaseCheckpointLoader
from tensorrt_llm._torch.models.checkpoints.base_config_loader import BaseConfigLoader
from tensorrt_llm._torch.models.checkpoints.base_weight_loader import BaseWeightLoader
from tensorrt_llm._torch.models.checkpoints.base_weight_mapper import BaseWeightMapper
from tensorrt_llm._torch.models.modeling_utils import (
    register_checkpoint_loader,
    register_checkpoint_weight_loader,
    register_config_loader,
    register_mapper,
)
from tensorrt_llm.logger import logger
from tensorrt_llm.mapping import Mapping as RankMapping

from . import modeling  # noqa: F401  registers the model
from .config import FORMAT, MODEL_FILE, PTConfig


class ShardWeights(Mapping):
    """The datasets of one rank, by their names in the file; each is read when it is asked for, so the host never holds all.

    What FoldedModel.load takes as a ShardReader. close() when the model is filled.
    """

    def __init__(self, reader: ShardReader):
        self.reader, self.config, self.tracks = reader, reader.config, reader.tracks

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names():
            raise KeyError(name)
        return self.tensor(name)

    def __iter__(self):
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        return self.reader.names()

    def tensor(self, name: str) -> torch.Tensor:
        return self.reader.tensor(name)

    def close(self) -> None:
        logger.info(f"Tracks {self.tracks.start} to {self.tracks.stop - 1}: {self.reader.datasets_read} datasets, "
                    f"{self.reader.bytes_read / 2**20:.1f} MiB read")
        self.reader.close()


@register_checkpoint_weight_loader(FORMAT)
class PTRTWeightLoader(BaseWeightLoader):
    """Each rank reads its own tracks of the model file, and nothing of the others."""

    def load_weights(self, checkpoint_dir: str, mapping: RankMapping, **kwargs) -> ShardWeights:
        path = Path(checkpoint_dir) / MODEL_FILE
        return ShardWeights(ShardReader(path, tracks_of_rank(read_config(path), mapping.tp_size, mapping.tp_rank)))


@register_config_loader(FORMAT)
class PTRTConfigLoader(BaseConfigLoader):

    def __init__(self, dtype: torch.dtype | None = None):
        """dtype: of weights, activations and KV cache; by default float16 if the file's weights are, else bfloat16."""
        self.dtype = dtype

    def load(self, checkpoint_dir: str, trust_remote_code: bool = False, model_kwargs: dict | None = None,
             **kwargs) -> ModelConfig:
        """kwargs: fields of ModelConfig. trust_remote_code changes nothing: a model file has no code."""
        if model_kwargs:
            raise ValueError(f"model_kwargs cannot change a Parallel Track model: {', '.join(model_kwargs)}")
        path = Path(checkpoint_dir) / MODEL_FILE
        dtype = self.dtype or (torch.float16 if main_type(path) == "float16" else torch.bfloat16)
        config = PTConfig(read_config(path), torch_dtype=dtype)
        model_config = ModelConfig(pretrained_config=config, **kwargs)
        model_config._frozen = True  # as ModelConfig.from_pretrained leaves it
        return model_config


@register_mapper(FORMAT)
class PTRTWeightMapper(BaseWeightMapper):
    """Nothing is renamed: PTForCausalLM.load_weights finds the place of every dataset by its name in the file."""

    def map_weights(self) -> None:
        """No module takes weights of other names."""

    def apply_callbacks(self, module, module_name: str, module_names_breakdown: list[str], weights: dict) -> list[dict]:
        raise NotImplementedError("weights of model files are not loaded module by module")


@register_checkpoint_loader(FORMAT)
class PTRTCheckpointLoader(BaseCheckpointLoader):

    def __init__(self, *, weight_loader: BaseWeightLoader | None = None, weight_mapper: BaseWeightMapper | None = None,
                 config_loader: BaseConfigLoader | None = None):
        self._weight_loader = weight_loader or self.get_default_weight_loader()
        self._config_loader = config_loader or self.get_default_config_loader()
        self._weight_mapper = weight_mapper

    def cleanup(self) -> None:
        for part in (self._weight_mapper, self._weight_loader, self._config_loader):
            if part is not None:
                part.cleanup()
        self._weight_mapper = self._weight_loader = self._config_loader = None

    def get_default_weight_loader(self) -> PTRTWeightLoader:
        return PTRTWeightLoader()

    def get_default_config_loader(self) -> PTRTConfigLoader:
        return PTRTConfigLoader()

    @property
    def weight_loader(self) -> BaseWeightLoader:
        return self._weight_loader

    @property
    def weight_mapper(self) -> BaseWeightMapper | None:
        return self._weight_mapper

    @weight_mapper.setter
    def weight_mapper(self, value: BaseWeightMapper) -> None:
        self._weight_mapper = value

    @property
    def config_loader(self) -> BaseConfigLoader:
        return self._config_loader

    @property
    def checkpoint_format(self) -> str:
        return FORMAT
