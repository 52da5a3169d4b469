"""What the rows of all shapes share."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jaxopt_ext as jxt


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One member of the library; there is a row class for each shape of member.

    **Arguments:**

    - `name`: the method's name in the literature.
    - `public`: dotted path of the public object, `"minimize.FISTA"`; kernels start with
      `"kernels."`.
    - `paper`: authors, title, year, arXiv id or venue.
    - `example`: builds the member that the suite runs; the row class says from what.
    - `claim`: path of the claim under `benchmarks/claims`, without suffix.
    - `system`: identifiers of the published systems that it belongs to; none for building blocks.
    - `host`: why part of its loop runs on the host, which takes it out of `jit`, `vmap` and
      `shard_map`; empty for what is traced whole.
    - `opt_outs`: checks of the suite that do not apply, each with its reason.
    """

    name: str
    public: str
    paper: str
    example: Callable[..., Any]
    _: dataclasses.KW_ONLY
    claim: str | None = None
    system: tuple[str, ...] = ()
    host: str = ""
    opt_outs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    shape: ClassVar[str]
    """The name of the shape."""
    suite: ClassVar[str]
    """The conformance suite that runs over the rows of the shape."""

    def __post_init__(self):
        if not isinstance(self.system, tuple):
            raise TypeError(f"{self.name}: system must be a tuple, got {self.system!r}")

    @property
    def object(self) -> Any:
        """The public object itself."""
        if self.public.startswith("kernels."):
            root: Any = importlib.import_module("jaxopt_ext_kernels")
            return functools.reduce(getattr, self.public.split(".")[1:], root)
        return functools.reduce(getattr, self.public.split("."), jxt)

    def reason(self, check: str) -> str:
        """Why a check of the suite does not apply; empty if it does."""
        traced = {"jit", "vmap", "retrace", "shard_map", "scan"}
        return self.opt_outs.get(check, "") or (self.host if check in traced else "")
