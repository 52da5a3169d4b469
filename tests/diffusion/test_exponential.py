"""Exponential integrators' numbers against quadrature and polynomials."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import quad

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import dpm_solver_pp, exponential


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_phi_functions(order):
    z = np.array([-8.0, -1.1, -0.9, -1e-3, 0.0, 1e-9, 1e-3, 0.5, 1.0, 3.0])

    def exact(z):
        if order == 0:
            return mpmath.exp(z)
        return mpmath.quad(
            lambda tau: mpmath.exp((1 - tau) * z) * tau ** (order - 1) / math.factorial(order - 1),
            [0, 1],
        )

    wanted = [float(exact(mpmath.mpf(float(v)))) for v in z]
    np.testing.assert_allclose(exponential.phi(order, z), wanted, rtol=2e-13)


def test_derivatives_are_exact_for_polynomials():
    places = np.array([0.0, -0.7, -1.9, 1.0])
    rows = exponential.derivatives(places)
    for degree in range(4):
        found = rows @ places**degree
        wanted = [math.factorial(degree) if k == degree else 0 for k in range(4)]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("form", [exponential.NoiseForm(), exponential.DataForm()])
def test_a_step_integrates_polynomials_in_the_output(form):
    schedule = diffusion.VariancePreserving()
    here, there = (schedule.nodes(t) for t in (0.7, 0.5))
    first, last = exponential.log_snr(here), exponential.log_snr(there)
    output = lambda l: 0.3 - 0.8 * (l - first) + 0.5 * (l - first) ** 2
    keep, scale, z = form.linear(here, there)
    h = last - first
    rows = exponential.derivatives([0.0, -0.5, -1.2])
    phis = [exponential.phi(k + 1, z) for k in range(3)]
    weights = exponential.weigh(scale, phis, rows)
    found = 1.7 * keep + sum(
        w * output(first + r * h) for w, r in zip(weights, (0.0, -0.5, -1.2), strict=True)
    )
    if isinstance(form, exponential.NoiseForm):
        integral = quad(lambda l: math.exp(-l) * output(l), first, last)[0]
        wanted = 1.7 * there.alpha / here.alpha - there.alpha * integral
    else:
        integral = quad(lambda l: math.exp(l) * output(l), first, last)[0]
        wanted = 1.7 * there.sigma / here.sigma + there.sigma * integral
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3])
def test_phi_functions_of_a_program_keep_its_precision(dtype, order):
    z = np.array([-8.0, -1.1, -0.9, -1e-3, 0.0, 1e-3, 0.5, 3.0])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda z: exponential.phi(order, z))))(
        jnp.asarray(z, dtype)
    )
    assert value.dtype == slope.dtype == dtype
    rtol = 2e-6 if dtype == jnp.float32 else 1e-12
    np.testing.assert_allclose(value, exponential.phi(order, z), rtol=rtol)
    numeric = (exponential.phi(order, z + 1e-5) - exponential.phi(order, z - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, numeric, rtol=max(1e2 * rtol, 1e-8))


def test_derivatives_of_many_steps_are_those_of_each():
    places = np.array([[0.0, -1.0, -2.5], [0.0, 0.3, 0.9]])
    each = [exponential.derivatives(p) for p in places]
    np.testing.assert_allclose(exponential.derivatives(places), each, rtol=1e-13)


@pytest.mark.parametrize(
    "form", [exponential.NoiseForm(), exponential.DataForm(), dpm_solver_pp._NoisyDataForm()]
)
def test_three_ways_to_say_a_form_agree(form):
    schedule = diffusion.VariancePreserving()
    here, there = (schedule.nodes(np.array(t)) for t in ([0.9, 0.4, 0.1], [0.7, 0.3, 0.09]))
    keep, scale, z = form.linear(here, there)
    weight = scale * exponential.phi(1, z)
    np.testing.assert_allclose(form.constant(here, there), (keep, weight), rtol=1e-12)
    (before, first), (after, last) = form.variables(here), form.variables(there)
    np.testing.assert_allclose(after / before, keep, rtol=1e-12)
    np.testing.assert_allclose(after * (last - first), weight, rtol=1e-10)
