"""Posterior sampling of latents against matrices, differences and the linear theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion

VP = diffusion.VariancePreserving()
TWO = np.array([0.6, 0.5])
RNG = np.random.default_rng(0)
D = np.linalg.qr(RNG.normal(size=(12, 3)))[0]
A = np.linalg.qr(RNG.normal(size=(12, 5)))[0].T
LINEAR = diffusion.Autoencoder(lambda x: x @ jnp.asarray(D), lambda z: jnp.asarray(D) @ z)
ROWS = diffusion.LinearMeasurement(A)
CURVED = diffusion.Autoencoder(
    lambda x: jnp.tanh(x @ jnp.asarray(D)), lambda z: jnp.sin(jnp.asarray(D) @ z)
)
NORMAL = diffusion.Denoiser(lambda x, node: node.alpha * x, diffusion.Data())
Y = RNG.normal(size=5)


def run(guided, x, times=TWO, model=NORMAL, **options):
    return diffusion.posterior_sample(
        model, guided, VP, times, jnp.asarray(x), key=jax.random.key(0), **options
    )


def test_gluing_in_the_linear_case():
    """$\\|E(X^+) - z_0\\| = \\|D^T A^T (A D z_0 - y)\\|$."""
    z = RNG.normal(size=3)
    node = VP.nodes(0.5)
    guided = lambda **weights: diffusion.PSLD(ROWS, jnp.asarray(Y), LINEAR, **weights)
    gap = A @ D @ z - Y
    cases = [
        (guided(omega=0.0, gamma=2.0), 2 * np.linalg.norm(D.T @ A.T @ gap)),
        (guided(omega=3.0, gamma=0.0), 3 * np.linalg.norm(gap)),
        (guided(omega=0.0, gamma=2.0, squared=True), 2 * np.sum((D.T @ A.T @ gap) ** 2)),
        # Latents are what their images are encoded as, where nothing is imposed.
        (guided(omega=0.0, gamma=1.0, gluing=diffusion.Unconstrained()), 0.0),
    ]
    for case, wanted in cases:
        found = case.misses(jnp.asarray(z), jnp.asarray(Y), node)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def miss(z, omega, gamma, squared, glued):
    (_, a, s) = VP.nodes(TWO[0])
    data = a * z / (a**2 + s**2)
    image = np.sin(D @ data)
    gap = A @ image - Y
    move = np.tanh((image - A.T @ gap * glued) @ D) - data
    power = 2 if squared else 1
    return omega * np.linalg.norm(gap) ** power + gamma * np.linalg.norm(move) ** power


CASES = {
    "norms": dict(squared=False),
    "squares": dict(squared=True),
    "nothing glued": dict(squared=False, gluing=diffusion.Unconstrained()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_by_differences(case):
    options = CASES[case]
    guided = diffusion.PSLD(ROWS, jnp.asarray(Y), CURVED, 0.4, 0.7, diffusion.DDIM(), **options)
    z = RNG.normal(size=(2, 3))
    (_, a, s), (_, b, r) = VP.nodes(TWO[0]), VP.nodes(TWO[1])
    glued = float("gluing" not in options)
    wanted = []
    for row in z:
        value = lambda z: miss(z, 0.4, 0.7, options["squared"], glued)
        slope = [(value(row + 1e-6 * e) - value(row - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
        data = a * row / (a**2 + s**2)
        latent = b * data + r / s * (row - a * data) - np.array(slope)
        wanted.append(np.sin(D @ latent))
    out = run(guided, z, denoise=False)
    np.testing.assert_allclose(out.value, wanted, rtol=1e-6, atol=1e-8)
    assert out.evaluations == 1


def test_both_weights_zero_is_the_sampler_and_images_come_out():
    guided = diffusion.PSLD(ROWS, jnp.asarray(Y), CURVED, 0.0, 0.0)
    z = RNG.normal(size=(4, 3))
    plain = diffusion.sample(
        NORMAL, diffusion.DDIM(1.0), VP, TWO, jnp.asarray(z), key=jax.random.key(0), denoise=True
    )
    out = run(guided, z)
    assert out.evaluations == plain.evaluations == 2
    assert out.value.shape == (4, 12)
    seen = np.arange(12) < 5
    pasted = diffusion.PSLD(
        diffusion.Inpainting(seen),
        jnp.ones(12),
        CURVED,
        0.0,
        0.0,
        diffusion.DDIM(),
        final=diffusion.Projection(),
    )
    out = run(pasted, z)
    np.testing.assert_allclose(out.value[:, seen], 1.0, rtol=1e-12)
    quiet = diffusion.sample(NORMAL, diffusion.DDIM(), VP, TWO, jnp.asarray(z), denoise=True).value
    wanted = np.sin(quiet @ D.T)
    np.testing.assert_allclose(out.value[:, ~seen], wanted[:, ~seen], rtol=1e-9)


def test_latents_of_linear_data_are_recovered():
    """More rows than latents, an exact model, squares: the theory's case."""
    truth = RNG.normal(size=(16, 3))
    y = jnp.asarray(truth @ (A @ D).T)
    z = RNG.normal(size=(16, 3))
    guided = lambda omega, gamma: diffusion.PSLD(
        ROWS, y, LINEAR, omega, gamma, diffusion.DDIM(), squared=True
    )
    times = diffusion.uniform_time(VP, 300)

    def error(omega, gamma):
        gap = run(guided(omega, gamma), z, times).value - truth @ D.T
        return np.median(np.linalg.norm(gap, axis=1) / np.linalg.norm(truth, axis=1))

    assert error(0.5, 0.5) < 0.02
    assert error(1.0, 0.0) < 0.02
    assert error(0.0, 0.0) > 0.5


def test_no_gap_no_gradient():
    z = np.zeros((1, 3))
    out = run(diffusion.PSLD(ROWS, jnp.zeros(5), LINEAR, sampler=diffusion.DDIM()), z)
    np.testing.assert_array_equal(out.value, 0)


BAD = {
    "omega": (lambda: diffusion.PSLD(ROWS, Y, LINEAR, -1.0), ValueError, "omega"),
    "gamma": (lambda: diffusion.PSLD(ROWS, Y, LINEAR, gamma=-1.0), ValueError, "gamma"),
    "autoencoder": (lambda: diffusion.PSLD(ROWS, Y, None), TypeError, "autoencoder"),
    "gluing": (lambda: diffusion.PSLD(ROWS, Y, LINEAR, gluing=None), TypeError, "gluing"),
    "functions": (lambda: diffusion.Autoencoder(None, lambda z: z), TypeError, "encode"),
    "y": (lambda: run(diffusion.PSLD(ROWS, Y[:4], LINEAR), np.zeros((2, 3))), ValueError, "y must"),
    "latents": (
        lambda: run(diffusion.PSLD(ROWS, Y, LINEAR), np.zeros((2, 4))),
        ValueError,
        "does not fit samples",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    make, error, match = BAD[case]
    with pytest.raises(error, match=match):
        make()
