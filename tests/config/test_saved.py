"""The configuration on disk, and the changes allowed when a run is resumed."""

import pytest
from ml_collections import ConfigDict

from configs import tiny
from ibtpo.config import CHANGES, EARLIER, RULES, ConfigError, check_same, diff, flatten, load, resolve, save, unflatten
from ibtpo.config.saved import FREE, REFUSED, ROUNDING, kind_of_change
from tests.config_cases import ROOT, VALID, parse


def test_saved_config_is_a_config_file(tmp_path):
    """Saved, loaded and resolved again, a configuration is the same, types included."""
    config = resolve(tiny.get_config())
    save(config, str(tmp_path))
    again = parse(path=tmp_path / "config.json")
    assert flatten(again) == flatten(config)
    assert {k: type(v) for k, v in flatten(again).items()} == {k: type(v) for k, v in flatten(config).items()}


def changed(key):
    value = VALID[key]
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int | float) and value else "other" if isinstance(value, str) else 1


FREE_KEYS = {
    "compilation_cache", "model.preset", "data.files", "data.check_rows", "data.dir", "data.eval_split",
    "reward.workers", "train.steps", "train.max_skipped", "train.host_timeout",
}  # fmt: skip
ROUNDING_KEYS = {
    "model.remat", "sampling.slots", "sampling.pages", "sampling.page_size", "sampling.chunk",
    "sampling.memory_share",
    "sampling.questions_in_flight", "sampling.deterministic", "train.row_tokens", "train.rows_per_step",
    "train.token_block",
}  # fmt: skip


def test_the_table_covers_every_key_and_no_other():
    covered = {key for key in RULES if key in CHANGES or key.split(".")[0] in CHANGES}
    assert covered == set(RULES)
    used = {key if key in CHANGES else key.split(".")[0] for key in RULES}
    assert used == set(CHANGES)
    assert {kind for kind, _ in CHANGES.values()} == {FREE, ROUNDING, REFUSED}
    assert kind_of_change("model.of_another_version") == REFUSED


def test_the_page_for_readers_is_the_table():
    rows = [line for line in (ROOT / "docs" / "resuming.md").read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{key}` | {kind} | {reason} |" for key, (kind, reason) in CHANGES.items()]


def test_what_changes_rounding_is_said_when_resuming(caplog):
    new = VALID | {"mesh.fsdp": 2, "sampling.slots": 64, "reward.workers": 1}
    with caplog.at_level("WARNING", logger="absl"):
        check_same("runs/a", VALID, new, "choose a new --workdir")
    [record] = caplog.records
    assert "runs/a is resumed with mesh.fsdp: 1 -> 2; sampling.slots: 256 -> 64:" in record.getMessage()
    assert "workers" not in record.getMessage() and "\n" not in record.getMessage()
    caplog.clear()
    check_same("runs/a", VALID, VALID | {"reward.workers": 1}, "choose a new --workdir")
    with pytest.raises(ConfigError, match=r"\(loss\.kl: 0\.001 -> 0\.5\): choose another, or give this key"):
        check_same("runs/a", VALID, new | {"loss.kl": 0.5}, "choose another")
    assert not caplog.records


def test_a_run_saved_before_there_were_adapters_is_resumed_without_any():
    before = {key: value for key, value in VALID.items() if not key.startswith("model.lora")}
    assert diff(before, VALID) == {} and diff(VALID, before) == {}
    assert diff(before, VALID | {"model.lora_rank": 8}) == {"model.lora_rank": (0, 8)}
    assert {key: VALID[key] for key in EARLIER} == EARLIER  # the defaults did as those runs


@pytest.mark.parametrize("key", sorted(RULES))
def test_resume_accepts_exactly_the_keys_that_do_not_change_the_run(tmp_path, key):
    old, new = unflatten(VALID), unflatten(VALID | {key: changed(key)})
    save(old, str(tmp_path))
    if key in FREE_KEYS | ROUNDING_KEYS or key.split(".")[0] in ("log", "eval", "checkpoint", "mesh"):
        save(new, str(tmp_path))
        assert flatten(load(str(tmp_path / "config.json")))[key] == changed(key)
    else:
        with pytest.raises(ConfigError) as caught:
            save(new, str(tmp_path))
        message = str(caught.value)
        assert f"({key}: {VALID[key]!r} -> {changed(key)!r})" in message
        assert "new --workdir" in message and "\n" not in message
        assert flatten(load(str(tmp_path / "config.json"))) == VALID  # the old one is kept


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_with_the_run_fixes_its_length(schedule):
    old = VALID | {"optimizer.schedule": schedule}
    assert diff(old, old | {"train.steps": changed("train.steps")}) == {
        "train.steps": (VALID["train.steps"], changed("train.steps"))
    }


def test_diff_lists_keys_that_one_side_lacks():
    old, new = ConfigDict({"a": 1, "b": {"c": 2}}), ConfigDict({"a": 1, "b": {"d": 3}})
    assert diff(old, new) == {"b.d": (None, 3), "b.c": (2, None)}


def test_save_on_other_hosts_only_checks(tmp_path):
    save(resolve(tiny.get_config()), str(tmp_path / "new"), write=False)
    assert not (tmp_path / "new").exists()
