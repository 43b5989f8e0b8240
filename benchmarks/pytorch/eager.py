"""The work that the benches compare with, in PyTorch: FlexVAR's tokenizer and transformer as released.

`eager.py NAME [DEVICE [PRECISION [MODE]]]` sets a piece of work up, says `ready` and the vector instructions that torch runs
with, and runs the work once for every line on stdin; each run's seconds come on a line of their own, and at the end the peak
memory in MB. The names are those of `benchmarks/src/work.rs`; the device is `cpu` or `cuda`, the precision `f32` or, through
autocast, `bf16`, the mode `eager` or `compile`: encoder, decoder and blocks through `torch.compile`, which needs a C++
compiler. What does not run says `failed` and why instead of `ready`. Weights are random. Needs torch.
"""
import math
import os
import re
import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

SCALES, EMOJI_SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], [1, 2, 3, 4, 6, 8]


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, c_in, 1e-6), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, c_out, 1e-6), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention2d(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (one(y).reshape(b, c, h * w) for one in (self.q, self.k, self.v))
        a = (q.transpose(1, 2) @ k * c**-0.5).softmax(2)
        return x + self.out((v @ a.transpose(1, 2)).reshape(b, c, h, w))


def middle(c):
    return nn.Sequential(ResBlock(c, c), Attention2d(c), ResBlock(c, c))


class Halve(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, 2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Tokenizer(nn.Module):
    def __init__(self, base, multipliers, blocks, z, codes, dim):
        super().__init__()
        c, n, encoder, decoder = base, len(multipliers), [nn.Conv2d(3, base, 3, padding=1)], []
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                encoder.append(ResBlock(c, base * multiplier))
                c = base * multiplier
                if level == n - 1:
                    encoder.append(Attention2d(c))
            if level < n - 1:
                encoder.append(Halve(c))
        encoder += [middle(c), nn.GroupNorm(32, c, 1e-6), nn.SiLU(), nn.Conv2d(c, z, 3, padding=1)]
        decoder = [nn.Conv2d(z, c, 3, padding=1), middle(c)]
        for level in reversed(range(n)):
            for _ in range(blocks + 1):
                decoder.append(ResBlock(c, base * multipliers[level]))
                c = base * multipliers[level]
                if level == n - 1:
                    decoder.append(Attention2d(c))
            if level > 0:
                decoder.append(Double(c))
        decoder += [nn.GroupNorm(32, c, 1e-6), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, dim, 1), nn.Conv2d(dim, z, 1)
        self.embedding = nn.Parameter(torch.randn(codes, dim))

    def codes(self):
        return F.normalize(self.embedding, dim=-1)

    def encode(self, x):
        return self.quant_conv(self.encoder(x))

    def decode(self, x):
        return self.decoder(self.post_quant_conv(x))

    def nearest(self, z_nc):
        return (F.normalize(z_nc, dim=-1) @ self.codes().T).argmax(1)

    def maps(self, indices):
        n = math.isqrt(indices.shape[1])
        return self.codes()[indices].permute(0, 2, 1).reshape(indices.shape[0], -1, n, n)

    def tokens(self, h, scales=SCALES):
        def at(n):
            rows = F.interpolate(h, size=(n, n), mode="area").permute(0, 2, 3, 1).reshape(-1, h.shape[1])
            return self.nearest(rows).view(h.shape[0], -1)

        return [at(n) for n in scales]

    def inputs(self, tokens, scales=SCALES):
        return torch.cat([self.next(i, n) for i, n in zip(tokens, scales[1:])], 1)

    def next(self, indices, n):
        return F.interpolate(self.maps(indices), size=(n, n), mode="bicubic").flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.scale_mul = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.fc1, self.fc2, self.ada = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.Linear(d, 6 * d)

    def attention(self, x, mask, cache):
        b, l, d = x.shape
        q, k, v = self.qkv(x).view(b, l, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q = F.normalize(q, dim=-1) * self.scale_mul.clamp_max(math.log(100)).exp()
        k = F.normalize(k, dim=-1)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
            cache["k"], cache["v"] = k, v
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(b, l, d))

    def forward(self, x, condition, mask, cache):
        d = x.shape[-1]
        g1, g2, s1, s2, h1, h2 = self.ada(F.silu(condition)).view(-1, 1, 6, d).unbind(2)
        x = x + self.attention(F.layer_norm(x, (d,), eps=1e-6) * (s1 + 1) + h1, mask, cache) * g1
        y = F.layer_norm(x, (d,), eps=1e-6) * (s2 + 1) + h2
        return x + self.fc2(F.gelu(self.fc1(y), approximate="tanh")) * g2


class Backbone(nn.Module):
    def __init__(self, depth, d, heads, classes, codes, dim):
        super().__init__()
        self.d, self.classes = d, classes
        self.class_emb = nn.Parameter(torch.randn(classes + 1, d) * 0.1)
        self.pos_start, self.pos = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(torch.randn(1, d, 32, 32) * 0.1)
        self.word_embed, self.head, self.ada = nn.Linear(dim, d), nn.Linear(d, codes), nn.Linear(d, 2 * d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(depth))

    def positions(self, scales):
        maps = (F.interpolate(self.pos, size=(n, n), mode="area") for n in scales)
        return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)

    def run(self, x, condition, mask=None, cache=None):
        for k, block in enumerate(self.blocks):
            x = block(x, condition, mask, cache and cache[k])
        scale, shift = self.ada(F.silu(condition)).view(-1, 1, 2, self.d).unbind(2)
        return self.head(F.layer_norm(x, (self.d,), eps=1e-6) * (scale + 1) + shift)

    def forward(self, labels, inputs, scales=SCALES, start=True):
        condition = self.class_emb[labels]
        first = condition[:, None] + self.pos_start if start else condition[:, None]
        x = torch.cat((first, self.word_embed(inputs)), 1) + self.positions(scales)
        scale = torch.cat([torch.full((n * n,), k, device=labels.device) for k, n in enumerate(scales)])
        mask = torch.where(scale[:, None] >= scale[None], 0.0, -torch.inf)
        return self.run(x, condition, mask)

    @torch.no_grad()
    def sample(self, tokenizer, labels, guidance=2.5):
        b, cache, at, positions = len(labels), [{} for _ in self.blocks], 0, self.positions(SCALES)
        condition = self.class_emb[torch.cat((labels, torch.full_like(labels, self.classes)))]
        x = condition[:, None] + self.pos_start
        for k, n in enumerate(SCALES):
            logits = self.run(x + positions[:, at : at + n * n], condition, None, cache)
            at += n * n
            t = guidance * k / (len(SCALES) - 1)
            indices = ((1 + t) * logits[:b] - t * logits[b:]).argmax(-1)
            if k + 1 < len(SCALES):
                x = self.word_embed(tokenizer.next(indices, SCALES[k + 1])).repeat(2, 1, 1)
        # Ours decodes in single precision, too.
        with torch.autocast(labels.device.type, enabled=False):
            return tokenizer.decode(tokenizer.maps(indices).float())


def released(depth):
    return Tokenizer(128, [1, 1, 2, 2, 4], 2, 256, 8912, 32), Backbone(depth, 1024, 16, 1000, 8912, 32)


def emoji():
    return Tokenizer(32, [1, 1, 2], 1, 64, 512, 16), Backbone(4, 192, 3, 9, 512, 16)


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)


def update(model, optimizer, loss):
    # As PyTorch advises, autocast ends with the loss.
    with torch.autocast(loss.device.type, enabled=False):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()


def inception(package, n):
    """Features of n images through the network of FID, by a package, as many at a time as it takes by default; its random weights go to a file
    for the other side."""
    import pytorch_fid.inception
    import torchvision

    path = os.environ["SAR_BENCH_INCEPTION"]
    blank = lambda *_, **__: blank.net.state_dict()
    blank.net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    pytorch_fid.inception.load_state_dict_from_url = blank
    torch.save(pytorch_fid.inception.fid_inception_v3().state_dict(), path)
    if package == "pytorch-fid":
        net, most = pytorch_fid.inception.InceptionV3([3]).eval(), 50
        look = lambda images: net(images.float() / 255)[0]
    else:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        outputs = ["2048", "logits_unbiased"]
        look, most = FeatureExtractorInceptionV3("inception-v3-compat", outputs, feature_extractor_weights_path=path), 64
    images = torch.randint(256, (min(n, most), 3, 256, 256), dtype=torch.uint8)
    return torch.no_grad()(lambda: [look(images[: n - at]) for at in range(0, n, most)])


def normalized(c_in, c_out, kernel, stride=1, groups=1):
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out, 1e-3)


class Bottleneck(nn.Module):
    def __init__(self, c_in, c_out, kernel, stride, expansion):
        super().__init__()
        c = c_in * expansion
        expand = [*normalized(c_in, c, 1), nn.ReLU6(True)] if expansion > 1 else []
        self.layers = nn.Sequential(*expand, *normalized(c, c, kernel, stride, c), nn.ReLU6(True), *normalized(c, c_out, 1))
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x):
        return x + self.layers(x) if self.is_residual else self.layers(x)


def efficientnet_lite0():
    layers, c = [*normalized(3, 32, 3, 2), nn.ReLU6(True)], 32
    for blocks, kernel, stride, expansion, channels in (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    ):
        for i in range(blocks):
            layers.append(Bottleneck(c, channels, kernel, 1 if i else stride, expansion))
            c = channels
    return nn.Sequential(*layers, *normalized(c, 1280, 1), nn.ReLU6(True))


def efficientnet(n, most=32):
    """Features of n images of 64 px through EfficientNet-Lite0 at 160 px, some at a time; with channels last it is faster."""
    net = efficientnet_lite0().eval().to(memory_format=torch.channels_last)
    images = torch.randint(256, (min(n, most), 64, 64, 3), dtype=torch.uint8)

    def look(images):
        x = F.interpolate(images.permute(0, 3, 1, 2).float(), size=160, mode="bilinear")
        return net((x - 127) / 128).mean((2, 3))

    return torch.inference_mode()(lambda: [look(images[: n - at]) for at in range(0, n, most)])


def setup(name):
    if sizes := re.fullmatch(r"features-efficientnet(?:-n(\d+))?", name):
        return efficientnet(int(sizes[1] or 256))
    if sizes := re.fullmatch(r"inception-(pytorch-fid|torch-fidelity)(?:-n(\d+))?", name):
        return inception(sizes[1], int(sizes[2] or 48))
    image = torch.rand(1, 3, 256, 256) * 2 - 1
    if name == "encode-256":
        tokenizer, _ = released(1)
        return torch.no_grad()(lambda: tokenizer.encode(image))
    if name == "decode-256":
        tokenizer, _ = released(1)
        with torch.no_grad():
            canvas = tokenizer.maps(tokenizer.tokens(tokenizer.encode(image))[-1])
        return torch.no_grad()(lambda: tokenizer.decode(canvas))
    if sizes := re.fullmatch(r"sample-d(\d+)-b(\d+)", name):
        depth, b = map(int, sizes.groups())
        tokenizer, backbone = released(depth)
        labels = torch.arange(b)
        return lambda: backbone.sample(tokenizer, labels)
    if name == "tokenizer-step":
        tokenizer, _ = emoji()
        step, images = optimizer(tokenizer), torch.rand(32, 3, 32, 32) * 2 - 1

        def run():
            h = tokenizer.encode(images)
            z = F.normalize(h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]), dim=-1)
            q = tokenizer.codes()[tokenizer.nearest(z.detach())]
            through = (z + (q - z).detach()).view(32, 8, 8, -1).permute(0, 3, 1, 2)
            error = tokenizer.decode(through) - images
            quantizer = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
            update(tokenizer, step, error.abs().mean() + error.square().mean() + quantizer)

        return run
    if sizes := re.fullmatch(r"(emoji-teacher-step|teacher-step|sar-released-argmax)(?:-d(\d+)-b(\d+))?", name):
        if name == "emoji-teacher-step":
            (tokenizer, backbone), scales, images = emoji(), EMOJI_SCALES, torch.rand(16, 3, 32, 32) * 2 - 1
        else:
            depth, b = int(sizes[2] or 4), int(sizes[3] or 2)
            (tokenizer, backbone), scales, images = released(depth), SCALES, image.repeat(b, 1, 1, 1)
        step, labels = optimizer(backbone), torch.arange(len(images)) % backbone.classes
        with torch.no_grad():
            tokens = tokenizer.tokens(tokenizer.encode(images), scales)

        def run():
            with torch.no_grad():
                inputs = tokenizer.inputs(tokens[:-1], scales)
            logits = backbone(labels, inputs, scales)
            loss = F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, 1).flatten())
            if sizes[1] == "sar-released-argmax":
                # The last transition: the finest scale from what the teacher pass predicts for the one before it.
                last, before = SCALES[-1] ** 2, SCALES[-2] ** 2
                predicted = logits.detach().argmax(-1)
                with torch.no_grad():
                    student = tokenizer.next(predicted[:, -last - before : -last], SCALES[-1])
                student = backbone(labels, student, [1, SCALES[-1]], start=False)[:, 1:]
                loss = loss + 0.01 * F.cross_entropy(student.flatten(0, 1), predicted[:, -last:].flatten())
            update(backbone, step, loss)

        return run
    sys.exit(f"error: there is no work `{name}`")


def compiled():
    # With torch's defaults: fixed sizes for each scale are no faster. Of the classes: what is set up already finds them, too.
    for owner, name in (Tokenizer, "encode"), (Tokenizer, "decode"), (Block, "forward"):
        setattr(owner, name, torch.compile(getattr(owner, name)))


def main(name, device="cpu", precision="f32", mode="eager"):
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if precision not in ("f32", "bf16"):
        sys.exit(f"error: precision `{precision}` is not f32 or bf16")
    if mode not in ("eager", "compile"):
        sys.exit(f"error: mode `{mode}` is not eager or compile")
    # Not as a default: that would slow every call down.
    with torch.device(device):
        # Before anything is timed, of many images that are said as many as without.
        few = re.sub(r"-n\d+$", "", name)
        work = setup(few)

    def run(work):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            work()
        if device == "cuda":
            torch.cuda.synchronize()

    try:
        if mode == "compile":
            compiled()
        # A second time for what is compiled anew when shapes turn out to differ.
        for _ in range(2 if mode == "compile" else 1):
            run(work)
        if few != name:
            work = None
            with torch.device(device):
                work = setup(name)
    except Exception as error:
        # What follows the first paragraph is advice.
        why = f"{type(error).__name__}: {error}".split("\n\n")[0]
        return print("failed", " ".join(why.split()), flush=True)
    print("ready", torch.backends.cpu.get_cpu_capability(), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run(work)
        print(time.perf_counter() - start, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
