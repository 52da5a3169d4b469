"""What bad nodes send, to try robust aggregation with.

`attack(good, key=None, state=None, own=None)` gives $f$ rows for the $m - f$ good ones: stacked
pytrees, of which an attack may know everything. `attack.init(row, key)` and
`attack.observe(state, good)` keep what it remembers, which is nothing for all but `Mimic`.

- Loud: `Gaussian`, `NonFinite`, `SignFlip`, `InnerProduct` with a large factor.
- Hidden among good messages: `ALIE`, `InnerProduct` with a small one.
- `LineSearch`: as loud as a given rule lets pass, along `against_mean` or `against_deviation`.
- `Mimic`: copies of one good node, against rules that drop what is rare.
- `LabelFlip`: on labels instead of messages.
"""

from .attack import AbstractAttack
from .label_flip import LabelFlip
from .line_search import LineSearch, against_deviation, against_mean
from .mimic import Mimic, MimicState
from .simple import ALIE, Gaussian, InnerProduct, NonFinite, SignFlip

__all__ = [
    "ALIE",
    "AbstractAttack",
    "Gaussian",
    "InnerProduct",
    "LabelFlip",
    "LineSearch",
    "Mimic",
    "MimicState",
    "NonFinite",
    "SignFlip",
    "against_deviation",
    "against_mean",
]
