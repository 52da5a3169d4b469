"""Exact inversion by BDIA against DDIM's, and its error as a sampler."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_ext import diffusion

from .. import Outcome
from . import _bed

CLAIM = (
    "With a trained denoiser of digits, 50 steps and single precision, an image that BDIA with "
    "gamma = 1 encodes and decodes comes back with a root-mean-square error below 1e-4, at most a "
    "hundredth of that of DDIM's inversion (each of 5 batches of 100 held-out images); and on an "
    "exact mixture with 20 evaluations BDIA's sampling error is at most 0.6 times DDIM's with "
    "gamma = 0.5 and at most 0.2 times with gamma = 1 (64 starts, each of 5 seeds)."
)
SETTINGS = (
    "For each method the grid of times (uniform, quadratic, or uniform in the logarithm of the "
    "signal-to-noise ratio) with the least error on 200 training images, or on seeds 100 and 101; "
    "gammas are the paper's. Reported: test images, and seeds 0 to 4."
)

GRIDS = (diffusion.uniform_time, diffusion.quadratic_time, diffusion.uniform_log_snr)
SCHEDULE = diffusion.VariancePreserving(start=0.9, end=0.01)
INVERTED = {
    "DDIM inversion": diffusion.DDIMInversion(),
    "EDICT": diffusion.EDICT(),
    "BDIA, gamma 0.96": diffusion.BDIA(0.96),
    "BDIA, gamma 1": diffusion.BDIA(1.0),
}
SAMPLERS = {
    "DDIM": diffusion.DDIM(),
    "BDIA, gamma 0.5": diffusion.BDIA(0.5),
    "BDIA, gamma 1": diffusion.BDIA(1.0),
}
PAIRS = ((3, 8), (1, 7), (9, 4), (5, 6), (0, 8))


class Images(diffusion.AbstractDenoiser):
    """A denoiser of vectors, for images."""

    flat: diffusion.AbstractDenoiser

    def data(self, x, node):
        return self.flat.data(x.reshape(len(x), -1), node).reshape(x.shape)

    def noise(self, x, node):
        return self.flat.noise(x.reshape(len(x), -1), node).reshape(x.shape)


def best(error):
    """The grid with the least error."""
    return min(GRIDS, key=error)


def round_trips(images):
    """Mean squared errors of reconstruction for each image, in 5 batches, and the grids."""
    teacher, errors, grids = diffusion.digits_teacher(), {}, {}
    for name, sampler in INVERTED.items():

        def error(grid, x, sampler=sampler):
            times, x = grid(SCHEDULE, 50), jnp.asarray(x)
            code = diffusion.encode(teacher, sampler, SCHEDULE, times, x)
            back = diffusion.decode(teacher, sampler, SCHEDULE, times, code).value
            return np.asarray(jnp.mean((back - x) ** 2, (1, 2)))

        grids[name] = best(lambda grid, error=error: error(grid, images.train[:200]).mean())
        errors[name] = error(grids[name], images.test[:500]).reshape(5, 100)
    return errors, grids


def edits(images, name, grid):
    """From one class to another by ideal denoisers of the classes: the share that the classifier
    takes for the second, and mean changes of pixels where the classes agree and elsewhere."""
    features, times = diffusion.digit_features(), grid(SCHEDULE, 50)
    of = lambda label: images.train[images.train_labels == label]
    points = lambda label: jnp.asarray(of(label).reshape(-1, 64))
    model = lambda label: Images(diffusion.IdealDenoiser(points(label), 0.3))
    found = []
    for source, target in PAIRS:
        x = jnp.asarray(images.test[images.test_labels == source][:50])
        code = diffusion.encode(model(source), INVERTED[name], SCHEDULE, times, x)
        out = diffusion.decode(model(target), INVERTED[name], SCHEDULE, times, code).value
        agree = np.abs(of(source).mean(0) - of(target).mean(0)) < 0.15
        change = np.abs(np.asarray(out) - np.asarray(x)).mean(0)
        hit = np.mean(np.asarray(jnp.argmax(features.logits(out), 1)) == target)
        found.append((hit, change[agree].mean(), change[~agree].mean()))
    return np.mean(found, 0)


def sampling():
    """Errors with 20 evaluations for each seed."""
    model, errors = _bed.mixture().denoiser(), {}
    starts = [_bed.starts(seed) for seed in (100, 101, 0, 1, 2, 3, 4)]
    wanted = np.split(_bed.reference(jnp.concatenate(starts)), len(starts))
    for name, sampler in SAMPLERS.items():

        def error(grid, sampler=sampler):
            times = grid(_bed.SCHEDULE, 20)
            x = jnp.concatenate(starts)
            out = diffusion.sample(model, sampler, _bed.SCHEDULE, times, x)
            found = np.split(np.asarray(out.value), len(starts))
            return np.array([_bed.rms(f, w) for f, w in zip(found, wanted, strict=True)])

        errors[name] = error(best(lambda grid, error=error: error(grid)[:2].mean()))[2:]
    return errors


def run() -> Outcome:
    images = diffusion.digits()
    squares, grids = round_trips(images)
    back = {name: np.sqrt(square.mean(1)) for name, square in squares.items()}
    with jax.enable_x64(True):
        errors = sampling()
    table = [
        {
            "part": "round trip",
            "method": name,
            "mean": float(e.mean()),
            "largest": float(e.max()),
            "median image": float(np.median(np.sqrt(squares[name]))),
            "above 1e-4, of 500": int(np.sum(squares[name] > 1e-8)),
        }
        for name, e in back.items()
    ] + [
        {"part": "sampling", "method": name, "mean": float(e.mean()), "largest": float(e.max())}
        for name, e in errors.items()
    ]
    ours, ddim = back["BDIA, gamma 1"], back["DDIM inversion"]
    holds = bool(
        np.all(ours < 1e-4)
        and np.all(ours <= ddim / 100)
        and np.all(errors["BDIA, gamma 0.5"] <= 0.6 * errors["DDIM"])
        and np.all(errors["BDIA, gamma 1"] <= 0.2 * errors["DDIM"])
    )
    told = []
    for name in INVERTED:
        hit, kept, moved = edits(images, name, grids[name])
        told.append(f"{name} {hit:.0%}, {kept:.2g} and {moved:.2g}")
    return Outcome(
        table,
        holds,
        "Means and largest of batches or seeds. One test image of 500 does not come back: from it "
        "the trained network's flow towards the noise runs away, the codes of DDIM and BDIA are "
        "hundreds of times too large, and what rounding adds on the way is lost. EDICT with 50 "
        "equal steps keeps it, with 100 or on the other grids it does not either (tried "
        "afterwards). EDICT has twice the "
        "evaluations. Edited from one class to another by exact denoisers of "
        "the classes, 5 pairs: the share that a classifier takes for the second class, the mean "
        "change of pixels where the classes agree and elsewhere: "
        f"{'; '.join(told)}. An exact inversion edits no better than a rough one here, and gamma "
        "= 1 a little worse: when the condition changes, the difference of the two points that it "
        "keeps is not damped. On a variance-exploding schedule from 40 the round trip of gamma = 1 "
        "has an error of 4e-4 (tried on test images): rounding is relative to the noise there.",
        why="ours: from one of the 500 images the flow of our small network runs away, and the "
        "code with it; the other 499 come back with errors below 1e-4",
    )
