"""The `@exercise` decorator: checks a learner's function, and keeps the notebook running whatever it does."""

import inspect
import os
from collections.abc import Callable

from IPython.display import Code, display

from picollm_lite.ui.answers import dpo, evaluation, online, ppo, preferences, reward, scaling, sft, start
from picollm_lite.ui.grading import Exercise

MODULES = (start, sft, preferences, reward, ppo, dpo, online, evaluation, scaling)
EXERCISES: dict[str, Exercise] = {item.name: item for module in MODULES for item in module.EXERCISES}


def exercise(name: str) -> Callable[[Callable], Callable]:
    """Judge the decorated function on fixed inputs. Right: it is kept. Else the reference takes its place.

    With PICOLLM_SOLVE=1 in the environment the reference is used without judging. Raises KeyError for an unknown name.
    """
    item = _find(name)

    def decorate(attempt: Callable) -> Callable:
        if os.environ.get("PICOLLM_SOLVE") == "1":
            print(f"EXERCISE {name}: solved for you (PICOLLM_SOLVE=1)")
            return item.reference
        verdict = item.judge(attempt)
        print(f"EXERCISE {name}: {verdict.message}")
        if verdict.right:
            return attempt
        print("The cells below go on with the reference. Edit and run this cell again whenever you like.")
        return item.reference

    return decorate


def show_solution(name: str) -> None:
    """The reference that the checker itself uses."""
    display(Code(inspect.getsource(_find(name).reference), language="python"))


def _find(name: str) -> Exercise:
    if name not in EXERCISES:
        raise KeyError(f"no exercise {name!r}: the exercises are {', '.join(sorted(EXERCISES))}")
    return EXERCISES[name]
