"""Makes golden.json and the .npz files beside it: what the functions of `fd.py`, a script of the same measures in PyTorch, say of emoji with red and
blue exchanged. Made with torch 2.15.0.

The weights are those that come along, in half precision, and a pixel is the mean of four, rounded once: with the package's weights in single precision
and Pillow's way of rounding rows before columns, as `fd.py` has both by itself, the Fréchet distance is 194.65.

usage: golden.py FD.PY EFFICIENTNET.safetensors
Needs torch, numpy, scipy, pillow, safetensors and efficientnet-lite-pytorch 0.1.0.
"""
import importlib.util
import json
import pathlib
import sys

import numpy as np
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
SIDE, PER_CLASS = 32, 20


def network(path):
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("_fc.") or name.endswith("num_batches_tracked") for name in missing)
    return net


def halved(image):
    return ((image.astype(int).reshape(SIDE, 2, SIDE, 2, 3).sum((1, 3)) + 2) // 4).astype(np.uint8)


def main(path, weights):
    spec = importlib.util.spec_from_file_location("fd", path)
    fd = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fd)
    net = network(weights)
    originals, labels = fd.emoji(2 * SIDE)
    images = [halved(image) for image in originals]
    real = fd.features(net, images)
    held = np.arange(len(real)) % 10 == 9
    chosen = np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(9)])
    exchanged = np.stack([images[i][..., ::-1] for i in chosen])
    seen = fd.features(net, list(exchanged))
    name = fd.probe(real[~held], labels[~held])
    golden = dict(
        n=len(chosen),
        fd_effnetlite0=fd.fd(real, seen),
        kid_effnetlite0=fd.kid(real, seen) / 1000,
        class_accuracy=float((name(seen) == labels[chosen]).mean()),
        floor=dict(
            kid_effnetlite0=fd.kid(real[~held], real[held]) / 1000,
            class_accuracy=float((name(real[held]) == labels[held]).mean()),
        ),
    )
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    few = np.stack([image[..., ::-1] for image in fd.emoji(SIDE)[0]])[chosen[::36]]
    np.savez(HERE / "images.npz", few, labels[chosen][::36])
    np.savez_compressed(HERE / "compressed.npz", arr_0=few)
    np.savez(HERE / "floats.npz", arr_0=few / np.float32(255))
    np.savez(HERE / "gray.npz", arr_0=few[..., 0])


if __name__ == "__main__":
    main(*sys.argv[1:])
