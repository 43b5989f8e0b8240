"""Makes golden.safetensors beside it: what PyTorch computes with the weights of assets/features. Made with torch 2.15.0.

usage: golden.py EFFICIENTNET.safetensors
Needs torch, torchvision, safetensors, efficientnet-lite-pytorch 0.1.0, lpips 0.1.4 and pytorch-fid 0.3.0. Images and the weights of VGG16,
LPIPS and InceptionV3 are formulas, which golden.rs repeats, so that outputs alone are stored; files/inception.txt gets the names and shapes of
InceptionV3's convolutions. Formula and resampling are those of inception.py, the statement of ADM's evaluation beside the tests of `sar eval`.
"""
import pathlib
import sys

import lpips
import pytorch_fid.inception
import torch
import torch.nn.functional as F
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "sar-cli/tests/eval"))
import inception as statement


def formula(shape, frequency, scale):
    """sin((i + 1) frequency) scale over the elements, in double precision."""
    n = int(torch.tensor(shape).prod())
    values = torch.sin(torch.arange(1, n + 1, dtype=torch.float64) * frequency) * scale
    return values.float().reshape(shape)


def images(shape, frequency):
    """Pixels in [-1, 1]: waves of several lengths."""
    return (formula(shape, frequency, 0.6) + formula(shape, 0.37 * frequency, 0.4)).clamp(-1, 1)


def efficientnet(path):
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("_fc.") or name.endswith("num_batches_tracked") for name in missing)
    return net


def net_input(x):
    return (255 * (x + 1) / 2 - 127) / 128


def maps(net, x):
    """The last map of every resolution."""
    x = F.relu6(net._bn0(net._conv_stem(net_input(x))))
    found = []
    for block in net._blocks:
        if block._depthwise_conv.stride[0] == 2:
            found.append(x)
        x = block(x)
    return [*found, x]


def pooled(net, x):
    x = F.interpolate(x, size=160, mode="bilinear", align_corners=False, antialias=x.shape[-1] > 160)
    return net.extract_features(net_input(x)).mean((2, 3))


def unit(x, eps=1e-10):
    return x / (x.square().sum(1, keepdim=True).sqrt() + eps)


def perceptual(net, x, y):
    distances = [(unit(a) - unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(maps(net, x), maps(net, y))]
    return torch.stack(distances).mean(0)


def gradient(distance, x, y):
    """Of the sum of the distances, for the first images."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(distance(x, y).sum(), x)[0]


def noise(shape, seed, scale):
    return torch.from_numpy(statement.noise(shape, seed, scale))


def lpips_of_formulas():
    net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    convs = [m for m in net.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 13
    for i, conv in enumerate(convs):
        # Variance 2 / fan in.
        conv.weight.data = noise(conv.weight.shape, i, (6 / conv.weight[0].numel()) ** 0.5)
        conv.bias.data = noise(conv.bias.shape, i + 0.5, 0.1)
    for i in range(5):
        head = getattr(net, f"lin{i}").model[1]
        head.weight.data = noise(head.weight.shape, 100 + i, 1.0).abs()
    return net


def inception_state():
    """A file as pytorch-fid would download it. Its network differs from torchvision's in no name and no shape."""
    theirs = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    names = sorted(name.removesuffix(".conv.weight") for name in theirs if name.endswith(".conv.weight"))
    state, rows = {}, []
    for i, name in enumerate(names):
        shape = theirs[f"{name}.conv.weight"].shape
        rows.append(" ".join([name, *map(str, shape)]))
        state[f"{name}.conv.weight"] = noise(shape, i, (6 / shape[1:].numel()) ** 0.5)
        state[f"{name}.bn.weight"] = 1 + noise(shape[:1], i + 0.2, 0.3)
        state[f"{name}.bn.bias"] = noise(shape[:1], i + 0.4, 0.3)
        state[f"{name}.bn.running_mean"] = noise(shape[:1], i + 0.6, 0.3)
        state[f"{name}.bn.running_var"] = 1 + noise(shape[:1], i + 0.8, 0.5)
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"], state["fc.bias"] = noise((1008, 2048), 100, 0.05), noise((1008,), 101, 0.1)
    return state, "\n".join(rows) + "\n"


def inception_features(net, state, x):
    """Of images that are prepared: pool_3, the first channels of Mixed_6d's first branch, logits without a bias."""
    spatial = []
    hook = net.blocks[2][6].branch1x1.register_forward_hook(lambda _, __, y: spatial.append(y[:, :7]))
    for block in net.blocks:
        x = block(x)
    hook.remove()
    pool = x.flatten(1)
    return {"inception_pool": pool, "inception_spatial": spatial[0].permute(0, 2, 3, 1).flatten(1), "inception_logits": pool @ state["fc.weight"].T}


def inception_inputs(net, x):
    """An 8-bit image as ADM's evaluation and as pytorch-fid prepare it."""
    bytes_chw = ((x[0] + 1) * 127.5).round().to(torch.uint8)
    adm = (statement.resize(bytes_chw.numpy(), 0) - 128) / 128
    inputs = []
    hook = net.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    net((bytes_chw / 255)[None])
    hook.remove()
    prepared = {"inception_input_adm": torch.from_numpy(adm), "inception_input_pytorch_fid": inputs[0]}
    return {name: x.flatten()[::61] for name, x in prepared.items()}


def main(path):
    net = efficientnet(path)
    x, y = images((2, 3, 64, 96), 0.0123), images((2, 3, 64, 96), 0.0131)
    odd = images((1, 3, 77, 45), 0.021)
    small, other = images((2, 3, 32, 33), 0.0123), images((2, 3, 32, 33), 0.0131)
    with torch.no_grad():
        golden = {
            "features": net.extract_features(net_input(x)),
            "features_odd": net.extract_features(net_input(odd)),
            "pooled_small": pooled(net, images((5, 3, 32, 32), 0.0123)),
            "pooled_large": pooled(net, images((1, 3, 200, 200), 0.0123)),
            "perceptual": perceptual(net, x, y),
        }
        for i, a in enumerate(maps(net, x)):
            # Every 7th position: the maps are large.
            golden[f"map{i}"] = a.flatten(2)[:, :, ::7] if i < 3 else a
    golden["perceptual_gradient"] = gradient(lambda x, y: perceptual(net, x, y), small, other)
    distance = lpips_of_formulas()
    with torch.no_grad():
        golden["lpips"] = distance(small, other).flatten()
        for i, a in enumerate(distance.net(distance.scaling_layer(small))):
            golden[f"vgg{i}"] = a.flatten()[::61]
    golden["lpips_gradient"] = gradient(distance, small, other)
    state, rows = inception_state()
    (HERE / "files" / "inception.txt").write_text(rows)
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    net = pytorch_fid.inception.InceptionV3([3]).eval()
    with torch.no_grad():
        golden |= inception_features(net, state, images((2, 3, 299, 299), 0.0123))
        golden |= inception_inputs(net, images((1, 3, 40, 411), 0.21))
    save_file({k: v.contiguous() for k, v in golden.items()}, HERE / "golden.safetensors")
    for k, v in golden.items():
        print(k, tuple(v.shape), v.abs().max().item())


if __name__ == "__main__":
    main(*sys.argv[1:])
