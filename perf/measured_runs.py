"""Measured runs for perf/calibrate_plan.py: of the file of perf/pt_vs_tp.py, or of files of `ptrt bench --json`."""
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from bench_end_to_end import ROOT


@dataclass
class Run:
    place: str
    model: str
    config: dict     # the model's configuration
    ranks: int       # of a replica
    split: int       # ranks that share a track
    batch: int       # requests together
    input_len: int
    output_len: int
    itl_ms: float          # median between two tokens: a decode step (a TPOT includes steps with others' prompts)
    ttft_ms: float | None  # only of lone requests: others wait in a queue
    tokens_per_s: float    # of output
    step_tokens: int       # rows a step takes at most
    emulated: bool = False
    settings: dict | None = None  # of the program, which files must share to be rounds of one setup

    @property
    def label(self):
        return f"{self.place} / {self.model} / {self.ranks} ranks / batch {self.batch} / {self.input_len}x{self.output_len}"


def option(words, name, otherwise):
    return words[words.index(name) + 1] if name in words else otherwise


def runs_of_comparison(data):
    """The cells of pt_vs_tp.json."""
    for cell in data["cells"]:
        words = cell["command"].split()
        config = json.loads((ROOT / option(words, "--random-weights", "")).read_text(encoding="utf-8"))
        median = cell["median"]
        yield Run(cell["place"], cell["model"], config, data["ranks"], int(option(words, "--tensor-parallel", 1)),
                  cell["batch"], cell["input_len"], cell["output_len"], median["itl_ms"],
                  median["ttft_ms"] if cell["batch"] == 1 else None, median["output_tokens_per_s"],
                  int(median["max_step_tokens"]))


def run_of_bench(place, found):
    """One object of `ptrt bench --json`."""
    if "dataset" in found or found["request_rate"] != "inf":
        raise ValueError("expected requests of one length that all arrive at the start, not a dataset or a rate")
    ranks = found["emulate_ranks"] if found["emulated"] else found["world_size"] // found["replicas"]
    together = -(-found["requests"] // found["replicas"])
    return Run(place, found["model"], found["config"], ranks, found["tensor_parallel"], min(together, found["max_batch"]),
               found["input_len"], found["output_len"], found["itl_ms"]["p50"],
               found["ttft_ms"]["p50"] if together == 1 else None, found["output_tokens_per_s"] / found["replicas"],
               found["max_step_tokens"], found["emulated"],
               {name: found[name] for name in ("threads", "compute", "kv_dtype", "max_step_tokens")})


def median_of(runs):
    first = runs[0]
    first.itl_ms = statistics.median(run.itl_ms for run in runs)
    first.tokens_per_s = statistics.median(run.tokens_per_s for run in runs)
    if first.ttft_ms is not None:
        first.ttft_ms = statistics.median(run.ttft_ms for run in runs)
    return first


def runs_of_benches(place, paths):
    """Files of the same setup are rounds of it; their medians count. Files that differ only in settings are refused."""
    found = {}
    for path in paths:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        try:
            for one in data.get("runs", [data]):
                run = run_of_bench(place, one)
                rounds = found.setdefault((run.label, run.split, run.emulated), [])
                rounds.append(run)
                for name, value in run.settings.items():
                    if value != rounds[0].settings[name]:
                        raise ValueError(f"{run.label}: {name} is {value}, in a file before {rounds[0].settings[name]}")
        except ValueError as why:
            raise ValueError(f"{path}: {why}") from why
    return [median_of(runs) for runs in found.values()]
