"""Claims about results, checked in code where they are made, and the numbers behind them."""

import os

from picollm_lite.evaluation.metrics import Interval, WinRate


class ClaimError(AssertionError):
    """A sentence of the notebook is not true of this run."""


def check(claim: str, holds: bool) -> None:
    """Print one stable line when the claim holds; raise ClaimError when it does not.

    With PICOLLM_CLAIMS=report in the environment a claim that fails is printed too, and the notebook goes on: that is
    how claims are counted over several seeds. So it is with PICOLLM_QUICK, as a run cut short proves nothing.
    """
    report = os.environ.get("PICOLLM_CLAIMS") == "report" or os.environ.get("PICOLLM_QUICK")
    if not holds and not report:
        raise ClaimError(f"CLAIM failed: {claim}")
    print(f"CLAIM {'ok' if holds else 'failed'}: {claim}")


def measure(name: str, value: Interval | WinRate) -> None:
    """Print a result with its 95 % interval, in a form that can be collected over several seeds."""
    estimate = value.rate if isinstance(value, WinRate) else value.estimate
    print(f"MEASURED {name}: {estimate:.3f} [{value.low:.3f}, {value.high:.3f}]")
