"""What tests against stored points of other libraries share."""

import numpy as np


def close(found, wanted, tol=1e-5):
    """Of single precision, if not told otherwise; relative to the largest entry, since points of
    few steps from far out reach 40 and more."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tol * np.abs(wanted).max())
