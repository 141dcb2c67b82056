"""Values that several packages must agree on."""

IGNORE_INDEX = -1
"""A target that is not scored."""
