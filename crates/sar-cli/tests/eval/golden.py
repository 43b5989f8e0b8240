"""Makes golden.json and the .npz files beside it: what `fd.py`, a script of the same measures in PyTorch, and numpy say of emoji with red and blue exchanged. Made with torch 2.15.0.

usage: golden.py FD.PY
"""
import importlib.util
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
SIDE, PER_CLASS = 32, 20


def main(path):
    spec = importlib.util.spec_from_file_location("fd", path)
    fd = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fd)
    net = fd.net()
    images, labels = fd.emoji(SIDE)
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
    few = exchanged[::36].copy()
    np.savez(HERE / "images.npz", few, labels[chosen][::36])
    np.savez_compressed(HERE / "compressed.npz", arr_0=few)
    np.savez(HERE / "floats.npz", arr_0=few / np.float32(255))
    np.savez(HERE / "gray.npz", arr_0=few[..., 0])


if __name__ == "__main__":
    main(sys.argv[1])
