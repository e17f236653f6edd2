"""A round's forks, by a strategy of the package or one of the user's."""

from collections.abc import Sequence
from typing import Any

from ibtpo import own_code
from ibtpo.errors import UserError
from ibtpo.sampling.strategies import STRATEGIES, Fork, TreeOptions
from ibtpo.tree import Tree


def choose(tree: Tree, responses: Sequence[Any], options: TreeOptions, *others: Any) -> list[Fork]:
    """The forks that the strategy of `options` chooses. others: rng, limits and pending, as every strategy takes them.

    Raises:
      UserError: a strategy of the user's returns anything but forks of these responses.
    """
    if options.strategy in STRATEGIES:
        return STRATEGIES[options.strategy](tree, responses, options, *others)
    forks = own_code.find("tree.strategy", options.strategy)(tree, responses, options, *others)
    for fork in forks if isinstance(forks, list | tuple) else [forks]:
        inside = isinstance(fork, Fork) and 0 <= fork.response < len(responses)
        if not inside or not 0 <= fork.position < len(responses[fork.response].tokens):
            raise UserError(
                f"tree.strategy={options.strategy!r} returned {repr(fork)[:200]}: a strategy returns a list of "
                f"Fork(response, position), of one of the {len(responses)} responses and a position before its end"
            )
    return list(forks)
