"""Angles beyond float32 are refused, those of longrope's long sequences too."""

from __future__ import annotations

import pytest

from minillm.config import RopeConfig
from minillm.errors import UnsupportedModel
from minillm.model.rope_config import require_finite_angles

USUAL = (1.0, 1.0)
TINY = (1.0, 1e-30)


@pytest.mark.parametrize(("short", "long"), [(TINY, USUAL), (USUAL, TINY)], ids=["short", "long"])
def test_divisors_that_give_no_finite_angle_are_refused(
    short: tuple[float, ...], long: tuple[float, ...]
) -> None:
    rope = RopeConfig("longrope", 1e-20, original_max_position=32, short_factor=USUAL, long_factor=USUAL)
    require_finite_angles(rope, 4, 64)  # the control
    bad = RopeConfig("longrope", 1e-20, original_max_position=32, short_factor=short, long_factor=long)
    with pytest.raises(UnsupportedModel, match="not finite"):
        require_finite_angles(bad, 4, 64)
