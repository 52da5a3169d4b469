"""The programs of the README do what it says."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def names():
    space = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, space)
    return space


def test_the_penalty_has_a_derivative(names):
    rng = np.random.default_rng(0)
    X, y, X_val, y_val = (jnp.asarray(rng.normal(size=s)) for s in [(20, 5), 20, (10, 5), 10])
    score = lambda lam: names["validation_loss"](lam, X, y, X_val, y_val)
    slope = names["hypergradient"](0.1, X, y, X_val, y_val)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, (score(0.101) - score(0.099)) / 0.002, rtol=1e-2)


def test_the_layer_has_a_gradient(names):
    leaves = jax.tree.leaves(names["slope"])
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in leaves)


def test_the_nodes_agree_on_the_solution(names):
    wanted = np.tile(np.arange(5.0), (8, 1))
    np.testing.assert_allclose(names["result"].params, wanted, atol=1e-3)


def test_the_solver_solves(names, capsys):
    import jaxopt_ext as jxt

    solution = jxt.solve(names["bowl"], names["Heavyball"](), jnp.zeros(3))
    assert str(solution).startswith("Converged")
    np.testing.assert_allclose(solution.value, 1, atol=1e-5)
