#!/usr/bin/env python3
"""Runs a command under mpirun on hosts that exist only while it runs: network namespaces behind a switch with a delay.

    perf/emulated_cluster/cluster.py --nodes 4 --delay-us 100 --gbit 10 -- build/ptrt bench --random-weights C.json

Each host has its own network, hostname and /dev/shm, so Open MPI uses TCP between hosts and shared memory within one.
`--delay-us` is one way; switch.cpp adds it to the kernel's own delay (about 30 microseconds a message). `--gbit` is the rate
of each host's link. All hosts share the machine's cores. Needs root (or the rights to make namespaces and TAP devices),
iproute2, util-linux and g++. The exit status is 2 if they are missing, else the command's.
"""
import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MTU = 9000


class CannotEmulate(Exception):
    """What this machine lacks."""


def call(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotEmulate(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


class Cluster:
    """N hosts, up on entry and gone on exit, also after an error. `tag` distinguishes clusters of one process."""

    def __init__(self, nodes, delay_us, gbit, tag=""):
        self.nodes, self.delay_us, self.gbit = nodes, delay_us, gbit
        self.name = f"pt{os.getpid() % 100000}{tag}"  # device names have at most 15 characters
        self.subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.folder, self.switch = None, None

    def __enter__(self):
        for tool in ("ip", "nsenter", "unshare", "g++", "mpirun"):
            if shutil.which(tool) is None:
                raise CannotEmulate(f"{tool} is not installed")
        if os.geteuid() != 0:
            raise CannotEmulate("making network namespaces needs root")
        self.folder = tempfile.mkdtemp(prefix="ptrt-cluster-")
        try:
            self.write_scripts()
            self.start_switch()
            for i in range(1, self.nodes + 1):
                self.add_host(i)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for i in range(1, self.nodes + 1):
            subprocess.run(["ip", "netns", "del", self.host(i)], capture_output=True)
        if self.switch is not None:
            self.switch.kill()
            self.switch.communicate()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def host(self, i):
        return f"{self.name}n{i}"

    def address(self, i):
        return f"{self.subnet}.{i}"

    def start_switch(self):
        program = f"{self.folder}/switch"
        call("g++", "-std=c++20", "-O2", "-o", program, str(HERE / "switch.cpp"))
        self.switch = subprocess.Popen([program, self.name, str(self.nodes), str(self.delay_us), str(self.gbit)],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.switch.stdout.readline().strip() != "ready":
            raise CannotEmulate(self.switch.stderr.read().strip() or "the switch did not start")

    def add_host(self, i):
        host = self.host(i)
        call("ip", "netns", "add", host)
        call("ip", "link", "set", f"{self.name}{i}", "address", f"02:70:74:72:74:{i:02x}")
        call("ip", "link", "set", f"{self.name}{i}", "netns", host, "name", "eth0")
        call("ip", "-n", host, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
        call("ip", "-n", host, "link", "set", "eth0", "mtu", str(MTU), "up")
        call("ip", "-n", host, "link", "set", "lo", "up")
        # A pacing one estimates the rate of a program that mostly computes as far too low.
        call("ip", "netns", "exec", host, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno")

    def write_scripts(self):
        """`enter I COMMAND…` runs a command on host I; `agent [options] ADDRESS COMMAND` is mpirun's ssh."""
        enter = f"""#!/bin/bash
host={self.name}n$1; shift
exec nsenter --net=/run/netns/$host unshare -u -m \\
  sh -c 'hostname "$0"; mount -t tmpfs tmpfs /dev/shm; exec "$@"' $host "$@"
"""
        agent = f"""#!/bin/bash
while [[ $1 == -* ]]; do shift; done
i=${{1##*.}}; shift
exec {self.folder}/enter $i bash -c "$*"
"""
        for name, text in (("enter", enter), ("agent", agent)):
            path = Path(self.folder) / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)

    def mpirun(self, ranks_per_node, command, nodes=None):
        nodes = nodes or self.nodes
        hosts = ",".join(f"{self.address(i)}:{ranks_per_node}" for i in range(1, nodes + 1))
        words = ["mpirun", "--allow-run-as-root", "--host", hosts, "-np", str(nodes * ranks_per_node),
                 "--map-by", f"ppr:{ranks_per_node}:node", "--bind-to", "none", "--mca", "plm", "rsh",
                 "--mca", "plm_rsh_agent", f"{self.folder}/agent", "--mca", "pml", "ob1", "--mca", "btl", "vader,tcp,self",
                 "--mca", "btl_tcp_if_include", "eth0", "--mca", "oob_tcp_if_include", "eth0",
                 "--mca", "mpi_yield_when_idle", "1", "--mca", "btl_vader_single_copy_mechanism", "none", *command]
        return [f"{self.folder}/enter", "1", *words]


@contextlib.contextmanager
def ended_by_signals():
    """SIGTERM ends the program by an exception, so that all hosts are removed."""
    def stop(*_):
        raise KeyboardInterrupt
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--ranks-per-node", type=int, default=1)
    parser.add_argument("--delay-us", type=float, default=0, help="one way, of every frame (default 0)")
    parser.add_argument("--gbit", type=float, default=10, help="rate of a host's link (default 10)")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()
    if not (1 <= args.nodes <= 250 and args.ranks_per_node >= 1 and args.delay_us >= 0 and args.gbit > 0):
        parser.error("expected 1 to 250 nodes, a rank or more on each, no negative delay and a rate above 0")
    try:
        with ended_by_signals(), Cluster(args.nodes, args.delay_us, args.gbit) as cluster:
            return subprocess.run(cluster.mpirun(args.ranks_per_node, args.command)).returncode
    except CannotEmulate as why:
        print(f"cluster: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
