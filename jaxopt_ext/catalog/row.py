"""One row of the table of systems."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jaxopt_ext as jxt

Shape = Literal["solver", "optimizer", "network", "sampler", "estimator", "kernel"]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One member of the library.

    **Arguments:**

    - `name`: the method's name in the literature.
    - `public`: dotted path of the public object, `"minimize.FISTA"`; kernels start with
      `"kernels."`.
    - `shape`: which contract it keeps, and so which conformance suite runs it.
    - `paper`: authors, title, year, arXiv id or venue.
    - `example`: builds the member that the suite runs. Solvers, samplers, estimators and kernels:
      called with no argument. Optimizers: called with the parameters, and gives the keyword
      arguments of the public function. Network algorithms: called with the loss.
    - `claim`: path of the claim under `benchmarks/claims`, without suffix.
    - `system`: identifier of the published system; `None` for building blocks.
    - `extras`: optimizers only: names of the extra arguments that `update` needs.
    - `static`: optimizers only: names of floating-point arguments that decide shapes, and so
      cannot be traced.
    - `state_bytes`: optimizers only: the paper's formula for the size of the state, from the
      parameters; counters of a few bytes are left out.
    - `order`: samplers only: order of convergence to the probability-flow solution; `None` for
      samplers that draw noise.
    - `task`: estimators only: what the targets are.
    - `opt_outs`: checks that do not apply, each with its reason.
    """

    name: str
    public: str
    shape: Shape
    paper: str
    example: Callable[..., Any]
    claim: str | None = None
    system: str | None = None
    extras: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    state_bytes: Callable[[Any], int] | None = None
    order: int | None = None
    task: Literal["real", "binary", "classes", "counts"] | None = None
    opt_outs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def transformation(self, params: Any) -> Any:
        """Optimizers only: the example for these parameters."""
        return self.object(**self.example(params))

    @property
    def object(self) -> Any:
        """The public object itself."""
        if self.public.startswith("kernels."):
            root: Any = importlib.import_module("jaxopt_ext_kernels")
            return functools.reduce(getattr, self.public.split(".")[1:], root)
        return functools.reduce(getattr, self.public.split("."), jxt)
