"""One rank of a tensor-parallel engine under mpirun (distributed_executor_backend "external_launcher").

    ranks_worker.py JOBS.json     a list of {"model": path, "prompts": [[id, ...], ...], "max_tokens": n, "options": {...}}

The first rank writes JOBS.json.found: of each job what continue_greedily gives. Every rank prints what it loaded.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

# What torchrun sets, from what Open MPI sets.
for name, mpi in (("RANK", "OMPI_COMM_WORLD_RANK"), ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
                  ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")):
    os.environ[name] = os.environ[mpi]

import engines


def meeting_port(note: Path) -> int:
    """A free port of this machine, which the first rank finds just before its use and leaves in a file for the others."""
    if os.environ["RANK"] == "0":
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        partial = note.with_name(note.name + ".partial")
        partial.write_text(str(port))
        partial.rename(note)
    while not note.exists():  # the test ends the ranks if the first one fails
        time.sleep(0.05)
    return int(note.read_text())


def main() -> None:
    found = []
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        options = {"tensor_parallel_size": int(os.environ["WORLD_SIZE"]), "distributed_executor_backend": "external_launcher",
                   **job["options"]}
        # A port for each engine: a rank that is first would find the store of the engine before, with addresses of old.
        port = meeting_port(Path(f"{sys.argv[1]}.port{number}"))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with engines.engine(job["model"], **options) as llm:
            found.append(engines.continue_greedily(llm, job["prompts"], job["max_tokens"]))
    if os.environ["RANK"] == "0":
        Path(sys.argv[1] + ".found").write_text(json.dumps(found))


main()
