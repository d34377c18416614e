"""Engines of vLLM that stay alive between rounds: starts engine.py in processes and talks to them by JSON lines."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).resolve().parent / "engine.py"
sys.path.insert(0, str(ROOT / "tests" / "integrations" / "vllm"))
from run import VENV, install_plugin  # noqa: E402

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def add_options(parser):
    parser.add_argument("--python", help="of an environment with vLLM, in which ptrt-vllm is installed (without it: that of "
                        "`make test-vllm`, with this source's plugin)")
    parser.add_argument("--preload", nargs="*", default=[], help="libraries for vLLM's LD_PRELOAD, such as tcmalloc")


def environment(args, threads, folder, *packages):
    """Of an engine's process; makes args.python. Threads are not bound, and one process holds engine and model: with few cores
    vLLM's other processes take them from the model's threads. folder: where the plugin is unpacked. packages: folders of further
    Python packages."""
    env = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", OMP_NUM_THREADS=str(threads),
               VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    if args.python is None:
        args.python = str(VENV / "bin" / "python")
        args.plugin = str(install_plugin(Path(folder)))
    found = [getattr(args, "plugin", None), *packages, os.environ.get("PYTHONPATH")]
    env["PYTHONPATH"] = ":".join(path for path in found if path)
    if args.preload:
        env["LD_PRELOAD"] = ":".join(args.preload)
    return env


def processor_seconds(pid):
    """Of a process and those it has started."""
    total = 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                total += processor_seconds(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


class EngineFailed(Exception):
    """An engine ended or answered nonsense; what it printed is part of the message."""


class Engine:
    """One engine. `launcher` comes before the command, such as mpirun's words. The log of vLLM goes to a file."""

    def __init__(self, args, model, log, *, env, options=(), launcher=()):
        self.log, words = Path(log), [str(word) for word in options]
        self.command = [*launcher, args.python, str(SERVER), str(model), *words]
        self.begin = time.perf_counter()
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            text=True, env=env)
        self.start = None

    def answer(self):
        line = self.process.stdout.readline()
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            self.close()
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
            raise EngineFailed(f"{' '.join(self.command)}: {line or 'ended'}\n" + "\n".join(tail)) from None

    def ready(self):
        """Waits until the engine is up; seconds from the start of its process."""
        if self.start is None:
            self.start = self.answer() | {"seconds": time.perf_counter() - self.begin}
        return self.start

    def run(self, prompts, output_len):
        self.ready()
        print(json.dumps({"prompts": prompts, "output_len": output_len}), file=self.process.stdin, flush=True)
        return self.answer()

    def idle_share(self, seconds=2.0):
        """Processors that it keeps busy without a job."""
        before = processor_seconds(self.process.pid)
        time.sleep(seconds)
        return (processor_seconds(self.process.pid) - before) / seconds

    def close(self):
        """Ends it; one that does not end by itself by signals, which a launcher passes on to its ranks."""
        if self.process.poll() is None:
            self.process.stdin.close()
        for seconds, end in ((20, self.process.terminate), (10, self.process.kill), (10, lambda: None)):
            try:
                self.process.wait(timeout=seconds)
                return
            except subprocess.TimeoutExpired:
                print(f"{' '.join(self.command)}: does not end", file=sys.stderr)
                end()


def kv_cache_bytes(config, dtype, shapes):
    """A cache for all requests of the largest of the shapes (requests, tokens in, tokens out), in vLLM's pages of 128 tokens and
    one page a request more, and for the one request of max_context that vLLM asks for."""
    pages = max(requests * (-(-(given + wanted) // 128) + 1) for requests, given, wanted in shapes)
    tokens = 128 * max(pages, -(-config["max_context"] // 128) + 1)
    return tokens * 2 * config["layers"] * config["tracks"] * config["kv_heads"] * config["head_dim"] * BYTES[dtype]


def medians_of(answer, output_len):
    """The figures of `ptrt bench` from an answer of the engine, and output tokens a second of processor time, of all threads:
    the one that other programs on the machine disturb least."""
    middle, tokens = len(answer["ttft_ms"]) // 2, len(answer["ttft_ms"]) * output_len
    return {"output_tokens_per_s": tokens / answer["seconds"], "tokens_per_processor_s": tokens / answer["cpu_s"],
            "ttft_ms": sorted(answer["ttft_ms"])[middle], "tpot_ms": sorted(answer["tpot_ms"])[middle]}
