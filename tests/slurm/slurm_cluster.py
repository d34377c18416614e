"""A real Slurm of two nodes on this machine: munged, slurmctld and one slurmd a node, each node a host of its own.

    tests/slurm/slurm_cluster.py -- sbatch --wait -N 2 -n 4 job.sh

The hosts are those of perf/emulated_cluster: each has its own network, hostname and /dev/shm. slurmctld and the clients
run on the first one, so the cable of the second can be cut. Partitions: `low` (the default one, which `high` preempts
by requeueing its jobs after GRACE_S seconds), `rude` (likewise, without grace) and `high`. Needs root and the packages of
`install.sh` in this folder. Everything is gone when the program ends.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "perf" / "emulated_cluster"))

from cluster import CannotEmulate, Cluster, ended_by_signals  # noqa: E402

NODES = 2
CPUS, MEMORY_MB, GPUS = 32, 200000, 8  # of a node, as Slurm counts; the machine may have less
GRACE_S = 40
LOST_AFTER_S = 20  # a node that does not answer for so long is down
PATIENCE = 120
TOOLS = {"munged": "/usr/sbin/munged", "slurmctld": "/usr/sbin/slurmctld", "slurmd": "/usr/sbin/slurmd"}

CONF = """
ClusterName=emulated
SlurmctldHost={first}({first_address})
SlurmUser=root
SlurmdUser=root
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
TmpFS={folder}/%n/tmp
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout={lost_after}
SlurmctldTimeout=60
MessageTimeout=10
TCPTimeout=4
KillWait=10
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} MaxTime=INFINITE State=UP
PartitionName=rude Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
NODE = "NodeName={host} NodeAddr={address} CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN"


class SlurmCluster:
    """Up on entry and gone on exit. CannotEmulate says what this machine lacks."""

    def __init__(self):
        self.hosts = Cluster(NODES, delay_us=0, gbit=10, tag="s")
        self.folder, self.daemons = None, []

    def __enter__(self):
        for tool, path in TOOLS.items():
            if not os.access(path, os.X_OK):
                raise CannotEmulate(f"{tool} is not installed (tests/slurm/install.sh)")
        self.hosts.__enter__()
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="ptrt-slurm-"))
            self.folder.chmod(0o755)
            self.configure()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for i in range(1, NODES + 1):
            self.end_processes(i)
        self.hosts.__exit__()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def end_processes(self, i):
        """All of a host's: those in its network namespace."""
        pids = subprocess.run(["ip", "netns", "pids", self.hosts.host(i)], capture_output=True, text=True).stdout
        for pid in pids.split():
            subprocess.run(["kill", "-KILL", pid], capture_output=True)

    def configure(self):
        for i in range(1, NODES + 1):
            for room in ("spool", "tmp"):
                (self.folder / self.hosts.host(i) / room).mkdir(parents=True)
        (self.folder / "state").mkdir()
        nodes = "\n".join(NODE.format(host=self.hosts.host(i), address=self.hosts.address(i), cpus=CPUS,
                                      memory=MEMORY_MB, gpus=GPUS)
                          for i in range(1, NODES + 1))
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(CONF.format(first=self.hosts.host(1), first_address=self.hosts.address(1), folder=self.folder,
                                         nodes=nodes, grace=GRACE_S, lost_after=LOST_AFTER_S))
        # "GPUs" that are none: Slurm counts them and sets CUDA_VISIBLE_DEVICES.
        for gpu in range(GPUS):
            subprocess.run(["mknod", self.folder / f"gpu{gpu}", "c", "1", "3"], check=True)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")

    def start(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = [f"--{what}-file={self.folder}/munged.{what}" for what in ("pid", "log", "seed")]
        self.run_daemon([TOOLS["munged"], "--foreground", "--force", f"--key-file={key}",
                         f"--socket={self.folder}/munge.socket", *files], "munged")
        self.wait_for("munged", (self.folder / "munge.socket").exists)
        self.run_daemon([*self.enter(1), TOOLS["slurmctld"], "-D", "-i"], "slurmctld")
        for i in range(1, NODES + 1):
            self.start_node(i)
        self.wait_for("nodes", lambda: self.node_states() == {"idle"})

    def start_node(self, i):
        host = self.hosts.host(i)
        self.run_daemon([*self.enter(i), TOOLS["slurmd"], "-D", "-N", host], f"slurmd of {host}")

    def cut_cable(self, i):
        subprocess.run(["ip", "-n", self.hosts.host(i), "link", "set", "eth0", "down"], check=True)

    def replace_node(self, i):
        """A node that was cut off comes back as after a reboot: with nothing that ran on it."""
        self.end_processes(i)
        gone = next(daemon for daemon in self.daemons if daemon.name == f"slurmd of {self.hosts.host(i)}")
        gone.wait()
        self.daemons.remove(gone)
        subprocess.run(["ip", "-n", self.hosts.host(i), "link", "set", "eth0", "up"], check=True)
        self.start_node(i)

    def run_daemon(self, command, name):
        with open(self.folder / "daemons.log", "ab") as log:
            daemon = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                      env=self.environment())
        daemon.name = name
        self.daemons.append(daemon)

    def enter(self, i):
        return [f"{self.hosts.folder}/enter", str(i)]

    def environment(self):
        others = ("SLURM", "SBATCH", "PMI", "OMPI_COMM")  # of a job that this may run in
        own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return {**own, "SLURM_CONF": str(self.conf), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def wait_for(self, what, there, patience=PATIENCE):
        end = time.monotonic() + patience
        while not there():
            for daemon in self.daemons:
                if daemon.poll() is not None:
                    raise RuntimeError(f"{daemon.name} ended\n{self.log()[-4000:]}")
            if time.monotonic() > end:
                raise TimeoutError(f"no {what} after {patience} s\n{self.log()[-4000:]}")
            time.sleep(0.2)

    def log(self):
        logs = [self.folder / "daemons.log", self.folder / "slurmctld.log", *self.folder.glob("*/slurmd.log")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in logs if path.exists())

    def client(self, *words, env=None, check=True):
        """A command of Slurm's on the first host; its output."""
        done = subprocess.run([*self.enter(1), "timeout", str(PATIENCE), *map(str, words)], capture_output=True, text=True,
                              env={**self.environment(), **(env or {})})
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def node_states(self):
        return set(self.client("sinfo", "-h", "-N", "-p", "low", "-o", "%t", check=False).split())


def main():
    if sys.argv[1:2] != ["--"] or len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with ended_by_signals(), SlurmCluster() as slurm:
            return subprocess.run([*slurm.enter(1), *sys.argv[2:]], env=slurm.environment()).returncode
    except CannotEmulate as why:
        print(f"slurm_cluster: {why}", file=sys.stderr)
        return 77
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
