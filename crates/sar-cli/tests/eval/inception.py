"""Makes inception.json beside it: the evaluation of ADM (arXiv:2105.05233), stated in numpy alone, of drawn images of two sizes that are neither squares
nor of the network's side; and the same behind pytorch-fid's resampling. Images are resampled in single precision, all else is in double. Maps are [c, h, w].

usage: inception.py
Needs numpy (made with 2.4.6). The weights are those of sar-features' tests: formulas, of which it lists names and shapes.
"""
import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
UNITS = HERE.parents[2] / "sar-features/tests/files/inception.txt"
SIDE = 299
# A slash is before the stride of a convolution without zeros around a map; all others keep its sides.
STEM = "Conv2d_1a_3x3/2 Conv2d_2a_3x3/1 Conv2d_2b_3x3 halved Conv2d_3b_1x1 Conv2d_4a_3x3/1 halved"
A = ["1x1", "5x5_1 5x5_2", "3x3dbl_1 3x3dbl_2 3x3dbl_3", "mean _pool"]
B = ["3x3/2", "3x3dbl_1 3x3dbl_2 3x3dbl_3/2", "halved"]
C = ["1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5", "mean _pool"]
D = ["3x3_1 3x3_2/2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4/2", "halved"]
E = ["1x1", "3x3_1 3x3_2a", "3x3_1 3x3_2b", "3x3dbl_1 3x3dbl_2 3x3dbl_3a", "3x3dbl_1 3x3dbl_2 3x3dbl_3b"]
BLOCKS = {"5b": A, "5c": A, "5d": A, "6a": B, "6b": C, "6c": C, "6d": C, "6e": C, "7a": D, "7b": [*E, "mean _pool"], "7c": [*E, "max _pool"]}
POOLS = {
    "halved": lambda x: windows(x, (3, 3), 2, (0, 0)).max((3, 4)),
    # Of the places that there are, without those beyond the border.
    "mean": lambda x: np.nanmean(windows(x, (3, 3), 1, (1, 1), np.nan), (3, 4)),
    "max": lambda x: np.nanmax(windows(x, (3, 3), 1, (1, 1), np.nan), (3, 4)),
}


def image(i, right, down, steps, width, height):
    """Waves of three colors, as eval.rs draws them."""
    y, x = np.mgrid[:height, :width]
    along = x * (1 + right * i % 17) + y * (2 + down * i % 13) + 31 * i
    return np.stack([np.minimum(np.abs((along + 60 * c) % 512 - 256), 255) * (steps - c) // steps for c in range(3)])


def resize(x, middle):
    """To the network's sides: TensorFlow's `resize_bilinear`, whose sample i is that at i in/out, with a `middle` of 0; PyTorch's with 0.5."""
    x, middle = x.astype(np.float32), np.float32(middle)
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.maximum((np.arange(SIDE, dtype=np.float32) + middle) * np.float32(n / SIDE) - middle, 0)
        lower = at.astype(int)
        t = (at - lower.astype(np.float32)).reshape([-1, 1] if axis == 1 else [-1])
        low, high = np.take(x, lower, axis), np.take(x, np.minimum(lower + 1, n - 1), axis)
        x = low + (high - low) * t
    return x


def noise(shape, seed, scale):
    """The fraction of sin(12.9898 (i + 1) + seed) 43758.5453, in -scale .. scale."""
    values = np.sin(np.arange(1, np.prod(shape) + 1) * 12.9898 + seed) * 43758.5453
    return ((2 * (values - np.floor(values)) - 1) * scale).astype(np.float32).reshape(shape)


def weights():
    """Kernels [out, in, h, w] and the norms behind them: scale, shift, mean, variance. The classifier without its bias, which ADM leaves out."""
    units = {}
    for i, (name, *shape) in enumerate(line.split() for line in UNITS.read_text().splitlines()):
        o, *fan_in = shape = [int(n) for n in shape]
        norm = 1 + noise(o, i + 0.2, 0.3), noise(o, i + 0.4, 0.3), noise(o, i + 0.6, 0.3), 1 + noise(o, i + 0.8, 0.5)
        units[name] = noise(shape, i, (6 / np.prod(fan_in)) ** 0.5).astype(float), [x.astype(float)[:, None] for x in norm]
    return units, noise((1008, 2048), 100, 0.05).astype(float)


def windows(x, sides, stride, pads, around=0):
    """[c, h', w', kh, kw]."""
    x = np.pad(x, [(0, 0)] + [(pad, pad) for pad in pads], constant_values=around)
    return np.lib.stride_tricks.sliding_window_view(x, sides, (1, 2))[:, ::stride, ::stride]


def unit(kernel, norm, stride, x):
    """Convolution, batch norm, ReLU."""
    rows, (scale, shift, mean, variance), sides = kernel.reshape(len(kernel), -1), norm, kernel.shape[2:]
    patches = windows(x, sides, int(stride or 1), [0 if stride else k // 2 for k in sides])
    y = rows @ patches.transpose(0, 3, 4, 1, 2).reshape(rows.shape[1], -1)
    y = (y - mean) / np.sqrt(variance + 1e-3) * scale + shift
    return np.maximum(y, 0).reshape(-1, *patches.shape[1:3])


def chain(units, block, parts, x):
    for part in parts.split():
        name, _, stride = part.partition("/")
        x = POOLS[name](x) if name in POOLS else unit(*units[block + name], stride, x)
    return x


def features(units, classifier, x):
    """Of pool_3; of places, the first 7 channels of Mixed_6d's first branch by row, column and channel; logits."""
    x = chain(units, "", STEM, x)
    for name, branches in BLOCKS.items():
        x = np.concatenate([chain(units, f"Mixed_{name}.branch", parts, x) for parts in branches])
        if name == "6d":
            places = x[:7].transpose(1, 2, 0).flatten()
    pool = x.mean((1, 2))
    return pool, places, classifier @ pool


def frechet(x, y):
    """The eigenvalues of a product of covariances are the squared singular values of that of their roots, which the centered rows are."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    means = np.square(x.mean(0) - y.mean(0)).sum()
    return means + np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()


def inception_score(logits, split=5000):
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parts = (p[i : i + split] for i in range(0, len(p), split))
    return np.mean([np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts])


def precision_recall(real, drawn, k=3):
    """A row is the nearest one to itself, so that the k-th other is the one at k."""
    def distances(x, y):
        return np.maximum(np.square(x).sum(1)[:, None] - 2 * x @ y.T + np.square(y).sum(1), 0)

    of_real, of_drawn = (np.sort(distances(x, x))[:, k] for x in (real, drawn))
    between = distances(real, drawn)
    return (between <= of_real[:, None]).any(0).mean(), (between <= of_drawn).any(1).mean()


def figures(see, real, drawn):
    (real, real_places, _), (drawn, drawn_places, logits) = (map(np.stack, zip(*map(see, images))) for images in (real, drawn))
    precision, recall = precision_recall(real, drawn)
    # ADM takes distances in half precision, where they are finite: of these images it says the same.
    assert precision_recall(real.astype(np.float16), drawn.astype(np.float16)) == (precision, recall)
    score = inception_score(logits)
    return dict(fid=frechet(real, drawn), sfid=frechet(real_places, drawn_places), inception_score=score, precision=precision, recall=recall)


def main():
    real = [image(i, 3, 5, 9, 20, 33) for i in range(14)]
    drawn = [image(i, 5, 3, 3, 23, 305) for i in range(8, 20)]
    network = weights()
    see = {
        "adm": lambda x: features(*network, (resize(x, 0) - 128) / 128),
        "pytorch-fid": lambda x: features(*network, resize(x / 255, 0.5) * 2 - 1),
    }
    found = {name: figures(of, real, drawn) for name, of in see.items()}
    (HERE / "inception.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
