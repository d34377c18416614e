#!/usr/bin/env python3
"""integrations/ptrt_torch against the float64 reference: on one rank and several, types, what ranks read. Needs torch."""

import os
import unittest
from pathlib import Path

import engine_environment

engine_environment.need("torch", "h5py")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ptrt_cli import CliTest  # noqa: E402
from ptrt_torch import BadInput, FoldedModel, ShardReader, tracks_of_rank  # noqa: E402
from ptrt_torch.parts import Gate, Rotation, TrackExperts, TrackNorm  # noqa: E402
from rank_threads import RankThreads  # noqa: E402
from stand_in_attention import Engine  # noqa: E402

import pt_reference as ref  # noqa: E402
from model_grid import GRID, prompts  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

CLOSE = 1e-3
EXACT = 1e-11  # in float64
torch.set_num_threads(1)


def engine(path, tracks: range | None = None, **parts) -> Engine:
    """A rank's model, filled."""
    with ShardReader(path, tracks or range(ref.load(path).config["tracks"])) as reader:
        made = Engine(lambda attention: FoldedModel(reader.config, reader.tracks, attention=attention, **parts))
        made.model.load(reader)
    return made


class OwnNorm(TrackNorm):
    """Overwrites what it takes, as fused kernels do."""

    def forward(self, x, residual=None):
        if residual is None:
            return super().forward(x)
        residual.add_(x)
        return x.copy_(super().forward(residual)), residual


class OwnLinear(torch.nn.Module):
    """A matrix without the dimension of slots, which is one."""

    def __init__(self, slots: int, outputs: int, inputs: int, bias: bool):
        super().__init__()
        assert slots == 1
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        return torch.nn.functional.linear(x[0], self.weight, getattr(self, "bias", None))[None]


class OwnExperts(torch.nn.Module):
    """The experts of all slots in one dimension."""

    def __init__(self, slots: int, experts: int, size: int, ffn_size: int, activation: str):
        super().__init__()
        self.slots, self.gate = slots, Gate(activation)
        self.w_gate_up = torch.nn.Parameter(torch.empty(slots * experts, 2 * ffn_size, size))
        self.w_down = torch.nn.Parameter(torch.empty(slots * experts, size, ffn_size))

    def forward(self, x, share, chosen):
        chosen = chosen + (len(self.w_down) // self.slots * torch.arange(self.slots))[:, None, None]
        y = self.gate(torch.einsum("snd,snkfd->snkf", x, self.w_gate_up[chosen]))
        return torch.einsum("snkf,snkdf,snk->snd", y, self.w_down[chosen], share)


def of_type(dtype: torch.dtype):
    """Within it models have weights of this type."""
    class Of:
        def __enter__(self):
            self.before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)

        def __exit__(self, *error):
            torch.set_default_dtype(self.before)
    return Of()


class Model(CliTest):

    def model(self, grid) -> tuple[Path, ref.Model]:
        path = write_random(self.fresh(".h5"), grid.config, grid.seed, dtype=grid.dtype, **grid.file_options)
        return path, ref.load(path)

    def far(self, got: torch.Tensor, want: np.ndarray, most: float, name: str) -> float:
        difference = float(np.abs(got.numpy() - want).max())
        self.assertLessEqual(difference, most, name)
        return difference

    def test_every_option_agrees_with_the_reference(self) -> None:
        largest = {}
        for dtype, most in ((torch.float32, CLOSE), (torch.float64, EXACT)):
            with of_type(dtype):
                for grid in GRID:
                    path, reference = self.model(grid)
                    made = engine(path)
                    for text in prompts(grid)[1:6]:
                        found = self.far(made.score(text), ref.log_probs(reference, text), most, grid.name)
                        largest[dtype] = max(largest.get(dtype, 0.0), found)
        print(", ".join(f"{dtype}: {value:.1e}" for dtype, value in largest.items()), "at most from float64")

    def test_chunks_and_decoding(self) -> None:
        for grid in GRID:
            path, reference = self.model(grid)
            made, text = engine(path), prompts(grid)[5]
            want = ref.log_probs(reference, text)
            for chunk in (7, 64):
                self.far(made.score(text, chunk), want, CLOSE, f"{grid.name}, {chunk} tokens a step")
            self.assertEqual(made.greedy(text[:17], 8), ref.greedy(reference, text[:17], 8), grid.name)
            # Two sequences in one step, one of them in decode.
            other = prompts(grid)[4]
            for layer in made.layers:
                layer.cache.clear()
            made.run({"a": text[:40]})
            both = made.run({"b": other, "a": text[40:41]})
            self.far(both[:-1], ref.log_probs(reference, other), CLOSE, grid.name)
            self.far(both[-1], want[40], CLOSE, grid.name)

    def test_tracks_on_several_ranks(self) -> None:
        for grid in GRID:
            tracks, text = grid.config["tracks"], prompts(grid)[4]
            path, reference = self.model(grid)
            want = ref.log_probs(reference, text)
            for ranks in {number for number in (2, 3, tracks) if tracks % number == 0 and number > 1}:
                threads = RankThreads(ranks)
                engines = [engine(path, tracks_of_rank(grid.config, ranks, rank),  # in place, as an engine's sum may be
                                  all_reduce=lambda x, rank=rank: x.copy_(sum(threads.exchange(rank, x))))
                           for rank in range(ranks)]
                for got in threads.each(lambda rank: engines[rank].score(text)):
                    self.far(got, want, CLOSE, f"{grid.name}, {ranks} ranks")
                self.assertEqual(threads.rounds, len(grid.config["sync_layers"]), "one all-reduce a sync layer")

    def test_an_engines_own_parts(self) -> None:
        """Norms that overwrite, matrices of one slot, experts in one dimension: what the hooks may give."""
        parts = {"norm": OwnNorm, "experts": OwnExperts, "rope": lambda config, local: Rotation(config, local).forward}
        for grid in GRID:
            path, reference = self.model(grid)
            tracks, text = grid.config["tracks"], prompts(grid)[4]
            want = ref.log_probs(reference, text)
            self.far(engine(path, **parts).score(text), want, CLOSE, grid.name)
            threads = RankThreads(tracks)
            engines = [engine(path, range(rank, rank + 1), linear=OwnLinear, **parts,
                              all_reduce=lambda x, rank=rank: x.copy_(sum(threads.exchange(rank, x)))) for rank in range(tracks)]
            for got in threads.each(lambda rank: engines[rank].score(text)):
                self.far(got, want, CLOSE, f"{grid.name}, one track a rank")

    def test_mixtures_of_static_shapes(self) -> None:
        mixtures = [grid for grid in GRID if grid.config["moe"]]
        self.assertGreater(len(mixtures), 4)
        for grid in mixtures:
            path, reference = self.model(grid)
            made, text = engine(path), prompts(grid)[4]
            for part in made.model.modules():
                if isinstance(part, TrackExperts):
                    part.static = True
            self.far(made.score(text), ref.log_probs(reference, text), CLOSE, grid.name)

    def test_equal_rotations_share_a_table(self) -> None:
        yarn = {"type": "yarn", "factor": 4.0, "original_max_position": 128, "beta_fast": 32.0, "beta_slow": 1.0}
        both = ["local_rope", "global_nope", "global_rope"]
        for tables, changes in (
                (1, {}), (1, {"rope_scaling": yarn}), (2, {"rope_theta_local": 100.0}), (1, {"rope_theta_local": 10000.0}),
                (2, {"rope_theta_local": 10000.0, "rope_scaling": yarn}), (1, {"attention_pattern": ["local_rope"]}),
                (0, {"attention_pattern": ["global_nope"]})):
            with self.subTest(changes):
                config = make_config(**{"layers": 6, "attention_pattern": both, "attention_window": 5, **changes})
                path = write_random(self.fresh(".h5"), config)
                made = []
                filled = engine(path, rope=lambda *asked: made.append(Rotation(*asked)) or made[-1])
                self.assertEqual((len(made), len(dict(filled.model.named_buffers()))), (tables, 2 * tables))
                text = prompts(GRID[0])[2]
                self.far(filled.score(text), ref.log_probs(ref.load(path), text), CLOSE, str(changes))

    def test_one_graph_for_every_step(self) -> None:
        """Dynamo alone, which refuses a graph that depends on data. Inductor takes minutes; PTRT_TEST_INDUCTOR=1 asks for it."""
        backend = "inductor" if os.environ.get("PTRT_TEST_INDUCTOR") == "1" else "eager"
        for grid in (GRID[1], GRID[3], GRID[16], GRID[18]):
            path, reference = self.model(grid)
            made = engine(path)
            graphs = made.compile(backend)
            found = 0.0
            for text in prompts(grid)[3:6]:
                want = ref.log_probs(reference, text)
                for chunk in (None, 7):
                    found = max(found, self.far(made.score(text, chunk), want, CLOSE, grid.name))
            several = graphs.frame_count
            self.far(made.score(text[:5], 1), want[:5], CLOSE, grid.name)
            if backend == "eager":  # Inductor may make another for some sizes
                self.assertEqual((several, graphs.frame_count), (1, 2), f"{grid.name}: one, and one of a single token")
            else:
                print(f"{grid.name}: {found:.1e} from float64, {graphs.frame_count} graphs", flush=True)

    def test_one_rank_reads_its_tracks_alone(self) -> None:
        config = GRID[1].config  # six tracks in files of their own
        path = write_random(self.fresh(".h5"), config, 1, dtype="bfloat16", split=True, tokenizer=None)
        bytes_of = {}
        with h5py.File(path) as file:
            for name in ref.load(path).tensors:
                bytes_of[name] = file[name].nbytes
        for ranks in (1, 2, 3, 6):
            for rank in range(ranks):
                tracks = tracks_of_rank(config, ranks, rank)
                mine = [name for name in bytes_of if name[:8] == "/shared/" or int(name.split("/")[2]) in tracks]
                others = [name for name in bytes_of if name not in mine]
                with ShardReader(path, tracks) as reader:
                    model = FoldedModel(config=reader.config, tracks=tracks, attention=lambda *sizes: None,
                                        all_reduce=lambda x: x)
                    self.assertEqual(model.load(reader), set(dict(model.named_parameters())))
                    self.assertEqual((reader.datasets_read, reader.bytes_read), (len(mine), sum(bytes_of[name] for name in mine)))
                    self.assertEqual([file.stem[-2:] for file in reader.files_opened[1:]], [f"{track:02d}" for track in tracks])
                    for name in others[:1]:
                        with self.assertRaisesRegex(ValueError, "another rank"):
                            reader.tensor(name)
        for tracks in (range(0), range(5, 7), range(0, 4, 2)):
            with self.assertRaises(ValueError):
                ShardReader(path, tracks)
        with self.assertRaisesRegex(BadInput, "6 tracks cannot be divided among 4 ranks; 1, 2, 3, 6 fit"):
            tracks_of_rank(config, 4, 0)

    def test_types_of_weights(self) -> None:
        """bfloat16 and float16 models stay near the reference; int8 and float8 files are read as what they stand for."""
        grid = GRID[0]
        path, reference = self.model(grid)
        text = prompts(grid)[4]
        want = ref.log_probs(reference, text)
        for dtype in (torch.bfloat16, torch.float16):
            with of_type(dtype):
                made = engine(path)
                self.assertEqual(made.model.embedding.dtype, dtype)
                self.assertEqual(made.model.final_norm.weight.dtype, torch.float32)
                far = np.abs(made.score(text).numpy() - want).mean()
                self.assertTrue(1e-4 < far < (0.2 if dtype == torch.bfloat16 else 0.025), f"{dtype}: {far} on average")
        for dtype in ("int8", "float8"):
            narrow = write_random(self.fresh(".h5"), grid.config, grid.seed, dtype=dtype)
            self.far(engine(narrow).score(text), ref.log_probs(ref.load(narrow), text), CLOSE, dtype)
        with h5py.File(path, "r+") as file:
            file["/tracks/03/layers/001/wk"][0, 0] = 1e5
            del file["/tracks/03/layers/001/wk"].attrs["crc32c"]
        with of_type(torch.float16), self.assertRaisesRegex(BadInput, "/tracks/03/layers/001/wk .*65504"):
            engine(path)

    def test_what_cannot_be_filled(self) -> None:
        path, _ = self.model(GRID[0])
        with ShardReader(path, range(8)) as reader:
            model = FoldedModel(reader.config, range(8), attention=lambda *sizes: None)
            model.register_parameter("more", torch.nn.Parameter(torch.zeros(2)))
            with self.assertRaisesRegex(BadInput, "1 parameters are not filled.*more"):
                model.load(reader)
            half = FoldedModel(reader.config, range(4), attention=lambda *sizes: None, all_reduce=lambda x: x)
            with self.assertRaises(ValueError):
                half.load(reader)
            with self.assertRaisesRegex(ValueError, "all_reduce"):
                FoldedModel(reader.config, range(4), attention=lambda *sizes: None)
        with h5py.File(path, "r+") as file:
            del file["/tracks/05/layers/002/w_up"]
        with self.assertRaisesRegex(BadInput, "/tracks/05/layers/002/w_up is missing"):
            engine(path)


if __name__ == "__main__":
    unittest.main()
