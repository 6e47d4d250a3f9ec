"""Stand in for the methods of objects that are not ours, and give them back."""

from collections.abc import Callable
from typing import Any

INTERCEPTS = "lightning_grow_intercepts"
"""On a function that stands in for another: that one."""

Function = Callable[..., Any]


class Interceptions:
    """The methods under way of being replaced, each with what the instance itself had under that name."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, stand_in: Callable[[Function], Function]) -> None:
        """Replace a method by what `stand_in` makes of it; of an earlier stand-in, by what that one stood for.

        A plain function on the instance: deepcopy (EMA) shares it, where a bound method would drag the Trainer along.
        """
        own = getattr(owner, name)
        own = getattr(own, INTERCEPTS, own)
        function = stand_in(own)
        setattr(function, INTERCEPTS, own)
        self.taken.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, function)

    def release(self) -> None:
        """Give every object its own method back."""
        for owner, name, own in self.taken:
            if own is None or hasattr(own, INTERCEPTS):
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, own)
        self.taken = []
