"""The names of `ibtpo.choices` are those of the code, and reading them costs nothing."""

import subprocess
import sys

from ibtpo import choices
from ibtpo.config import RULES, resolve
from tests.config_cases import ROOT, runnable


def test_names_are_those_of_the_code():
    from ibtpo import advantages, objectives, rewards
    from ibtpo.data.generated import TASKS
    from ibtpo.models import decoder
    from ibtpo.rewards import terms
    from ibtpo.sampling import strategies

    assert tuple(advantages.ADVANTAGES) == choices.ADVANTAGES
    assert tuple(objectives.OBJECTIVES) == choices.OBJECTIVES
    assert tuple(strategies.STRATEGIES) == choices.STRATEGIES
    assert tuple(rewards.KINDS) == choices.REWARDS
    assert tuple(terms.TERMS) == choices.TERMS
    assert set().union(*(task.difficulties for task in TASKS.values())) == set(choices.DIFFICULTIES)
    assert {"none", *decoder.REMAT} == set(choices.REMATS)


def test_rules_have_the_same_names():
    assert RULES["loss.advantage"].choices == choices.ADVANTAGES
    assert RULES["tree.strategy"].choices == choices.STRATEGIES
    assert RULES["loss.objective"].choices == choices.OBJECTIVES
    assert RULES["loss.aggregation"].choices == choices.AGGREGATIONS
    assert RULES["loss.shared_tokens"].choices == choices.SHARED_TOKENS
    assert RULES["loss.deviation"].choices == choices.DEVIATIONS
    assert RULES["loss.group_of_one"].choices == choices.GROUPS_OF_ONE
    assert RULES["loss.value_center"].choices == choices.VALUE_CENTERS
    assert RULES["tree.child_weight"].choices == choices.CHILD_WEIGHTS
    assert RULES["tree.branch_value"].choices == choices.VALUES
    assert set(choices.TOKEN_ADVANTAGES) <= set(choices.ADVANTAGES)
    assert RULES["reward.kind"].choices == choices.REWARDS
    assert RULES["optimizer.schedule"].choices == choices.SCHEDULES
    assert RULES["data.difficulty"].choices == choices.DIFFICULTIES


def test_the_options_of_the_score_are_read_from_a_config_once():
    """Whoever scores a tree, the sampler, the advantages and the diagnostics, takes the same options."""
    from ibtpo.advantages import AdvantageOptions
    from ibtpo.ib_score import ScoreOptions
    from ibtpo.sampling.strategies import TreeOptions

    changes = dict(beta=2.0, ratio_power=2, confidence="joint", value="backup", root="initial")
    changes |= dict(branch_value="backup", child_weight="uniform")
    config = resolve(runnable(**{f"tree__{name}": value for name, value in changes.items()}, loss__ib_weight=0.3))
    score = ScoreOptions(**changes)
    assert ScoreOptions.from_config(config) == score
    assert AdvantageOptions.from_config(config) == AdvantageOptions(score, ib_weight=0.3, segment_tokens=256)
    expected = TreeOptions("ib", 4, 9, 1, 1, score, min_new_tokens=16, max_new_tokens=2048, segment_tokens=256)
    assert TreeOptions.from_config(config) == expected
    assert TreeOptions.from_config(config, initial=7).initial == 7


def test_nothing_is_imported_with_them():
    """Grading workers import the names of rewards: no configuration library, no JAX."""
    code = "import sys, ibtpo.choices; print(*sorted(m for m in sys.modules if m.split('.')[0] in ('ibtpo', 'jax')))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["ibtpo", "ibtpo.choices"]
