"""What operators take and give: tensors and numbers, in lists, tuples and dicts, and nothing else.

Torch's pytree knows every container there is, which took a quarter of the time of a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_CONTAINERS = (list, tuple, dict)


def leaves(item: Any) -> list[Any]:
    """What stands in the containers, in order.

    >>> leaves([1, (2, [None])]), leaves({"dim": 0, "sizes": [3, 4]})
    ([1, 2, None], [0, 3, 4])
    """
    if type(item) not in _CONTAINERS:
        return [item]
    found: list[Any] = []
    for part in item.values() if type(item) is dict else item:
        if type(part) in _CONTAINERS:
            found += leaves(part)
        else:
            found.append(part)
    return found


def mapped(function: Callable[[Any], Any], item: Any) -> Any:
    """The same containers with `function` of what stands in them.

    >>> mapped(str, [1, (2, [None])]), mapped(float, {"dim": 0})
    (['1', ('2', ['None'])], {'dim': 0.0})
    """
    if type(item) not in _CONTAINERS:
        return function(item)
    if type(item) is dict:
        return {key: mapped(function, part) for key, part in item.items()}
    return type(item)([mapped(function, part) if type(part) in _CONTAINERS else function(part) for part in item])
