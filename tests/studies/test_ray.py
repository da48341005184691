"""Ray, on a cluster of two nodes on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from executor_plans import Log, far, holder, pick, study, undisturbed, weights

from undistill.errors import RecipeError, RunError
from undistill.orchestrate.executors import make_executor
from undistill.orchestrate.executors.ray import RayExecutor

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # a token would be written to the user's home
ray = pytest.importorskip("ray")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    found = Cluster(initialize_head=True, head_node_args=NODE)
    yield found
    found.shutdown()


def executor(tmp_path: Path, **arguments: Any) -> Any:
    return make_executor("ray", runs=tmp_path / "runs", logs=tmp_path / "logs", threads=1, device="cpu", **arguments)


def test_a_node_that_dies_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    plan = study(epochs=60)
    node = cluster.add_node(**NODE)
    killed: list[str] = []
    killer = threading.Thread(target=kill_at_work, args=(cluster, node, tmp_path / "runs", killed))
    killer.start()
    handler, log = signal.getsignal(signal.SIGTERM), Log()
    failures = executor(tmp_path, address=cluster.address, jobs=2).carry_out(plan.steps, log)
    killer.join()
    assert failures == {}
    assert len(killed) == 1
    assert log.events.count(("started", killed[0])) == 2
    assert weights(tmp_path / "runs") == undisturbed(tmp_path / "alone", plan.steps)
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not list((tmp_path / "runs").glob(".shared-*"))


def kill_at_work(cluster: Any, node: Any, runs: Path, killed: list[str]) -> None:
    """Kill a node while a process of it has a run of more than one epoch."""
    raylet = node.all_processes["raylet"][0].process.pid
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for lock in runs.glob("*/.lock"):
            if far(lock) and parent(holder(lock)) == raylet:
                cluster.remove_node(node, allow_graceful=False)
                killed.append(lock.parent.name.rpartition("-")[0])
                return
        time.sleep(0.02)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_a_node_that_does_not_see_the_folder_is_named(cluster: Any, tmp_path: Path) -> None:
    """One of its processes has an empty folder mounted over that of the runs, as if there were nothing."""
    runs = tmp_path / "runs"
    runs.mkdir()
    unshare, hide = ["unshare", "--mount", "--map-root-user"], f"mount -t tmpfs none {runs}"
    if subprocess.run([*unshare, "sh", "-c", hide], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    ray_start = f"{Path(sys.executable).with_name('ray')} start --address={cluster.address} --num-cpus=1 --block"
    nothing, before = subprocess.DEVNULL, alive(cluster)
    node = subprocess.Popen([*unshare, "sh", "-c", f"{hide} && exec {ray_start}"], stdout=nothing, stderr=nothing)
    try:
        # A node that another test killed may pass for alive for a while.
        wait_for(lambda: len(alive(cluster)) == 2 and alive(cluster) - before)
        with pytest.raises(RunError, match=r"node .* cannot take runs: this machine does not see .*runs; choose"):
            executor(tmp_path, address=cluster.address).carry_out(study().steps)
    finally:
        node.terminate()
        node.wait()
    assert not ray.is_initialized()
    assert not list((tmp_path / "runs").iterdir())


def alive(cluster: Any) -> set[str]:
    return {node["NodeID"] for node in cluster.global_state.node_table() if node["Alive"]}


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def test_a_cluster_of_its_own_leaves_nothing(tmp_path: Path) -> None:
    before, steps = children(), pick(study(), "normal")
    assert executor(tmp_path, jobs=1).carry_out(steps) == {}
    assert weights(tmp_path / "runs") == undisturbed(tmp_path / "alone", steps)
    assert children() <= before


def children() -> set[int]:
    return {int(path.name) for path in Path("/proc").glob("[0-9]*") if parent(int(path.name)) == os.getpid()}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379"])
def test_where_nobody_listens_is_an_error_at_once(address: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RunError, match=f"no Ray cluster answers at {address}"):
        executor(tmp_path, address=address).carry_out(pick(study(), "normal"))
    assert time.monotonic() - start < 5


def test_what_is_not_ray_is_an_error_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undistill.orchestrate.executors.ray._CONNECT_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RunError, match=f"what listens at {address} does not answer as a Ray cluster does"):
            executor(tmp_path, address=address).open()


@pytest.mark.parametrize(
    ("nodes", "given", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 4}], {}, (1, 0, 12)),
        ([{"CPU": 8}, {"CPU": 4}], {"cpus_per_run": 3}, (3, 0, 3)),
        ([{"CPU": 8, "GPU": 1}], {}, (1, 1, 1)),
        ([{"CPU": 8, "GPU": 1}], {"jobs": 3}, (1, 1 / 3, 3)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], {"jobs": 4}, (1, 1, 4)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], {"jobs": 6}, (1, 1 / 2, 6)),
        ([{"CPU": 8, "GPU": 2}], {"gpus_per_run": 0.25}, (1, 0.25, 8)),
        ([{"CPU": 8, "GPU": 2}], {"device": "cpu"}, (1, 0, 8)),
    ],
)
def test_shares(
    nodes: list[dict[str, float]], given: dict[str, Any], expected: tuple[float, float, int], tmp_path: Path
) -> None:
    assert RayExecutor(tmp_path, tmp_path, **given).share(nodes) == pytest.approx(expected)


def test_a_run_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no node of the cluster has 3 CPUs and 0 GPUs for a run"):
        RayExecutor(tmp_path, tmp_path, cpus_per_run=3).share([{"CPU": 2}, {"CPU": 2}])
