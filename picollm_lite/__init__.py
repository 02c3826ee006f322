"""The helper package of the preference-learning course: the work that is too slow or too long for a notebook cell."""

__version__ = "0.1.0"
