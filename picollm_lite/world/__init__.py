"""The course desk: a small world whose true reward is known. Plain Python, no torch."""
