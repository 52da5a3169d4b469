"""Explicit Runge-Kutta methods against loops where the level of noise is the time."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion

SCHEDULE = diffusion.VarianceExploding(start=3.0, end=0.1)
TIMES = np.array([3.0, 1.7, 0.8, 0.4, 0.1])
X = np.random.default_rng(0).normal(size=(3, 2))
FORMS = {"noise": diffusion.NoiseForm(), "data": diffusion.DataForm()}


def network(x, node):
    return jnp.sin(x) + node.t


def midpoint(slope, s, t, y):
    middle = (s + t) / 2
    return y + (t - s) * slope(middle, y + (middle - s) * slope(s, y))


def heun(slope, s, t, y):
    first = slope(s, y)
    return y + (t - s) / 2 * (first + slope(t, y + (t - s) * first))


def rk4(slope, s, t, y):
    h, middle = t - s, (s + t) / 2
    k1 = slope(s, y)
    k2 = slope(middle, y + h / 2 * k1)
    k3 = slope(middle, y + h / 2 * k2)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(t, y + h * k3))


LOOPS = {diffusion.Midpoint: midpoint, diffusion.Heun: heun, diffusion.RK4: rk4}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", LOOPS)
def test_steps_equal_loops(method, name):
    predicts = {"noise": diffusion.Noise(), "data": diffusion.Data()}[name]
    model = diffusion.Denoiser(network, predicts)
    found = diffusion.sample(model, method(FORMS[name]), SCHEDULE, TIMES, jnp.asarray(X))
    y, places = (X, TIMES) if name == "noise" else (X / TIMES[0], 1 / TIMES)
    slope = {
        "noise": lambda rho, y: np.sin(y) + rho,
        "data": lambda r, y: np.sin(y / r) + 1 / r,
    }[name]
    for s, t in itertools.pairwise(places):
        y = LOOPS[method](slope, s, t, y)
    wanted = y if name == "noise" else y * TIMES[-1]
    np.testing.assert_allclose(found.value, wanted, rtol=1e-12)
    assert found.evaluations == 4 * len(method().tableau.weights)


@pytest.mark.parametrize("name", FORMS)
def test_euler_is_ddim(name):
    schedule = diffusion.VariancePreserving()
    exact = diffusion.GaussianMixture(jnp.array([[-2.0, 0.0], [2.0, 1.0]]), jnp.array([0.3, 0.4]))
    times = diffusion.uniform_time(schedule, 9)
    run = lambda sampler: (
        diffusion.sample(exact.denoiser(), sampler, schedule, times, jnp.asarray(X)).value
    )
    np.testing.assert_allclose(run(diffusion.Euler(FORMS[name])), run(diffusion.DDIM()), rtol=1e-10)


def test_stages_of_other_schedules_lie_evenly_in_the_ratio():
    schedule = diffusion.Cosine()
    times = diffusion.uniform_time(schedule, 6)
    for form in FORMS.values():
        rows = diffusion.RK4(form).plan(schedule, times)
        _, rho = form.variables(rows.nodes)
        middle = (rho[:, 0] + rho[:, 3]) / 2
        np.testing.assert_allclose(rho[:, 1], middle, rtol=1e-9)
        np.testing.assert_allclose(rho[:, 2], middle, rtol=1e-9)
        np.testing.assert_array_equal(rows.nodes.t[:, 3], times[1:])
        np.testing.assert_array_equal(rows.nodes.t[:, 0], times[:-1])


def test_an_unknown_form_is_refused():
    with pytest.raises(TypeError, match="DataForm"):
        diffusion.RK4("noise")
    assert not diffusion.RK4().stochastic
    with pytest.raises(ValueError, match="within"):
        diffusion.sample(
            diffusion.Denoiser(network), diffusion.RK4(), SCHEDULE, [1.0, 0.0], jnp.asarray(X)
        )
