"""Pictures read back: what the artists hold is what went in."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import jaxopt_ext as jxt
from jaxopt_ext import distributed, plots

mpl.use("Agg")
import matplotlib.pyplot as plt

RANDOM = np.random.default_rng(0)
GRAPH = distributed.ring(5)
DRAWN = {
    "convergence": lambda ax: plots.convergence({"a": [1.0, 0.1]}, ax=ax),
    "coefficients_path": lambda ax: plots.coefficients_path(np.eye(3), [1, 2, 3], ax=ax),
    "network": lambda ax: plots.network(GRAPH, np.arange(5.0), ax=ax),
    "images": lambda ax: plots.samples(np.zeros((1, 4, 4)), ax=ax),
    "cloud": lambda ax: plots.samples(np.zeros((4, 2)), ax=ax),
    "trajectories": lambda ax: plots.samples(np.zeros((3, 4, 2)), ax=ax),
    "heatmap": lambda ax: plots.heatmap(np.eye(3), ax=ax),
}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No picture is shown, warns when it is rendered, or changes a setting."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("shown"))
    settings = dict(mpl.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")
    assert dict(mpl.rcParams) == settings


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_given_axes_are_used_and_no_figure_is_made(draw):
    figure, (ax, current) = plt.subplots(1, 2)
    plt.sca(current)
    assert np.asarray(draw(ax)).item() is ax
    assert plt.get_fignums() == [figure.number]
    assert plt.gca() is current
    assert not current.has_data()
    assert ax.has_data()


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_without_axes_one_figure_is_made(draw):
    ax = np.asarray(draw(None)).item()
    assert plt.get_fignums() == [ax.figure.number]


@pytest.mark.parametrize("name", DRAWN)
def test_without_matplotlib_the_extra_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"jaxopt-ext\[plots\]"):
        DRAWN[name](None)


def test_import_leaves_matplotlib_alone():
    code = "import sys, jaxopt_ext.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_convergence_of_solutions_ends_with_the_last_step():
    def solve(scale):
        problem = jxt.Smooth(lambda x: jnp.sum(jnp.array([1.0, scale]) * (x - 1) ** 2))
        solver = jxt.minimize.GradientDescent(tol=1e-4, max_steps=60)
        return jxt.solve(problem, solver, jnp.zeros(2), trace=True)

    batch = jax.jit(jax.vmap(solve))(jnp.array([1.5, 3.0, 8.0]))
    assert len(set(batch.steps.tolist())) > 1
    assert int(batch.steps.max()) < 60
    one = jax.tree.map(lambda a: a[1], batch)
    ax = plots.convergence({"one": one, "all": batch, "array": jnp.array([1.0, 0.1])})
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "error")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "all", "array"]
    lines = ax.get_lines()
    assert len(lines) == 5
    for line, i in zip(lines[:4], [1, 0, 1, 2], strict=True):
        steps = int(batch.steps[i])
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, steps + 1))
        np.testing.assert_array_equal(line.get_ydata(), batch.trace[i, :steps])
        assert line.get_ydata()[-1] == batch.residual[i]
    colours = [line.get_color() for line in lines]
    assert colours[1] == colours[2] == colours[3]
    assert len(set(colours)) == 3


def test_convergence_of_a_history():
    ax = plots.convergence(jnp.array([1.0, 0.0, jnp.nan]), every=10, xscale="log", ylabel="gap")
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30])
    assert (ax.get_xscale(), ax.get_ylabel(), ax.get_legend()) == ("log", "gap", None)


def test_coefficients_path():
    coefficients, penalties = RANDOM.normal(size=(3, 4)).astype(np.float32), [1.0, 0.01, 0.1]
    ax = plots.coefficients_path(jnp.asarray(coefficients), penalties, labels="abcd")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list("abcd")
    assert len(ax.get_lines()) == 4
    for j, line in enumerate(ax.get_lines()):
        np.testing.assert_array_equal(line.get_xdata(), [0.01, 0.1, 1.0])
        np.testing.assert_array_equal(line.get_ydata(), coefficients[[1, 2, 0], j])


def test_network():
    values = np.array([1.0, np.nan, 3.0, 4.0, -1.0])
    place = nx.circular_layout(GRAPH)
    ax = plots.network(GRAPH, jnp.asarray(values), positions=place, label="loss")
    edges, nodes = ax.collections
    np.testing.assert_array_equal(nodes.get_array().filled(np.nan), values)
    np.testing.assert_allclose(nodes.get_offsets(), [place[i] for i in range(5)])
    expected = [[place[i], place[j]] for i, j in GRAPH.edges]
    np.testing.assert_allclose(edges.get_segments(), expected)
    ax.figure.canvas.draw()
    np.testing.assert_allclose(nodes.get_facecolors()[1][:3], to_rgb("lightgray"))
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "loss"
    assert bar.get_ylim() == (-1, 4)


@pytest.mark.parametrize("n", [1, 2, 210])
def test_network_of_other_sizes_is_laid_out_the_same_way_twice(n):
    graph = distributed.path(n)
    first, second = (plots.network(graph, np.full(n, np.nan)).collections[1] for _ in range(2))
    np.testing.assert_array_equal(first.get_offsets(), second.get_offsets())
    assert len(np.unique(first.get_offsets(), axis=0)) == n


def test_gray_images_share_a_scale():
    x = RANDOM.normal(size=(5, 3, 4, 1))
    grid = plots.samples(jnp.asarray(x), columns=2)
    assert grid.shape == (3, 2)
    for image, ax in zip(x[..., 0], grid.flat, strict=False):
        (artist,) = ax.get_images()
        np.testing.assert_array_equal(artist.get_array(), image)
        assert artist.get_clim() == (x.min(), x.max())
    assert not grid[2, 1].has_data()
    assert not grid[2, 1].axison
    assert plots.samples(x, limits=(-1, 2))[0, 0].get_images()[0].get_clim() == (-1, 2)


def test_colours_are_scaled_from_the_limits():
    x = RANDOM.uniform(-1.5, 1, size=(2, 3, 4, 3)).astype(np.float32)
    axes = plt.subplots(1, 3)[1]
    assert (plots.samples(x, limits=(-1, 1), ax=axes) == axes).all()
    shown = np.stack([ax.get_images()[0].get_array() for ax in axes[:2]])
    np.testing.assert_allclose(shown, np.clip((x + 1) / 2, 0, 1))
    assert not axes[2].has_data()
    plots.samples(np.ones((1, 2, 3, 3)))  # of one colour: no scale to find


def test_cloud():
    x = RANDOM.normal(size=(20, 2))
    ax = plots.samples(jnp.asarray(x))
    (points,) = ax.collections
    np.testing.assert_array_equal(points.get_offsets(), x)
    assert ax.get_aspect() == 1


def test_trajectories():
    x = RANDOM.normal(size=(6, 3, 2)) + 7
    ax = plots.samples(jnp.asarray(x, jnp.bfloat16))
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    paths, start, end = ax.collections
    np.testing.assert_array_equal(paths.get_segments(), np.swapaxes(x, 0, 1))
    np.testing.assert_array_equal(start.get_offsets(), x[0])
    np.testing.assert_array_equal(end.get_offsets(), x[-1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["start", "end"]
    low, high = ax.get_xlim()  # all of every path is inside
    assert low < x[..., 0].min() < x[..., 0].max() < high


def test_heatmap():
    matrix = np.array([[0.5, 2.0, np.nan], [1.0, 0.12345, 1.5]])
    rows, columns = ["mean", "median"], ["none", "sign", "noise"]
    ax = plots.heatmap(jnp.asarray(matrix), rows=rows, columns=columns)
    (image,) = ax.get_images()
    np.testing.assert_array_equal(image.get_array().filled(np.nan), matrix)
    assert [text.get_text() for text in ax.get_yticklabels()] == rows
    assert [text.get_text() for text in ax.get_xticklabels()] == columns
    numbers = {text.get_position(): text.get_text() for text in ax.texts}
    assert numbers[1, 0] == "2"
    assert float(numbers[1, 1]) == pytest.approx(matrix[1, 1], rel=1e-2)
    assert numbers[2, 0] == "nan"
    ink = {text.get_position(): text.get_color() for text in ax.texts}
    # Viridis goes from a dark blue to a bright yellow; paper is white.
    assert (ink[1, 1], ink[1, 0], ink[2, 0]) == ("white", "black", "black")


def test_heatmap_of_counts_has_all_digits():
    ax = plots.heatmap(np.array([[12345, 0], [1, 67890]]))
    assert [text.get_text() for text in ax.texts] == ["12345", "0", "1", "67890"]
    ax = plots.heatmap(np.eye(2, dtype=bool), format="04d")
    assert [text.get_text() for text in ax.texts] == ["0001", "0000", "0000", "0001"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.convergence(np.ones((2, 3))), r"\(2, 3\)"),
        (lambda: plots.convergence({"scalar": 1.0}), r"scalar .*\(\)"),
        (lambda: plots.convergence([1.0], every=0), "every"),
        (lambda: plots.coefficients_path(np.ones(3), np.ones(3)), r"\(3,\) and \(3,\)"),
        (lambda: plots.coefficients_path(np.ones((3, 2)), np.ones(2)), r"\(3, 2\) and \(2,\)"),
        (lambda: plots.coefficients_path(np.ones((2, 2)), [0.0, 1.0]), "positive"),
        (lambda: plots.coefficients_path(np.ones((2, 2)), [1, 2], labels="a"), "2 labels, got 1"),
        (lambda: plots.network(GRAPH, np.ones((5, 1))), r"\(5, 1\)"),
        (lambda: plots.network(GRAPH, np.ones(5), positions={0: (0, 0)}), r"\[1, 2, 3, 4\]"),
        (lambda: plots.network(nx.empty_graph(2), np.ones(2)), "disconnected"),
        (lambda: plots.samples(np.ones(3)), r"\(3,\)"),
        (lambda: plots.samples(np.ones((2, 3))), r"\(2, 3\)"),
        (lambda: plots.samples(np.ones((2, 3, 4, 5))), r"\(2, 3, 4, 5\)"),
        (lambda: plots.samples(np.ones((0, 3, 4))), r"\(0, 3, 4\)"),
        (lambda: plots.samples(np.ones((0, 3, 2))), r"\(0, 3, 2\)"),
        (lambda: plots.samples(np.ones((2, 3, 4)), limits=(1, 0)), r"\(1, 0\)"),
        (lambda: plots.samples(np.ones((2, 3, 4)), columns=0), "columns"),
        (lambda: plots.samples(np.ones((2, 3, 4)), ax=object()), "2 images .* got 1"),
        (lambda: plots.heatmap(np.ones(3)), r"\(3,\)"),
        (lambda: plots.heatmap(np.ones((0, 3))), r"\(0, 3\)"),
        (lambda: plots.heatmap(np.ones((2, 3)), rows=["a"]), "2 rows, got 1"),
    ],
)
def test_bad_shapes_raise_before_a_figure_is_made(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums()


def test_bad_solutions_and_types_raise():
    solution = jxt.Solution(
        jnp.ones(2), np.int32(2), np.float32(0.1), jxt.Status.converged, None, trace=None
    )
    trace = lambda t: jxt.Solution(*list(vars(solution).values())[:-1], t)
    with pytest.raises(ValueError, match="trace=True"):
        plots.convergence({"plain": solution})
    with pytest.raises(ValueError, match=r"\(3,\), \(3,\)"):
        plots.convergence(trace((np.ones(3), np.ones(3))))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        plots.convergence(trace(np.ones((3, 2))))
    for draw in (plots.convergence, plots.samples, plots.heatmap):
        with pytest.raises(TypeError, match="complex64"):
            draw(np.ones((2, 2), np.complex64))
    with pytest.raises(TypeError, match="DiGraph"):
        plots.network(nx.DiGraph(GRAPH), np.ones(5))
    assert not plt.get_fignums()
