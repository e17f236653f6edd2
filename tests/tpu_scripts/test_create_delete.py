"""create.sh and delete.sh against a stub gcloud: exact commands, waiting, errors, and nothing left behind."""

import re

import pytest

from tests.tpu_scripts.world import DELETE, DESCRIBE, DESCRIBE_NODE, NODE, POD, QUEUED, RUN, WHERE, parse_dry_run


@pytest.mark.parametrize(
    "topology, accelerator, runtime",
    [
        ("v4:2x2x1", "v4-8", "tpu-ubuntu2204-base"),
        ("v4:2x2x2", "v4-16", "tpu-ubuntu2204-base"),
        ("v5e:1x1", "v5litepod-1", "v2-alpha-tpuv5-lite"),
        ("v5e:2x4", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5e:16x16", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x1", "v5p-8", "v2-alpha-tpuv5"),
        ("v5p:2x2x2", "v5p-16", "v2-alpha-tpuv5"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e:2x2", "v6e-4", "v2-alpha-tpuv6e"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_topology_names_the_accelerator_type_and_runtime(world, topology, accelerator, runtime):
    out = world("create", *POD, f"--topology={topology}", "--no-wait", "--dry-run").stdout
    flags = ["--node-id=pod", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--quiet"]
    assert parse_dry_run(out)[1] == [*QUEUED, "create", "pod", *WHERE, *flags]


def test_unknown_topologies_are_refused_with_the_known_ones(world):
    assert "v4, v5e, v5p or v6e" in world("create", *POD, "--topology=v7x:2x2", code=2).stderr
    assert "there are 1x1 2x2 2x4 4x4" in world("create", *POD, "--topology=v5e:3x3", code=2).stderr
    assert "there are 2x2x1" in world("create", *POD, "--topology=v5p:4x4", code=2).stderr
    assert "there are" in world("create", *POD, "--topology=v5e", code=2).stderr
    assert "missing --runtime-version" in world("create", *POD, "--accelerator-type=v3-8", code=2).stderr
    assert world.calls == []


@pytest.mark.parametrize(
    "options, flags",
    [
        ([], []),
        (["--spot"], ["--spot"]),
        (["--provisioning=spot"], ["--spot"]),
        (["--reserved"], ["--reserved"]),
        (["--spot", "--valid-until=6h"], ["--spot", "--valid-until-duration=6h"]),
        (
            ["--service-account=a@b", "--network=n", "--subnetwork=s"],
            ["--service-account=a@b", "--network=n", "--subnetwork=s"],
        ),
    ],
)
def test_create_requests_exactly_this(world, options, flags):
    world("create", *POD, "--topology=v5e:4x4", *options)
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    create = [*QUEUED, "create", "pod", *WHERE, "--node-id=pod", *kind, *flags, "--quiet"]
    assert world.calls == [DESCRIBE, create, DESCRIBE]


def test_explicit_type_and_runtime_win_over_the_topology(world):
    flags = ["--accelerator-type=v5p-32", "--runtime-version=other"]
    world("create", *POD, "--topology=v5p:2x2x2", *flags, "--no-wait")
    assert world.calls[1] == [*QUEUED, "create", "pod", *WHERE, "--node-id=pod", *flags, "--quiet"]


def test_create_refuses_contradictions(world):
    create = ["create", *POD, "--topology=v5e:4x4"]
    assert "exclude each other" in world(*create, "--spot", "--reserved", code=2).stderr
    assert "on-demand, spot or reserved" in world(*create, "--provisioning=free", code=2).stderr
    assert world.calls == []


def test_create_waits_through_the_queue_and_survives_a_lost_answer(world):
    world.write("after_create", "WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nERROR\nPROVISIONING\nACTIVE")
    out = world("create", *POD, "--topology=v5e:4x4").stdout
    shown = re.findall(r"\d  pod: (\w+)", out)
    assert shown == ["WAITING_FOR_RESOURCES", "unknown", "PROVISIONING", "ACTIVE"]
    assert world.verbs() == ["queued describe", "queued create"] + ["queued describe"] * 5


@pytest.mark.parametrize(
    "states, message",
    [
        ("PROVISIONING\nFAILED", "the request for pod failed"),
        ("ACCEPTED\nSUSPENDING", "was taken away (SUSPENDING)"),
        ("SUSPENDED", "was taken away (SUSPENDED)"),
        ("DELETING", "is being deleted"),
        ("ERROR", "did not answer 10 times"),
    ],
)
def test_create_ends_with_an_error_when_no_pod_will_come(world, states, message):
    world.write("after_create", states)
    assert message in world("create", *POD, "--topology=v5e:4x4", code=1).stderr


def test_create_again_waits_for_the_first_request(world):
    world.write("queued", "PROVISIONING\nACTIVE")
    assert "exists already (PROVISIONING)" in world("create", *POD, "--topology=v5e:4x4").stdout
    assert "queued create" not in world.verbs()
    world.write("queued", "SUSPENDED")
    world("create", *POD, "--topology=v5e:4x4", "--no-wait", code=1)
    assert "queued create" not in world.verbs()


def test_create_says_when_the_request_is_refused(world):
    world.write("refuse", "queued-resources create")
    result = world("create", *POD, "--topology=v5e:4x4", code=1)
    assert "PERMISSION_DENIED" in result.stderr and "the request was refused" in result.stderr


def test_delete_removes_verifies_and_lists_what_costs(world):
    world.write("queued", "ACTIVE")
    world.write("node", "READY")
    out = world("delete", *RUN, "--yes").stdout
    assert world.calls == [
        DELETE,
        DESCRIBE,
        DESCRIBE_NODE,
        [*QUEUED, "list", *WHERE, "--format=table(name.basename(),state.state)"],
        [*NODE, "list", *WHERE, "--format=table(name.basename(),acceleratorType,state)"],
        ["storage", "du", "--summarize", "gs://b/r"],
    ]
    assert "pod is gone" in out and "4096 gs://b/r" in out and "gcloud storage rm --recursive gs://b/r" in out


def test_delete_removes_a_node_that_stayed_behind(world):
    world.write("queued", "ACTIVE")
    world.write("node", "READY")
    world.write("node_stays", "")
    world("delete", *POD, "--yes")
    assert world.verbs()[:5] == ["queued delete", "queued describe", "node describe", "node delete", "node describe"]


def test_delete_of_nothing_is_fine(world):
    assert "there is none" in world("delete", *POD, "--yes").stdout


def test_delete_fails_loudly_when_something_is_left(world):
    world.write("queued", "ACTIVE")
    world.write("node", "READY")
    world.write("refuse", "queued-resources delete\ntpu-vm delete")
    result = world("delete", *POD, "--yes", code=1)
    assert "pod still costs: queued resource ACTIVE, node READY" in result.stderr
    assert world.verbs().count("queued delete") == 5


def test_delete_does_not_call_an_unknown_state_gone(world):
    world.write("refuse", "describe")
    assert "still costs: queued resource unknown" in world("delete", *POD, "--yes", code=1).stderr


def test_delete_asks_first(world):
    assert "pass --yes" in world("delete", *POD, code=2).stderr
    assert world.calls == []
