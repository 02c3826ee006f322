"""The tiny tokenizer, models and pairs of the unit tests."""

import runpy
from pathlib import Path

UNIT = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "conftest.py"))
tokenizer, tiny_model, taught = UNIT["tokenizer"], UNIT["tiny_model"], UNIT["taught"]
encode, pairs = UNIT["encode"], UNIT["pairs"]
