"""load_format "ptrt": each rank reads its own tracks of the model file, and nothing of the others."""

import time

from ptrt_torch import ShardReader
from vllm.logger import init_logger
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

logger = init_logger(f"vllm.{__name__}")  # with vLLM's handlers


class PTModelLoader(BaseModelLoader):

    def download_model(self, model_config):
        """The file is local."""

    def load_weights(self, model, model_config):
        start = time.perf_counter()
        with ShardReader(model_config.model, model.tracks) as reader:
            loaded = model.load_from(reader)
        missing = sorted(set(dict(model.named_parameters())) - loaded)
        if missing:
            raise ValueError(f"{model_config.model}: nothing filled {', '.join(missing)}")
        logger.info("Tracks %d to %d: %d datasets, %.1f MiB read in %.2f s", model.tracks.start, model.tracks.stop - 1,
                    reader.datasets_read, reader.bytes_read / 2**20, time.perf_counter() - start)
