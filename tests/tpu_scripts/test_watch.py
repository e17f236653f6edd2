"""watch.sh: a preempted pod is replaced and its run goes on; what people did and what keeps failing is left alone."""

import re

import pytest

from tests.tpu_scripts.world import LAUNCH, QUEUED

WATCH = [*LAUNCH, "--topology=v5e:2x4", "--provisioning=spot"]
TRAIN = """
step() { printf '{"step": %s}\\n' "$1" >> runs/r/metrics.jsonl; }
last=$(tail -n 1 runs/r/metrics.jsonl 2>/dev/null)
"""


def test_watch_replaces_a_preempted_pod_and_the_run_goes_on(pod):
    """ACTIVE -> preempted -> deleted, requested again -> queued -> set up -> relaunched -> done."""
    pod.write(
        "train",
        TRAIN + 'case "$last" in "") step 1; step 2; sleep 60 ;; *) echo "goes on after $last with $*"; step 3 ;; esac',
    )
    pod("launch", *LAUNCH, "--", "--config.x=1")
    (pod.path / "calls.jsonl").unlink()
    (pod.checkout / "requirements-tpu.txt").write_text("the checkout moved on: the pod's code must not")
    pod.write("queued", "ACTIVE until b/r/workdir/metrics.jsonl\nSUSPENDED")
    pod.write("after_create", "WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    out = pod("watch", *WATCH, "--", "--config.x=1").stdout
    verbs = [verb for verb in pod.verbs() if not verb.startswith("storage")]
    lost = verbs.index("queued delete")
    assert set(verbs[:lost]) == {"queued describe", "node describe", "ssh all status"}
    assert verbs[lost : lost + 3] == ["queued delete", "queued describe", "queued create"]
    after = [verb for verb in verbs[lost + 3 :] if "describe" not in verb]
    assert after[:4] == ["ssh all install", "ssh all check", "ssh all idle", "ssh all start"]
    assert set(after[4:]) == {"ssh all status"}
    create = next(call for call in pod.calls if call[:4] == [*QUEUED, "create"])
    assert "--spot" in create and "--accelerator-type=v5litepod-8" in create
    assert "was taken away (1 of at most 50)" in out and "run r is finished (update 3)" in out
    for shown in ("pod SUSPENDED", "pod WAITING_FOR_RESOURCES", "pod PROVISIONING", "job running", "job finished"):
        assert shown in out
    log = (pod.worker() / "jobs/r/train.log").read_text()
    assert 'goes on after {"step": 2} with' in log and "--config.x=1" in log
    assert (pod.worker() / "requirements-tpu.txt").read_text() == ""
    assert "costs until tpu_scripts/delete.sh" in out
    # Both lives of worker 0 have their log in the bucket.
    assert len(list((pod.path / "gs/b/r/logs").glob("worker-0-*"))) == 2


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_watch_sees_a_preempted_node_under_an_active_request(pod, state):
    pod.write("train", "exit 0")
    pod("launch", *LAUNCH)
    pod.write("node", state)
    out = pod("watch", *WATCH).stdout
    assert f"pod ACTIVE, node {state}" in out and "run r is finished" in out
    assert pod.verbs().count("queued create") == 1


def test_watch_deletes_the_finished_pod_when_told_to(pod):
    pod.write("train", "exit 0")
    pod("launch", *LAUNCH)
    out = pod("watch", *WATCH, "--delete-at-end").stdout
    assert "pod is gone" in out and pod.verbs()[-1] == "storage du"


def test_watch_does_not_delete_what_is_not_in_the_bucket(pod):
    pod.write("train", "sleep 0.5")
    pod("launch", *LAUNCH)
    pod.write("refuse", "storage rsync")
    out = pod("watch", *WATCH, "--delete-at-end").stdout
    assert "NOT deleted" in out and "last copy: failed" in out and "queued delete" not in pod.verbs()


def test_watch_gives_up_after_crashes_without_progress_and_shows_the_log(pod):
    """Steps at the crashes: 1, 2, 2, 2. Progress sets the count back."""
    pod.write("train", TRAIN + 'case "$last" in "") step 1 ;; *1*) step 2 ;; esac; sleep 0.3; echo boom; exit 9')
    pod("launch", *LAUNCH)
    out = pod("watch", *WATCH, "--max-crashes=3", code=1).stdout
    crashes = re.findall(r"crashed at update (\d) \(crash (\d) without progress", out)
    assert crashes[-3:] == [("2", "1"), ("2", "2"), ("2", "3")] and crashes[0] == ("1", "1")
    assert "boom" in out and "given up: run r crashed 3 times without getting further than update 2" in out
    assert pod.verbs()[-1] == "ssh all stop" and "costs until" in out


@pytest.mark.parametrize(
    "queued, node, message",
    [
        ("", "", "somebody deleted pod"),
        ("DELETING", "READY", "somebody is deleting pod"),
        ("ACTIVE", "STOPPED", "somebody stopped pod"),
        ("ACTIVE", "READY", "run r was never launched on pod"),
    ],
)
def test_watch_leaves_alone_what_people_did(pod, queued, node, message):
    pod.write("queued", queued)
    pod.write("node", node)
    out = pod("watch", *WATCH, code=1).stdout
    assert message in out and ("costs until" in out) == (queued == "ACTIVE")
    assert not {"queued create", "queued delete", "ssh all start"} & set(pod.verbs())


def test_watch_gives_up_on_requests_that_keep_failing(pod):
    pod.write("queued", "SUSPENDED")
    pod.write("after_create", "FAILED")
    out = pod("watch", *WATCH, "--max-failures=3", code=1).stdout
    assert "given up: the request for pod failed" in out and pod.verbs().count("queued create") == 3


def test_watch_requests_again_after_a_refusal(pod):
    """The old pod is deleted already then: its absence is not taken for somebody's wish."""
    pod.write("queued", "SUSPENDED")
    pod.write("refuse", "queued-resources create")
    out = pod("watch", *WATCH, "--max-failures=3", code=1).stdout
    assert "given up: pod could not be requested again" in out
    assert pod.verbs().count("queued delete") == 1 and pod.verbs().count("queued create") == 3


@pytest.mark.parametrize(
    "word, message", [("describe", "gcloud did not answer"), ("ssh", "the workers did not all answer")]
)
def test_watch_does_not_wait_silently_for_answers(pod, word, message):
    pod.write("refuse", word)
    out = pod("watch", *WATCH, "--max-failures=4", code=1).stdout
    assert out.count("failure ") == 4 and f"given up: {message}" in out


def test_watch_bounds_the_preemptions(pod):
    pod.write("queued", "SUSPENDED")
    pod.write("after_create", "SUSPENDED")
    out = pod("watch", *WATCH, "--max-preemptions=2", code=1).stdout
    assert "taken away 3 times" in out and pod.verbs().count("queued create") == 2
