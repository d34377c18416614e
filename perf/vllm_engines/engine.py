#!/usr/bin/env python3
"""One vLLM engine that lives in a process and runs the jobs that come as JSON lines; a part of compare_vllm.py and
vllm_pt_vs_tp.py, whose rounds it interleaves with other programs.

    perf/vllm_engines/engine.py MODEL --dtype bfloat16 --max-batch 128 --kv-cache-bytes 1073741824 [--compiled]

A job is {"prompts": [[token, ...], ...], "output_len": O}. All prompts arrive at once, eos is ignored, tokens are the
likeliest ones. Its answer is one line on standard output: seconds, time to first token and time per output token of each
request, tokens, engine steps, this rank's all-reduces and gathers (eager only: compiled code does not pass the counters), the
processor seconds of this process, and the memory of it and its children. The first answer, to no job, comes when the engine is
up. What vLLM itself prints goes to standard error.

Under mpirun (or another launcher that sets RANK and WORLD_SIZE) every rank runs this program: tensor_parallel_size is the
number of ranks, rank 0 reads the jobs and passes them on. PTRT_BENCH_GLOO=1 takes gloo's all-reduce instead of vLLM's
shared memory.
"""
import argparse
import json
import os
import socket
import sys
import time


def ranks_of_launcher():
    """(rank, number of ranks) of torchrun's or Open MPI's environment, which is made torchrun's; (0, 1) without a launcher."""
    for rank, size, local in (("RANK", "WORLD_SIZE", "LOCAL_RANK"),
                              ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")):
        if rank in os.environ:
            os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ[rank], os.environ[size]
            os.environ["LOCAL_RANK"] = os.environ.get(local, "0")
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def tree_memory(pid):
    """Bytes of proportional memory (PSS) of a process and its children."""
    total = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                total += sum(tree_memory(int(child)) for child in file.read().split())
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        pass
    return total


class Counts:
    """Collective calls of this process's tensor-parallel group. Code that torch.compile has traced does not pass here."""

    def __init__(self):
        self.now, self.watched = {"all_reduce": 0, "all_gather": 0, "gather": 0}, False

    def watch(self, communicator):
        self.watched = True
        for name in self.now:
            self.wrap(communicator, name)

    def wrap(self, owner, name):
        inner = getattr(owner, name)

        def counted(*args, **kwargs):
            self.now[name] += 1
            return inner(*args, **kwargs)
        setattr(owner, name, counted)


def use_gloo():
    """All-reduces by torch.distributed. vLLM takes shared memory wherever the ranks' names for it agree, as they do under an
    external launcher even if the ranks are on different hosts."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False


def name_host():
    """vLLM finds out this host's address by a route to the internet, which an emulated host lacks."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    if interface and "VLLM_HOST_IP" not in os.environ:
        import psutil
        os.environ["VLLM_HOST_IP"] = next(found.address for found in psutil.net_if_addrs()[interface]
                                          if found.family == socket.AF_INET)


def name_shared_memory():
    """A name of this job's own. vLLM's comes from the initialization method, which is env:// in every job with an external
    launcher: of two on one host, the second fails (create shm in SHMManager failed)."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed
    given = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda group: f"{given(group)}-{os.environ['MASTER_PORT']}")


def make_engine(args, ranks):
    from vllm import LLM
    options = {"model": args.model, "dtype": args.dtype, "enforce_eager": not args.compiled, "skip_tokenizer_init": True,
               "enable_prefix_caching": False, "max_num_seqs": args.max_batch, "disable_log_stats": True, "seed": 0,
               "kv_cache_memory_bytes": args.kv_cache_bytes, **json.loads(args.options)}
    if ranks > 1:
        options |= {"tensor_parallel_size": ranks, "distributed_executor_backend": "external_launcher"}
    return LLM(**options)


def run(engine, counts, job):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    params = SamplingParams(temperature=0, max_tokens=job["output_len"], ignore_eos=True, detokenize=False,
                            output_kind=RequestOutputKind.DELTA)
    before = dict(counts.now)
    tokens, first, last, steps = {}, {}, {}, 0
    cpu, begin = time.process_time(), time.perf_counter()
    for i, prompt in enumerate(job["prompts"]):
        tokens[str(i)] = []
        engine.add_request(str(i), {"prompt_token_ids": prompt}, params.clone())
    while engine.has_unfinished_requests():
        outputs = engine.step()
        steps += 1
        now = time.perf_counter() - begin
        for output in outputs:
            given = output.outputs[0].token_ids
            if given:
                first.setdefault(output.request_id, now)
                last[output.request_id] = now
                tokens[output.request_id] += given
    seconds = time.perf_counter() - begin
    names = [str(i) for i in range(len(job["prompts"]))]
    wrong = [name for name in names if len(tokens[name]) != job["output_len"]]
    if wrong:
        raise RuntimeError(f"requests {wrong} have other than {job['output_len']} tokens")
    between = max(job["output_len"] - 1, 1)
    return {"seconds": seconds, "cpu_s": time.process_time() - cpu, "steps": steps,
            "ttft_ms": [1e3 * first[name] for name in names],
            "tpot_ms": [1e3 * (last[name] - first[name]) / between for name in names],
            "tokens": [list(map(int, tokens[name])) for name in names], "memory_bytes": tree_memory(os.getpid()),
            "calls": {name: counts.now[name] - before[name] for name in before} if counts.watched else None}


def jobs(rank, ranks):
    """The jobs of standard input, on every rank."""
    while True:
        line = sys.stdin.readline() if rank == 0 else ""
        if ranks > 1:
            import torch.distributed as dist
            from vllm.distributed.parallel_state import get_world_group
            box = [line]
            dist.broadcast_object_list(box, src=0, group=get_world_group().cpu_group)
            line = box[0]
        if not line:
            return
        yield json.loads(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model file (through the plugin) or a folder of a Hugging Face checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compiled", action="store_true", help="torch.compile; without it, eager")
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--kv-cache-bytes", type=int, default=1 << 30)
    parser.add_argument("--options", default="{}", help="further arguments of vllm.LLM, as JSON")
    args = parser.parse_args()

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    begin = time.perf_counter()
    rank, ranks = ranks_of_launcher()
    if ranks > 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        name_host()
        name_shared_memory()
    if os.environ.get("PTRT_BENCH_GLOO") == "1":
        use_gloo()
    llm = make_engine(args, ranks)
    engine, counts = llm.llm_engine, Counts()
    if ranks > 1 and not args.compiled:
        from vllm.distributed.parallel_state import get_tp_group
        counts.watch(get_tp_group().device_communicator)

    def answer(values):
        if rank == 0:
            print(json.dumps(values), file=answers, flush=True)

    import vllm
    answer({"ready_s": time.perf_counter() - begin, "vllm": vllm.__version__, "memory_bytes": tree_memory(os.getpid())})
    for job in jobs(rank, ranks):
        answer(run(engine, counts, job))
    if os.environ.get("PTRT_BENCH_GLOO") == "1":
        os._exit(0)  # the end of the interpreter would wait for gloo's threads


if __name__ == "__main__":
    main()
