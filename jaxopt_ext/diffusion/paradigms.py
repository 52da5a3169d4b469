"""Sampling in parallel over time: Picard iteration on a window of steps."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops
from ..core.closure import hoist
from .ddim import posterior_deviation
from .denoiser import AbstractDenoiser, Sample
from .sampler import AbstractSampler, Sampled, as_numbers, ends, prepare
from .schedules import AbstractSchedule, Times


def sample_parallel(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
    window: int,
    *,
    tol: float | Float[Array, ""] = 0.1,
    key: PRNGKeyArray | None = None,
    batch_ndim: int = 1,
    denoise: bool = False,
    mesh: Mesh | None = None,
    axis: str | None = None,
) -> Sampled:
    """Move noise to data in fewer rounds than steps, each a batched evaluation (ParaDiGMS).

    A sampler's steps $x_{j+1} = S_j(x_j)$, $j < N$, are a chain of which a window of p is iterated
    at once. With b steps done, and guesses of the points behind them, a round is

    $$x_{j+1} \\leftarrow S_b(x_b) + \\sum_{i=b+1}^{j} \\big(S_i(x_i) - x_i\\big),
    \\qquad b \\le j < b + p,$$

    and the window moves on over its first step, which is exact, and as many as have settled behind
    it without a gap,

    $$\\|x_{j+1}^{new} - x_{j+1}\\|^2 \\le \\tau^2 d\\, v_{j+1}, \\qquad
    v_{j+1} = \\sigma_{j+1}^2 (1 - e^{-2 h_j}),$$

    with d the numbers of a sample and v the variance of ancestral sampling, of every sample of the
    batch. Points that enter start from the last one known. Noise belongs to its step, not to the
    round: the draws are those of `sample` with the same key, which this equals as $\\tau$ falls.
    There are never more rounds than steps; `window = 1` is `sample`.

    Samplers that remember outputs iterate the pair of sample and memory, and each step takes the
    memory that the one before it left in the last round. Steps of different kinds, those that
    branch, take all branches here.

    The window may be spread over the devices of a mesh; each evaluates its part, and a round sends
    a few samples, not the window. Give a `mesh` and its `axis`; or, inside of
    `jax.shard_map`, the `axis` alone. Without either each device of a mesh runs its own.

    Works inside `jit`, `vmap`, which gives each sample a window of its own, and in forward mode;
    derivatives in reverse are those of `sample`.

    **Arguments:**

    - `model`, `sampler`, `schedule`, `times`, `x`, `key`, `denoise`: as for `sample`.
    - `window`: p, how many steps are tried at once; a multiple of the axis' devices.
    - `tol`: $\\tau$. With 0 a step is done when it no longer changes.
    - `batch_ndim`: how many leading axes of `x` count samples; they share the window.
    - `mesh`, `axis`: where the window is spread.

    **Returns:** a `Sampled` with the arrays `rounds`, model calls one after the other, and
    `evaluations`, those of all steps tried.

    **Raises:** what `sample` raises; `ValueError` if `window` is no multiple of the devices, `tol`
    is negative, `x` has fewer axes than `batch_ndim`, or a mesh comes without one of its axes.

    **Reference:** Shih, Belkhale, Ermon, Sadigh, Anari, Parallel Sampling of Diffusion Models,
    2023, arXiv:2305.16317.
    """
    x, key, times = prepare(model, sampler, schedule, times, x, key)
    checks.count("window", window)
    checks.nonnegative("tol", tol)
    checks.count("batch_ndim", batch_ndim, 0)
    for leaf in jax.tree.leaves(x):
        if leaf.ndim < batch_ndim:
            raise ValueError(f"x must have {batch_ndim} axes of samples, got shape {leaf.shape}")
    num_steps = len(times) - 1
    devices = _devices(mesh, axis)
    if window % devices:
        raise ValueError(f"window must be a multiple of {devices} devices, got {window}")
    here, there = ends(schedule, times)
    first, last = schedule.nodes(times[0]), schedule.nodes(times[-1])
    numbers = first, sampler.plan(schedule, times), posterior_deviation(here, there), last
    begin, table, deviation, last = as_numbers(numbers, x)
    value, rounds, tried = _run(
        hoist(model),
        sampler,
        x,
        begin,
        (table, deviation, jax.random.split(key, num_steps)),
        last,
        checks.scalar(tol),
        _Layout(min(window, math.ceil(num_steps / devices) * devices), batch_ndim, axis),
        mesh,
        denoise,
    )
    each = math.ceil(sampler.evaluations(num_steps) / num_steps)
    return Sampled(value, each * tried + denoise, rounds=rounds + denoise)


class _Layout(eqx.Module):
    """How the window lies on the devices."""

    window: int = eqx.field(static=True)
    batch_ndim: int = eqx.field(static=True)
    axis: str | None = eqx.field(static=True)

    def local(self) -> int:
        """How many steps each device tries."""
        return self.window // self.devices()

    def devices(self) -> int:
        return 1 if self.axis is None else jax.lax.axis_size(self.axis)

    def device(self) -> Int[Array, ""] | int:
        return 0 if self.axis is None else jax.lax.axis_index(self.axis)

    def pick(self, tree: PyTree[Array], slot: Int[Array, ""]) -> PyTree[Array]:
        """What lies in a slot, known to all."""
        local = jax.tree.map(lambda a: a[slot % self.local()], tree)
        if self.axis is None:
            return local
        mine = slot // self.local() == self.device()
        only = jax.tree.map(lambda a: jnp.where(mine, a, jnp.zeros_like(a)), local)
        return jax.lax.psum(only, self.axis)

    def rolled(self, tree: PyTree[Array]) -> PyTree[Array]:
        """What lies in the slot before, in a circle."""
        if self.axis is None:
            return jax.tree.map(lambda a: jnp.roll(a, 1, 0), tree)
        ring = [(i, (i + 1) % self.devices()) for i in range(self.devices())]

        def leaf(a):
            entering = jax.lax.ppermute(a[-1:], self.axis, ring)
            return jnp.concatenate([entering, a[:-1]])

        return jax.tree.map(leaf, tree)

    def anywhere(self, flag: Bool[Array, ""]) -> Bool[Array, ""]:
        """Whether the flag is up on any device of the whole mesh.

        Devices that talk take their turns together, also if those of another axis are done.
        """
        if self.axis is None:
            return flag
        axes = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
        return jax.lax.pmax(loops.vary(flag.astype(int), axes), tuple(sorted(axes, key=str))) > 0

    def prefix_sums(self, parts: Sample, slots: Int[Array, " p"], begin: Int[Array, ""]) -> Sample:
        """Sums from slot `begin` on, in a circle, up to each slot; by pairs, for rounding."""
        early = slots >= begin

        def leaf(a):
            mask = early.reshape(-1, *[1] * (a.ndim - 1))
            split = jnp.stack([jnp.where(mask, a, 0), jnp.where(mask, 0, a)])
            sums = jax.lax.associative_scan(jnp.add, split, axis=1)
            if self.axis is None:
                total = sums[0, -1]
            else:
                totals = jax.lax.all_gather(sums[None, :, -1], self.axis, tiled=True)
                before = jnp.arange(self.devices()) < self.device()
                before = before.reshape(-1, *[1] * (totals.ndim - 1))
                sums += jnp.sum(jnp.where(before, totals, 0), 0)[:, None]
                total = jnp.sum(totals[:, 0], 0)
            return jnp.where(mask, sums[0], total + sums[1])

        return jax.tree.map(leaf, parts)

    def squares(self, a: Sample) -> Float[Array, "p *n"]:
        """Mean squares of samples."""
        leaves = jax.tree.leaves(a)
        axes = lambda a: tuple(range(1 + self.batch_ndim, a.ndim))
        total = [jnp.sum(a**2, axes(a)) for a in leaves]
        return sum(total[1:], total[0]) / sum(
            math.prod(a.shape[1 + self.batch_ndim :]) for a in leaves
        )


def _devices(mesh: Mesh | None, axis: str | None) -> int:
    if mesh is None:
        return 1 if axis is None else jax.lax.axis_size(axis)
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of the mesh's {mesh.axis_names}, got {axis!r}")
    return mesh.shape[axis]


@eqx.filter_jit
def _run(model, sampler, x, begin, steps, last, tol, layout, mesh, denoise):
    arrays, static = eqx.partition((model, x, begin, steps, tol), eqx.is_array)

    def run(arrays):
        model, x, begin, steps, tol = eqx.combine(arrays, static)
        return _picard(model, sampler, x, begin, steps, tol, layout)

    if mesh is not None:
        whole = PartitionSpec()
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(whole,), out_specs=whole, axis_names={layout.axis}
        )
    x, rounds, tried = run(arrays)
    return model.data(x, last) if denoise else x, rounds, tried


def _picard(model, sampler, x, begin, steps, tol, layout: _Layout):
    """The point behind the last step, the number of rounds, and of steps tried in them.

    Step j has the slot j mod p, which holds the guess of the point behind it. So no point moves
    when the window does: freed slots serve the steps that enter.
    """
    _, deviation, _ = steps
    num_steps, window = len(deviation), layout.window
    slots = layout.device() * layout.local() + jnp.arange(layout.local())

    def one(point, step):
        row, _, key = step
        new = sampler.step(model, *point, row, key)
        return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, point)

    def in_order(mask, a, b):
        return jax.tree.map(lambda a, b: jnp.where(_like(mask, a), a, b), a, b)

    def round_(carry):
        _, done, known, guess, rounds, tried = carry
        offset = (slots - done) % window
        size = jnp.minimum(window, num_steps - done)
        step = jax.tree.map(lambda a: a[jnp.minimum(done + offset, num_steps - 1)], steps)
        fill = jax.tree.map(lambda a: jnp.broadcast_to(a, (layout.local(), *a.shape)), known)
        place = in_order(offset == 0, fill, layout.rolled(guess))
        moved, memory = jax.vmap(one)(place, step)
        # The first step is taken whole, so that it is the sequential one to the last digit.
        change = in_order(offset == 0, moved, jax.tree.map(jnp.subtract, moved, place[0]))
        found = layout.prefix_sums(change, slots, done % window)
        gaps = layout.squares(jax.tree.map(jnp.subtract, found, guess[0]))
        bound = (tol * step[1]) ** 2
        settled = jnp.all(gaps <= _like(bound, gaps), tuple(range(1, gaps.ndim))) & (step[1] > 0)
        gap = jnp.min(jnp.where(settled, window, offset))
        if layout.axis is not None:
            gap = jax.lax.pmin(gap, layout.axis)
        stride = jnp.minimum(gap + 1, size)
        new = found, memory
        known = layout.pick(new, (done + stride - 1) % window)
        newest = layout.pick(new, (done + size - 1) % window)
        fill = jax.tree.map(lambda a: jnp.broadcast_to(a, (layout.local(), *a.shape)), newest)
        guess = in_order(offset < stride, fill, new)
        new = done + stride, known, guess, rounds + 1, tried + size
        new = in_order(done < num_steps, new, carry[1:])
        return layout.anywhere(new[0] < num_steps), *new

    known: tuple[Sample, Any] = x, sampler.start(model, x, begin)
    known = jax.tree.map(jnp.asarray, known)
    guess = jax.tree.map(lambda a: jnp.broadcast_to(a, (layout.local(), *a.shape)), known)
    zero = jnp.zeros((), int)
    _, _, (x, _), _, rounds, tried = loops.while_loop(
        lambda carry: carry[0], round_, (jnp.array(True), zero, known, guess, zero, zero)
    )
    return x, rounds, tried


def _like(mask: Array, a: Array) -> Array:
    return mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim))
