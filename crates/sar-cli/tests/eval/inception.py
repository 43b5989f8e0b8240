"""Makes inception.json beside it: what torch-fidelity (as adm) and pytorch-fid see in drawn images through the network of FID, as figures. Made with torch 2.15.0.

usage: inception.py
Needs torch-fidelity 0.4.0 and what golden.py of sar-features needs, whose random weights the network has.
"""
import importlib.util
import json
import pathlib
import tempfile

import numpy as np
import pytorch_fid.inception
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

HERE = pathlib.Path(__file__).parent


def image(i, right, down, steps):
    """Waves of three colors, as eval.rs draws them: 36 rows of 44 pixels."""
    y, x = np.mgrid[:36, :44]
    along = x * (1 + right * i % 17) + y * (2 + down * i % 13) + 31 * i
    levels = [np.minimum(np.abs((along + 60 * c) % 512 - 256), 255) * (steps - c) // steps for c in range(3)]
    return torch.from_numpy(np.stack(levels).astype(np.uint8))


def features(classifier, branch, look, images):
    """Of the last map, of places, and logits without a bias."""
    places = []
    hook = branch.register_forward_hook(lambda _, __, y: places.append(y[:, :7]))
    with torch.no_grad():
        pool = look(images).flatten(1).double()
    hook.remove()
    return pool, places[0].double().permute(0, 2, 3, 1).flatten(1), pool @ classifier.T


def frechet(x, y):
    """The eigenvalues of a product of covariances are the squared singular values of that of their roots, which the centered rows are."""
    x, y = x.numpy(), y.numpy()
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    means = np.square(x.mean(0) - y.mean(0)).sum()
    return means + np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()


def figures(see, real, drawn):
    (real, real_places, _), (drawn, drawn_places, logits) = see(real), see(drawn)
    precision, recall = calculate_precision_recall_full(drawn, real, neighborhood=3)
    return dict(
        fid=frechet(real, drawn),
        sfid=frechet(real_places, drawn_places),
        inception_score=isc_features_to_metric(logits, splits=1)["inception_score_mean"],
        precision=precision,
        recall=recall,
    )


def main():
    spec = importlib.util.spec_from_file_location("golden", HERE.parents[2] / "sar-features/tests/golden.py")
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    state, _ = golden.inception_state()
    classifier = state["fc.weight"].double()
    with tempfile.NamedTemporaryFile() as file:
        torch.save(state, file.name)
        adm = FeatureExtractorInceptionV3("adm", ["2048"], file.name)
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    other = pytorch_fid.inception.InceptionV3([3]).eval()
    see = {
        "adm": lambda x: features(classifier, adm.Mixed_6d.branch1x1, lambda x: adm(x)[0], x),
        "pytorch-fid": lambda x: features(classifier, other.blocks[2][6].branch1x1, lambda x: other(x / 255)[0], x),
    }
    real = torch.stack([image(i, 3, 5, 9) for i in range(14)])
    drawn = torch.stack([image(i, 5, 3, 3) for i in range(8, 20)])
    found = {name: figures(of, real, drawn) for name, of in see.items()}
    (HERE / "inception.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
