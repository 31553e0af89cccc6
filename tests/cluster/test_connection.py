"""Getting on a cluster: refusals, rules, stopping, and the cluster descriptions that we ship."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml

from raysegclean.cluster import connection as module
from raysegclean.cluster.connection import can_grow, cluster_share, connect, data_rules, shared_by
from raysegclean.errors import UnfitEnvironment

ROOT = Path(__file__).resolve().parents[2]
CLEAN_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("RAY_")
} | {"PYTHONPATH": str(ROOT)}


def test_a_ray_on_this_machine_listens_here_asks_for_a_token_and_has_spare_slots(cluster):
    assert cluster.started_here
    assert cluster.nodes == 1
    assert cluster.cpus >= 4
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not can_grow()
    again = connect()
    assert not again.started_here, "whoever finds a Ray running must not shut it down"
    assert ray.is_initialized()


def test_gpus_that_are_not_there_are_refused_with_the_remedy(cluster):
    with pytest.raises(UnfitEnvironment, match=r"2 GPUs .* are demanded, the cluster has 0") as got:
        connect(gpus_needed=2)
    assert "resources.train.gpus" in str(got.value)
    assert got.value.exit_code == 3
    assert ray.is_initialized()


@pytest.mark.parametrize(("model", "has"), [("A100", True), ("T4", False)])
def test_gpus_that_only_emulate_bf16_are_known(cluster, monkeypatch, model, has):
    gpu = {"Resources": {"GPU": 1.0}, "Labels": {"ray.io/accelerator-type": model}}
    nodes = [*module.live_nodes(), gpu]
    monkeypatch.setattr(module, "live_nodes", lambda: nodes)
    monkeypatch.setattr(module, "_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    facts = connect()
    assert facts.has_bf16 is has
    assert facts.node_memory_bytes == max(n["Resources"].get("memory", 0) for n in nodes)


@pytest.fixture
def asked(cluster, monkeypatch):
    """A cluster that may grow; what its autoscaler is asked for."""
    requests = []
    monkeypatch.delenv("RAYSEGCLEAN_FIXED_SIZE")
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "request_resources", lambda *, bundles: requests.append(bundles))
    return requests


def test_gpus_that_an_autoscaler_brings_are_waited_for(asked, monkeypatch):
    seen = iter([0, 0, 0, 0, 2])
    monkeypatch.setattr(module, "_resources", lambda: {"CPU": 8.0, "GPU": next(seen, 2)})
    assert connect(gpus_needed=1.5).gpus == 2
    assert asked == [[{"CPU": 1}, {"GPU": 1}, {"GPU": 1}], []]


def test_gpus_that_nobody_brings_are_refused_after_the_wait_and_no_longer_asked_for(asked):
    with pytest.raises(UnfitEnvironment, match="none came in 0 s"):
        connect(gpus_needed=1, wait_s=0.05)
    assert asked[-1] == []


def test_the_rules_of_ray_data_never_drop_rows_and_never_give_up_waiting(cluster):
    data_rules(ordered=True)
    context = ray.data.DataContext.get_current()
    assert context.execution_no_progress_timeout_s == -1
    assert context.max_errored_blocks == 0
    assert context.execution_options.preserve_order
    data_rules()
    assert not context.execution_options.preserve_order


def test_those_who_share_the_cluster_plan_with_their_part_of_it(cluster):
    cpus, gpus = cluster_share()
    assert (cpus, gpus) == (cluster.cpus, 0)
    with shared_by(2):
        assert cluster_share() == (cpus / 2, 0)
        assert connect().cpus == cpus / 2
        with shared_by(0):
            assert cluster_share() == (cpus, 0)
    assert cluster_share() == (cpus, gpus)


STOPPED = """
import os, sys, time
from raysegclean.cluster.connection import connect, shutdown_if_ours
facts = connect()
try:
    print("up", flush=True)
    time.sleep(120)
finally:
    print("tidy", flush=True)
    shutdown_if_ours(facts)
"""


def test_sigterm_ends_a_driver_through_its_finally_blocks_even_without_a_home(tmp_path):
    environment = CLEAN_ENVIRONMENT | {"HOME": "/proc/nowhere"}
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        lines = iter(driver.stdout.readline, "")
        assert "up\n" in lines
        driver.send_signal(signal.SIGTERM)
        assert "tidy\n" in lines
        assert driver.wait(30) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_cluster_that_cannot_be_reached_is_named_with_the_remedy():
    code = """
from raysegclean.cluster.connection import connect
from raysegclean.errors import UnfitEnvironment
try:
    connect()
except UnfitEnvironment as error:
    print("refused:", error)
"""
    environment = CLEAN_ENVIRONMENT | {"RAY_ADDRESS": "127.0.0.1:9", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "refused: the Ray cluster at RAY_ADDRESS=127.0.0.1:9 cannot be joined" in done.stdout
    assert "unset RAY_ADDRESS" in done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path_factory):
    """A head with token authentication, as `ray start` makes it; yields the environment to use.

    It has a temporary folder of its own: `ray start` leaves a note there that other drivers on
    this machine would follow.
    """
    folder = tmp_path_factory.mktemp("r")
    port, environment = free_port(), CLEAN_ENVIRONMENT | {"RAY_TMPDIR": str(folder)}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=4"]
    command += ["--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--ray-client-server-port={free_port()}", f"--object-store-memory={200 << 20}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


JOB = """
from raysegclean.cluster.connection import connect
import ray
facts = connect()
print("joined", facts.started_here, facts.cpus, ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


@pytest.mark.slow
def test_a_submitted_job_joins_the_cluster_it_was_submitted_to(head, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    submit = [Path(sys.executable).with_name("ray"), "job", "submit", "--working-dir", tmp_path]
    submit += ["--runtime-env-json", f'{{"env_vars": {{"PYTHONPATH": "{ROOT}"}}}}']
    submit += ["--", sys.executable, "job.py"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(submit, capture_output=True, text=True, env=head, check=False)
        if done.returncode == 0 or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert "joined False 4.0 42" in done.stdout, done.stdout + done.stderr
    stranger = head | {"RAY_AUTH_TOKEN": "f" * 64}
    refused = subprocess.run(submit, capture_output=True, text=True, env=stranger, check=False)
    assert refused.returncode != 0, "a wrong token was let in"


def shipped(name):
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def test_the_cluster_file_is_one_that_ray_accepts():
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = shipped("cluster.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    head = types.pop(prepared["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"], "the head must be on demand"
    assert {kind["resources"].get("GPU", 0) > 0 for kind in types.values()} == {True, False}
    for kind in types.values():
        pool = "gpu" if kind["resources"].get("GPU") else "cpu"
        assert kind["min_workers"] == 0 < kind["max_workers"]
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["labels"] == {"market-type": "spot", "pool": pool}
        assert kind["resources"]["CPU"] > 0


def test_the_cluster_file_keeps_the_dashboard_here_and_the_door_locked():
    (config,) = shipped("cluster.yaml")
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)
    assert all("RAY_AUTH_MODE=token" in start for start in starts if "ray start" in start)
    assert "0.0.0.0" not in " ".join(starts)
    assert config["setup_commands"] == config["head_setup_commands"] == []


def test_images_are_named_by_digest_and_ask_for_nothing_they_do_not_need():
    job, _ = shipped("deploy/rayjob.yaml")
    spec = job["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    images = [container["image"] for pod in pods for container in pod["containers"]]
    (config,) = shipped("cluster.yaml")
    images += [config["docker"]["image"]]
    images += [config["available_node_types"]["gpu-worker"]["docker"]["worker_image"]]
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images)
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["restartPolicy"] == "Never"
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["rayVersion"] == ray.__version__
    assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])
    assert "USER ray" in (ROOT / "deploy" / "Containerfile").read_text()


def test_the_config_in_the_kubernetes_example_is_a_valid_one():
    from raysegclean.config.settings import make_config

    _, settings = shipped("deploy/rayjob.yaml")
    make_config(yaml.safe_load(settings["data"]["clean.yaml"]))
