"""Progress bars that appear only when there is something to wait for."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

from tqdm import TqdmWarning

with warnings.catch_warnings():  # without ipywidgets a notebook gets the plain bar
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm


@contextlib.contextmanager
def progress_bar(
    total: int, description: str, *, enabled: bool = True, delay: float = 1.0
) -> Iterator[Callable[..., None]]:
    """Yield `advance(steps, **shown)`, which moves a bar that shows up after `delay` seconds."""
    with tqdm(total=total, desc=description, disable=not enabled, delay=delay, leave=False) as bar:

        def advance(steps: int = 1, **shown) -> None:
            if shown:
                bar.set_postfix(
                    {key: f"{float(value):.3g}" for key, value in shown.items()}, refresh=False
                )
            bar.update(steps)

        yield advance
