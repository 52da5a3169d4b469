"""Rows of diffusion samplers."""

import dataclasses
from typing import ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SamplerRow(Row):
    """A diffusion sampler: `plan`, `start` and `step`, driven by `diffusion.sample`.

    `example` takes nothing.

    Not asked: quality of samples of a trained network, which belongs to its claim; the suite's
    denoisers are exact.

    **Arguments:**

    - `order`: order of convergence to the probability-flow solution; `None` for samplers that draw
      noise.
    - `grid`: the function of `diffusion.grids` whose times it is meant for.
    - `counts`: the numbers of steps over which the order is measured; larger ones where errors of
      different orders still balance.
    - `relative`: it is made of the parts of another row, and the suite runs it where time does not
      matter only.
    """

    order: int | None = None
    grid: str = "uniform_log_snr"
    counts: tuple[int, ...] = (40, 80, 160, 320)
    relative: bool = False

    shape: ClassVar[str] = "sampler"
    suite: ClassVar[str] = "test_samplers.py"
