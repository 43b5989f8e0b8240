"""Makes the files of golden.rs: what numpy and scipy compute from feature vectors. Made with numpy 2.4.6 and scipy 1.17.1.

usage: golden.py PARITY
PARITY is a folder with features.npz (reference, generated, logits) and expected.json: they become files/parity.safetensors and
files/parity.json. A second, smaller set is drawn here: files/golden.safetensors holds its features and what every measure
makes of them.
"""
import json
import math
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file
from scipy import linalg

FILES = pathlib.Path(__file__).parent / "files"
MASK = 2**64 - 1


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


class Draws:
    """SplitMix64, a stream for each purpose and index."""

    def __init__(self, seed, purpose, index):
        self.state = mix(mix(mix(seed) + purpose & MASK) + index & MASK)

    def next(self):
        self.state = self.state + 0x9E3779B97F4A7C15 & MASK
        return mix(self.state)

    def uniform(self):
        return ((self.next() >> 11) + 1) / 2**53

    def direction(self, dim):
        x = []
        while len(x) < dim:
            radius, angle = math.sqrt(-2 * math.log(self.uniform())), 2 * math.pi * self.uniform()
            x += [radius * math.cos(angle), radius * math.sin(angle)]
        x = np.array(x[:dim])
        return x / np.sqrt((x * x).sum())

    def sample(self, n, count):
        order = list(range(n))
        for i in range(count):
            j = i + (self.next() * (n - i) >> 64)
            order[i], order[j] = order[j], order[i]
        return order[:count]


def frechet(a, b):
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(ca @ cb)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root.real)


def kernel_distance(a, b):
    def k(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        n = len(x)
        return (k(x, x).sum() - np.trace(k(x, x))) / n / (n - 1)

    return within(a) + within(b) - 2 * k(a, b).mean()


def by_subsets(a, b, size, count, seed):
    def part(x, purpose, index):
        return x[Draws(seed, purpose, index).sample(len(x), size)]

    values = [kernel_distance(part(a, 1, i), part(b, 2, i)) for i in range(count)]
    return [np.mean(values), np.std(values)]


def distances(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def prdc(a, b, k):
    """Precision, recall, density, coverage."""
    radius_a, radius_b = (np.sort(distances(x, x), 1)[:, k] for x in (a, b))
    between = distances(a, b)
    in_a, in_b = between <= radius_a[:, None], between <= radius_b[None]
    return [in_a.any(0).mean(), in_b.any(1).mean(), in_a.sum(0).mean() / k, in_a.any(1).mean()]


def mind(a, b, n_directions, seed):
    """Mean and deviation; rows are repeated until both sets have as many."""
    values, d, n = [], a.shape[1], math.lcm(len(a), len(b))
    for i in range(n_directions):
        u = Draws(seed, 3, i).direction(d)
        x, y = (np.sort(np.repeat(s @ u, n // len(s))) for s in (a, b))
        values.append(3 * d * ((x - y) ** 2).mean())
    return [np.mean(values), np.std(values)]


def probe(x, y, n_classes, ridge):
    mu, sd = x.mean(0), x.std(0) + 1e-6
    z = np.c_[(x - mu) / sd, np.ones(len(x))]
    w = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ np.eye(n_classes)[y])
    return lambda q: (np.c_[(q - mu) / sd, np.ones(len(q))] @ w).argmax(1)


def memorization(samples, held_out, train, q):
    """Ratio of medians, share of near samples, what is near."""
    near, far = (np.sqrt(distances(x, train).min(1)) for x in (samples, held_out))
    limit = np.quantile(far, q)
    return [np.median(near) / np.median(far), (near < limit).mean(), limit]


def main():
    parity = pathlib.Path(sys.argv[1])
    FILES.mkdir(exist_ok=True)
    arrays = np.load(parity / "features.npz")
    save_file({name: np.ascontiguousarray(arrays[name]) for name in arrays}, FILES / "parity.safetensors")
    (FILES / "parity.json").write_text(json.dumps(json.loads((parity / "expected.json").read_text()), indent=1) + "\n")

    rng, d, n_classes = np.random.default_rng(5), 9, 4
    centers, blend = 1.2 * rng.normal(size=(n_classes, d)), rng.normal(size=(d, d)) / 2

    def draw(n, scale, shift):
        labels = rng.integers(n_classes, size=n)
        rows = centers[labels] + scale * rng.normal(size=(n, d)) @ blend + shift
        return rows.astype(np.float32), labels

    (train, train_labels), (held, held_labels), (samples, sample_labels) = draw(150, 1, 3), draw(40, 1, 3), draw(60, 1.1, 3.1)
    # Some samples are nearly training images.
    samples[:12] = train[:12] + 0.02 * rng.normal(size=(12, d)).astype(np.float32)
    sample_labels[:12] = train_labels[:12]
    a, h, b = (x.astype(np.float64) for x in (train, held, samples))
    name = {ridge: probe(a, train_labels, n_classes, ridge) for ridge in (2.0, 300.0)}
    values = dict(
        frechet=[frechet(a, b)],
        frechet_6=[frechet(a, b[:6])],
        kernel_distance=[kernel_distance(a, b)],
        subsets=by_subsets(a, b, 25, 7, 11),
        prdc_3=prdc(a, b, 3),
        prdc_5=prdc(a, b, 5),
        mind=mind(a, b, 150, 13),
        accuracy=[(name[r](x) == y).mean() for r in name for x, y in ((h, held_labels), (b, sample_labels))],
        memorization=memorization(b, h, a, 0.05),
    )
    for key, value in values.items():
        print(key, *value)
    tensors = {key: np.array(value, dtype=np.float64) for key, value in values.items()}
    labels = dict(train_labels=train_labels, held_labels=held_labels, sample_labels=sample_labels)
    tensors |= {key: value.astype(np.int64) for key, value in labels.items()}
    tensors |= dict(train=train, held=held, samples=samples, classes_300=name[300.0](b).astype(np.int64))
    save_file(tensors, FILES / "golden.safetensors")


main()
