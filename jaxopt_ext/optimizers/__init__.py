"""Gradient transformations for `optax`: one file per method.

All are `optax.GradientTransformationExtraArgs`: they ignore extra arguments that they do not know,
and work under `optax.chain`, `optax.masked`, `optax.multi_transform` and `optax.MultiSteps`.

Less memory than Adam's two numbers per parameter:

- `badam`: Adam on one block of layers at a time, with a state one block large; `blocks_by_layer`
  cuts the parameters, `value_and_block_grad` differentiates the current block only.
- `microadam`: a window of sparse gradients and a 4-bit error: about one byte per parameter.
- `subset_norm`, `adam_sn`: one adaptive step size per row or column.
- `subspace_momentum`, `adam_snsm`: momentum in a low-dimensional subspace, SGD in its complement.
- `online_subspace_descent`: both moments in a subspace that online PCA keeps moving.

Shared blocks: `projectors` (subspaces of matrices), `quantize` (4-bit codes, largest entries).
"""

from .badam import (
    BAdamState,
    badam,
    blocks_by_layer,
    value_and_block_grad,
)
from .microadam import MicroAdamState, microadam
from .online_subspace import (
    OnlineSubspaceState,
    online_subspace_descent,
    subspace_gradient,
    subspace_loss,
)
from .projectors import (
    AbstractMatrixProjector,
    CoordinateProjector,
    OrthonormalProjector,
    SVDProjector,
    TopNormProjector,
)
from .quantize import (
    Quantized4Bit,
    dequantize_4bit,
    quantize_4bit,
    topk_blocks,
)
from .subset_norm import (
    SubsetNormState,
    adam_sn,
    adam_snsm,
    subset_norm,
    subspace_momentum,
)

__all__ = [
    "AbstractMatrixProjector",
    "BAdamState",
    "CoordinateProjector",
    "MicroAdamState",
    "OnlineSubspaceState",
    "OrthonormalProjector",
    "Quantized4Bit",
    "SVDProjector",
    "SubsetNormState",
    "TopNormProjector",
    "adam_sn",
    "adam_snsm",
    "badam",
    "blocks_by_layer",
    "dequantize_4bit",
    "microadam",
    "online_subspace_descent",
    "quantize_4bit",
    "subset_norm",
    "subspace_gradient",
    "subspace_loss",
    "subspace_momentum",
    "topk_blocks",
    "value_and_block_grad",
]
