"""Claims about results, checked in code where they are made."""


class ClaimError(AssertionError):
    """A sentence of the notebook is not true of this run."""


def check(claim: str, holds: bool) -> None:
    """Print one stable line when the claim holds; raise ClaimError when it does not."""
    if not holds:
        raise ClaimError(f"CLAIM failed: {claim}")
    print(f"CLAIM ok: {claim}")
