"""A Ray cluster of several nodes on this machine, in a process of its own, run by lines.

As a command it starts a head without processors and says its address; then it reads a line a time:
`add CPUS`, `remove NUMBER` (as if the power of that node failed), `behead` (SIGKILL of the head's
memory); end of input ends it all.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent

TOKEN = "0123456789abcdef" * 4

MB = 2**20


class RayCluster:
    """The other end."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._answer()

    def add(self, cpus: int) -> int:
        """Add a node, and give its number."""
        return int(self._do(f"add {cpus}"))

    def remove(self, number: int) -> None:
        """Cut a node off."""
        self._do(f"remove {number}")

    def behead(self) -> None:
        """Kill what knows of all nodes."""
        self._do("behead")

    def end(self) -> None:
        """Stop all of it, as somebody else's `ray stop` would."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _do(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise RuntimeError("the cluster is gone")


@contextmanager
def ray_cluster(
    *cpus: int, home: Path, token: str | None = TOKEN, **variables: str
) -> Iterator[RayCluster]:
    """A cluster with nodes of so many processors.

    Args:
        cpus: Of each node.
        home: Stands for the home folder of whoever runs it.
        token: What it asks for; None: nothing, so that anybody may use it.
        variables: Of its nodes' environment, which is what lanes there have.
    """
    lanes = os.pathsep.join([str(TESTS / "sweep"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | credentials(home, token) | {"PYTHONPATH": lanes} | variables,
        # A Ctrl-C at the tests' terminal must not reach Ray's daemons one by one.
        start_new_session=True,
    )
    try:
        made = RayCluster(process)
        for number in cpus:
            made.add(number)
        yield made
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def credentials(home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Variables with which a cluster of this token, or of none, is started and used."""
    home.mkdir(mode=0o700, exist_ok=True)
    common = {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    if token is None:
        return common | {"RAY_AUTH_MODE": "disabled"}
    file = home / "token"
    file.touch(mode=0o600)
    file.write_text(token)
    return common | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}


def say(answer: str) -> None:
    """Answer, told apart from whatever Ray prints."""
    sys.stdout.write(f"> {answer}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve."""
    import logging

    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    small = {"include_dashboard": False, "object_store_memory": 100 * MB}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = []
    say(made.address)
    for line in sys.stdin:
        match line.split():
            case ["add", cpus]:
                nodes.append(
                    made.add_node(
                        num_cpus=int(cpus), memory=4 * 2**30, object_store_memory=100 * MB
                    )
                )
                say(str(len(nodes) - 1))
            case ["remove", number]:
                made.remove_node(nodes[int(number)], allow_graceful=False)
                say("removed")
            case ["behead"]:
                [head] = made.head_node.all_processes["gcs_server"]
                os.kill(head.process.pid, signal.SIGKILL)
                say("beheaded")
    made.shutdown()
    # Ray's threads may crash an interpreter that is torn down around them.
    os._exit(0)


if __name__ == "__main__":
    main()
