"""Protocols of inference on nodes that are not trusted."""

import random

import numpy as np

from ...distributed import secure_inference as secure
from ..shapes.function import AbstractFunctionCase


class ProofCase(AbstractFunctionCase):
    """Products with a committed matrix, and whether their proofs are taken."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        return rng.integers(-128, 128, (2, 3)), rng.integers(-128, 128, 3), seed

    def call(self, *arguments):
        matrix, x, seed = arguments
        source = random.Random(seed)
        commitment, opening = secure.commit(matrix, source)
        y, proof = secure.prove(commitment, opening, x, source)
        return y, np.array(secure.verify(commitment, x, y, proof))

    def reference(self, *arguments):
        matrix, x, _ = arguments
        y = [sum(int(a) * int(b) for a, b in zip(row, x, strict=True)) for row in matrix]
        return np.array(y), np.array(True)


class ConsensusCase(AbstractFunctionCase):
    """Five replicas of which one is altered."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        outputs = rng.normal(size=(2, 3)) + 1e-2 * rng.uniform(size=(5, 2, 3))
        outputs[seed % 5] += 1
        return (np.asarray(outputs, dtype),)

    def call(self, *arguments):
        (outputs,) = arguments
        found = secure.Consensus(tolerance=0.05)(outputs)
        return found.value, found.accepted, found.members

    def reference(self, *arguments):
        outputs = np.asarray(arguments[0], np.float64)
        sums = [sum(np.abs(a - b).max() for b in outputs) for a in outputs]
        medoid = outputs[int(np.argmin(sums))]
        members = np.array([np.abs(a - medoid).max() <= 0.05 for a in outputs])
        return outputs[members].mean(0), np.array(members.sum() >= 4), members
