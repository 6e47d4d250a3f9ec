"""The table of rules: one small function per operator family gives the output axes and the meaning.

Pointwise operators need no entry: torch tags them. An operator without a rule is `Opaque`, which the plan refuses by
name wherever a growing axis meets it.
"""
