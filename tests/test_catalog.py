"""The catalogue and the files it names."""

import pathlib

import pytest

from jaxopt_ext import catalog

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r.shape}-{r.name}") for r in catalog.ROWS])
def test_row(row):
    assert row.object.__doc__, row.public
    assert row.paper
    if row.claim is not None:
        assert (ROOT / "benchmarks" / "claims" / f"{row.claim}.py").exists(), row.claim
    assert all(reason for reason in row.opt_outs.values())


def test_names_are_unique():
    names = [(row.shape, row.name) for row in catalog.ROWS]
    assert len(set(names)) == len(names)
    assert all(row in catalog.rows(row.shape) for row in catalog.ROWS)
