"""Checks that turn silent broadcasting, empty masks and bad settings into one clear ValueError."""

import torch
from jaxtyping import Bool
from torch import Tensor


def require_same_shape(*tensors: Tensor) -> None:
    """Raises ValueError unless every tensor has the first one's shape (broadcasting would hide the mistake)."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected tensors of one shape, got {', '.join(map(str, shapes))}")


def require_bool(mask: Tensor) -> None:
    """Raises ValueError unless the dtype is bool (an int mask would index, and ~ of it would not negate)."""
    if mask.dtype != torch.bool:
        raise ValueError(f"expected a bool tensor, got {mask.dtype}")


def require_nonempty_mask(mask: Bool[Tensor, "B T"], *tensors: Tensor) -> None:
    """Raises ValueError unless `mask` is bool, has the shape of every tensor, and is True somewhere."""
    require_bool(mask)
    require_same_shape(mask, *tensors)
    if not mask.any():
        raise ValueError(f"expected a mask with at least one True, got none in shape {tuple(mask.shape)}")


def require_nonempty_rows(mask: Bool[Tensor, "B T"]) -> None:
    """Raises ValueError unless every row of `mask` has a True."""
    if not mask.any(dim=1).all():
        raise ValueError(f"expected a True in every mask row, got none in rows {rows_of(~mask.any(dim=1))}")


def rows_of(flags: Bool[Tensor, " B"]) -> list[int]:
    """The numbers of the rows that are True, for a message."""
    return flags.nonzero().flatten().tolist()


def require_positive(**settings: float) -> None:
    """Raises ValueError unless every named setting is above 0 (NaN is refused too)."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"expected {name} > 0, got {value}")


def require_in(low: float, high: float, **settings: float) -> None:
    """Raises ValueError unless every named setting lies in [low, high]."""
    for name, value in settings.items():
        if not low <= value <= high:
            raise ValueError(f"expected {name} in [{low}, {high}], got {value}")


def require_flip_rate(*, label_smoothing: float) -> None:
    """Raises ValueError unless the rate lies in [0, 0.5): at one half a label says nothing."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"expected label_smoothing in [0, 0.5), got {label_smoothing}")
