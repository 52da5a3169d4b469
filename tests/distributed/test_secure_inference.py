"""Protocols against numpy, scipy and those who cheat."""

import dataclasses
import functools
import random

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from jaxopt_ext.distributed import secure_inference as secure

# A safe prime small enough for hundreds of proofs.
SMALL = secure.Group(0x80014BA4D75528ABC7CE0D0584129958C53EDF7DB0582A7B)


def _arctan_of_inverse(k, one):
    term, total, i = one // k, one // k, 1
    while term:
        term //= k * k
        total += (-1) ** i * (term // (2 * i + 1))
        i += 1
    return total


def test_the_large_prime_is_that_of_its_formula():
    one = 1 << 2000
    pi = 4 * (4 * _arctan_of_inverse(5, one) - _arctan_of_inverse(239, one)) >> (2000 - 1918)
    p = 2**2048 - 2**1984 - 1 + 2**64 * (pi + 124476)
    assert secure.MODP_2048.prime == p
    for n in (p, p // 2, SMALL.prime, SMALL.order):
        assert pow(3, n - 1, n) == 1


def test_products_and_membership():
    source = random.Random(0)
    p, q = SMALL.prime, SMALL.order
    bases = [SMALL.generator(str(i)) for i in range(4)]
    exponents = [source.randrange(q), -source.randrange(2**70), 0, -3]
    wanted = 1
    for base, exponent in zip(bases, exponents, strict=True):
        wanted = wanted * pow(base, exponent, p) % p
    assert SMALL.product(bases, exponents) == wanted
    assert SMALL.product([], []) == SMALL.product(bases, [0] * 4) == 1
    for _ in range(20):
        a = source.randrange(1, p)
        assert (a in SMALL) == (pow(a, q, p) == 1)
    assert 0 not in SMALL
    assert p + bases[0] not in SMALL


def _proof(seed, group=SMALL, shape=(3, 4)):
    source, rng = random.Random(seed), np.random.default_rng(seed)
    matrix, x = rng.integers(-128, 128, shape), rng.integers(-128, 128, shape[1])
    commitment, opening = secure.commit(matrix, source, group)
    y, proof = secure.prove(commitment, opening, x, source)
    np.testing.assert_array_equal(y, matrix @ x)
    return commitment, opening, x, y, proof


def _flipped(proof, source):
    """The proof with one bit of one of its numbers changed."""
    bit = lambda value: value ^ 1 << source.randrange(value.bit_length())
    field = source.choice(dataclasses.fields(proof)).name
    value = getattr(proof, field)
    if isinstance(value, tuple):
        j = source.randrange(len(value))
        return dataclasses.replace(proof, response=(*value[:j], bit(value[j]), *value[j + 1 :]))
    return dataclasses.replace(proof, **{field: bit(value)})


def _forgeries(seed):
    """A wrong result, another matrix, a replay for another input, a changed bit."""
    source = random.Random(seed)
    commitment, opening, x, y, proof = _proof(seed)
    one = np.eye(len(y), dtype=int)[source.randrange(len(y))]
    yield commitment, x, y + one, proof
    changed = tuple(
        tuple(w + (i == j == 0) for j, w in enumerate(r)) for i, r in enumerate(opening.matrix)
    )
    other = dataclasses.replace(opening, matrix=changed)
    nonzero = np.where(x == 0, 1, x)
    yield commitment, nonzero, *secure.prove(commitment, other, nonzero, source)
    yield commitment, x + np.eye(len(x), dtype=int)[0], y, proof
    yield commitment, x, y, _flipped(proof, source)
    beyond = dataclasses.replace(proof, product=proof.product + SMALL.order)
    yield commitment, x, y, beyond


@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_honest_proofs_are_taken_and_forgeries_are_not(count):
    for seed in range(count):
        commitment, _, x, y, proof = _proof(seed)
        assert secure.verify(commitment, x, y, proof)
        assert not any(secure.verify(*forged) for forged in _forgeries(seed))


@pytest.mark.slow
def test_honest_proofs_are_taken_in_the_large_group():
    for seed in range(100):
        commitment, _, x, y, proof = _proof(seed, secure.MODP_2048, (8, 16))
        assert secure.verify(commitment, x, y, proof)


def test_each_public_value_is_hashed():
    commitment, _, x, y, proof = _proof(0)
    point, result = x.tolist(), y.tolist()
    from jaxopt_ext.distributed.secure_inference import zero_knowledge as inner

    merging = inner._merging(commitment, point, result)
    base = (commitment, proof.announcement, proof.product, merging, point, result)
    other = dataclasses.replace(commitment, rows=(*commitment.rows[1:], commitment.rows[0]))
    changed = [
        (other, *base[1:]),
        *((*base[:i], base[i] + 1, *base[i + 1 :]) for i in (1, 2)),
        *((*base[:i], [base[i][0] + 1, *base[i][1:]], *base[i + 1 :]) for i in (3, 4, 5)),
    ]
    challenges = {inner._challenge(*arguments) for arguments in (base, *changed)}
    assert len(challenges) == 7
    assert inner._merging(other, point, result)[0] != merging[0]


def test_transcripts_tell_nothing_of_the_matrix():
    commitment, _, x, y, _ = _proof(0)
    source = random.Random(5)
    challenge = source.getrandbits(128)
    made_up = secure.simulate(commitment, x, y, challenge, source)
    assert secure.holds(commitment, x, y, made_up, challenge)
    assert not secure.holds(commitment, x, y, made_up, challenge + 1)
    assert not secure.verify(commitment, x, y, made_up)
    x = np.array([1, 2])
    remainders = []
    for matrix in ([[3, 4]], [[-7, 9]]):  # both take x to 11
        commitment, opening = secure.commit(np.array(matrix), source, SMALL)
        proofs = [secure.prove(commitment, opening, x, source) for _ in range(60)]
        assert {int(y[0]) for y, _ in proofs} == {11}
        remainders.append([p.response[0] % 10007 for _, p in proofs])
        assert len({p.announcement for _, p in proofs}) == 60  # s is used once
        products = [p.product / SMALL.order for _, p in proofs]
        assert scipy.stats.kstest(products, "uniform").pvalue > 0.01
    assert scipy.stats.ks_2samp(*remainders).pvalue > 0.01
    assert scipy.stats.kstest(remainders[0], "uniform", (0, 10007)).pvalue > 0.01


def test_bad_arguments_of_proofs_raise():
    commitment, opening, x, y, proof = _proof(0)
    with pytest.raises(TypeError, match="float"):
        secure.commit(np.ones((2, 2)))
    with pytest.raises(ValueError, match="4 entries, got 3"):
        secure.prove(commitment, opening, x[:3])
    with pytest.raises(ValueError, match="safe prime"):
        secure.Group(23)
    assert not secure.verify(commitment, x, y[:2], proof)


def test_layers_as_matrices():
    rng = np.random.default_rng(0)
    kernel, image = rng.integers(-8, 8, (2, 3, 2, 3)), rng.integers(-8, 8, (3, 4, 5))
    wanted = [scipy.signal.correlate(image, k, "valid")[0] for k in kernel]
    matrix = secure.convolution_matrix(kernel, 4, 5)
    np.testing.assert_array_equal(matrix @ image.ravel(), np.ravel(wanted))
    matrix, bias, x = rng.integers(-8, 8, (2, 3)), rng.integers(-999, 999, 2), rng.integers(0, 9, 3)
    affine = secure.with_bias(matrix, bias)
    np.testing.assert_array_equal(affine @ [*x, 1], matrix @ x + bias)
    floats = rng.normal(size=(4, 4))
    whole, unit = secure.quantize(floats)
    assert whole.dtype == np.int8
    assert np.max(np.abs(whole * unit - floats)) <= unit / 2 * (1 + 1e-9)
    layer = secure.IntegerLayer(matrix.astype(np.int8), bias, shift=2)
    rounded = np.clip(np.floor(np.maximum(matrix @ x + bias, 0) / 4 + 0.5), -128, 127)
    np.testing.assert_array_equal(layer(x), rounded)


@pytest.mark.parametrize("trials", [800, pytest.param(8000, marks=pytest.mark.slow)])
def test_freivalds_misses_as_often_as_it_should(trials):
    source, rng = random.Random(0), np.random.default_rng(0)
    W, X = rng.integers(-128, 128, (4, 5)), rng.integers(-128, 128, (5, 3))
    right = W @ X
    wrong = right.copy()
    wrong[1, 2] += 1
    for binary in (True, False):
        assert secure.freivalds(W, X, right, probes=5, binary=binary, source=source)
    missed = sum(
        secure.freivalds(W, X, wrong, probes=3, binary=True, source=source) for _ in range(trials)
    )
    assert abs(missed / trials - 1 / 8) < 3 * np.sqrt(7 / 64 / trials)
    assert not any(secure.freivalds(W, X, wrong, source=source) for _ in range(trials))
    wrong[1, 2] = right[1, 2] + 2**31 - 1  # the same modulo P
    assert not secure.freivalds(W, X, wrong, source=source)
    with pytest.raises(ValueError, match="shapes"):
        secure.freivalds(W, X, right.T)


def _replicas(dtype):
    rng = np.random.default_rng(0)
    return (rng.normal(size=5) * np.ones((7, 1)) * (1 + 1e-6 * rng.normal(size=(7, 5)))).astype(
        dtype
    )


def test_consensus_reports_who_is_outside(dtype):
    agree = jax.jit(secure.Consensus())
    honest = _replicas(dtype)
    found = agree(honest)
    assert found.accepted
    assert np.all(found.members)
    np.testing.assert_allclose(found.value, honest.astype(np.float64).mean(0), rtol=1e-6)
    for bad in (np.nan, np.inf, np.finfo(dtype).max, 0.0):
        outputs = honest.copy()
        outputs[:2] = bad
        outputs[1] *= -1
        found = agree(outputs)
        np.testing.assert_array_equal(found.members, [False] * 2 + [True] * 5)
        assert found.accepted
        np.testing.assert_allclose(found.value, honest[2:].astype(np.float64).mean(0), rtol=1e-6)
    outputs[2] = 5.0
    found = agree(outputs)
    assert not found.accepted
    assert np.all(np.isnan(found.value))


def test_quorum():
    with pytest.raises(ValueError, match="half of 4 replicas, got 2"):
        secure.Consensus(quorum=2)(np.ones((4, 1)))
    with pytest.raises(RuntimeError, match="too few"):
        eqx.filter_jit(secure.Consensus(throw=True))(np.arange(7.0)[:, None])


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", ["categories", "reals"])
def test_consensus_of_samples(kind):
    rng = np.random.default_rng(1)
    if kind == "categories":
        probabilities = np.array([[0.5, 0.3, 0.2]] * 5 + [[0.2, 0.3, 0.5]])
        samples = np.stack([rng.choice(3, 200, p=p) for p in probabilities])
        statistic = secure.TotalVariation(3)
        counts = np.stack([np.bincount(s, minlength=3) / 200 for s in samples])
        wanted = np.abs(counts[0] - counts[5]).sum() / 2
    else:
        samples = rng.normal(size=(6, 200)) + np.array([0, 0, 0, 0, 0, 0.6])[:, None]
        statistic = secure.KolmogorovSmirnov()
        wanted = scipy.stats.ks_2samp(samples[0], samples[5]).statistic
    np.testing.assert_allclose(jax.jit(statistic)(samples[0], samples[5]), wanted, rtol=1e-6)
    found = jax.jit(secure.SampleConsensus(statistic))(samples, jax.random.key(0))
    np.testing.assert_array_equal(found.members, [True] * 5 + [False])
    assert found.accepted
    with pytest.raises(ValueError, match="50 permutations"):
        secure.SampleConsensus(statistic, permutations=50)


def _integer_model():
    rng = np.random.default_rng(2)
    shapes = [(6, 5), (6, 6), (3, 6)]
    layers = [
        secure.IntegerLayer(
            rng.integers(-128, 128, s).astype(np.int8),
            rng.integers(-500, 500, s[0]),
            shift=0 if k == 2 else 8,
            relu=k < 2,
        )
        for k, s in enumerate(shapes)
    ]
    return secure.SplitModel(layers), rng.integers(0, 17, (4, 5))


def test_split_integers_equal_the_whole_and_the_altered_stage_is_found():
    model, x = _integer_model()
    y, transcript = model.run(x)
    h = x
    for k, layer in enumerate(model.stages):
        h = h @ layer.matrix.astype(int).T + layer.bias
        h = np.clip(np.floor(np.maximum(h, 0) / 256 + 0.5), 0, 127).astype(int) if k < 2 else h
    np.testing.assert_array_equal(y, h)
    assert secure.audit(model, transcript) is None
    for k, stage in enumerate(model.stages):
        nodes = list(model.stages)
        nodes[k] = eqx.tree_at(lambda s: s.bias, stage, stage.bias + 300)
        _, altered = model.run(x, nodes)
        assert secure.audit(model, altered) == k
    activations = (*transcript.activations[:1], x + 1, *transcript.activations[2:])
    swapped = dataclasses.replace(transcript, activations=activations)
    assert secure.audit(model, swapped) == 0
    chain = (transcript.chain[0], transcript.chain[0], transcript.chain[2])
    assert secure.audit(model, dataclasses.replace(transcript, chain=chain)) == 1
    other = secure.SplitModel([*model.stages[:2], dataclasses.replace(model.stages[2], relu=True)])
    assert model.commitments()[:2] == other.commitments()[:2]
    assert model.commitments()[2] != other.commitments()[2]


def test_commitments_tell_all_that_a_stage_computes_with():
    key = jax.random.key(0)
    network = lambda activation: eqx.nn.MLP(2, 2, 3, 1, activation, key=key)
    weighted = lambda w: lambda x: x * w
    compiled = lambda w: jax.jit(lambda x: x * w)
    padded = lambda padding: eqx.nn.Sequential([eqx.nn.Conv1d(1, 1, 3, padding=padding, key=key)])
    pairs = [
        (network(jax.nn.relu), network(jax.nn.relu), network(jnp.tanh)),
        (weighted(np.ones(2)), weighted(np.ones(2)), weighted(np.array([1.0, 2.0]))),
        (compiled(2.0), compiled(2.0), compiled(3.0)),
        (padded(1), padded(1), padded(0)),
        (
            functools.partial(jnp.add, 1),
            functools.partial(jnp.add, 1),
            functools.partial(jnp.add, 2),
        ),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (lambda x: x[..., 0], lambda x: x[..., 0], lambda x: x[..., 1]),
        (lambda x: x.ndim in {1, 2}, lambda x: x.ndim in {2, 1}, lambda x: x.ndim in {1, 3}),
    ]
    for one, same, other in pairs:
        digests = secure.SplitModel([one, same, other]).commitments()
        assert digests[0] == digests[1] != digests[2]
    stage = eqx.nn.Lambda(weighted(iter(())))
    with pytest.raises(TypeError, match="digest"):
        secure.SplitModel([stage]).commitments()


def test_numbers_that_are_none_are_no_alteration():
    model = secure.SplitModel([lambda x: np.log(x), lambda x: x + 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        _, transcript = model.run(np.array([-1.0, 0.0, 1.0]))
        assert secure.audit(model, transcript) is None


class _Tanh(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(x @ self.weight)


def test_noise_on_the_cuts_is_clipped_calibrated_and_audited():
    key = jax.random.key(0)
    stages = [_Tanh(jax.random.normal(k, (3, 3))) for k in jax.random.split(key)]
    noise = secure.CutNoise(1.0, 1e-5, clip=0.5)
    model = secure.SplitModel(stages, noise)
    x = jnp.tile(jnp.array([1.0, 2.0, -1.0]), (4000, 1))
    _, transcript = model.run(x, key=key)
    cut = stages[0](x[:1])[0]
    cut = cut * min(1, 0.5 / float(jnp.linalg.norm(cut)))
    noisy = transcript.activations[1]
    np.testing.assert_allclose(np.mean(noisy, 0), cut, atol=5 * noise.scale / np.sqrt(4000))
    np.testing.assert_allclose(np.std(noisy, 0), noise.scale, rtol=0.06)
    np.testing.assert_allclose(transcript.activations[2], stages[1](noisy), rtol=1e-6)
    assert secure.audit(model, transcript) is None
    _, quiet = secure.SplitModel(stages).run(x)
    forged = dataclasses.replace(quiet, key=key)
    assert secure.audit(model, forged) == 0
    with pytest.raises(ValueError, match="key"):
        model.run(x)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (3.0, 1e-3), (20.0, 1e-9)])
def test_noise_is_as_small_as_privacy_allows(epsilon, delta):
    scale = secure.gaussian_scale(epsilon, delta, 2.0)
    # The mass by which one Gaussian exceeds exp(epsilon) times the other, by quadrature.
    z = np.linspace(-2 - 12 * scale, 2 + 12 * scale, 2_000_001)
    one, other = (scipy.stats.norm.logpdf(z, m, scale) for m in (0.0, 2.0))
    excess = np.maximum(np.exp(one) - np.exp(epsilon + other), 0)
    np.testing.assert_allclose(np.trapezoid(excess, z), delta, rtol=1e-5)


def test_attestation():
    key, code, weights = b"k" * 32, b"def f(x): ...", b"commitment"
    verifier = secure.Attestation(key, secure.measure(code, weights))
    enclave = secure.SoftwareEnclave(key, code, weights)
    quote = enclave.quote(verifier.challenge())
    assert verifier.check(quote)
    assert not verifier.check(quote)  # a replay
    assert not verifier.check(enclave.quote(b"n" * 16))  # nobody asked
    for other in (
        secure.SoftwareEnclave(key, code + b" ", weights),
        secure.SoftwareEnclave(b"x" * 32, code, weights),
    ):
        assert not verifier.check(other.quote(verifier.challenge()))
    forged = dataclasses.replace(
        secure.SoftwareEnclave(key, b"other", weights).quote(verifier.challenge()),
        measurement=enclave.measurement,
    )
    assert not verifier.check(forged)
