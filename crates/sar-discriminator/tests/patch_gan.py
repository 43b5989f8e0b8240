"""Prints the logits of `src/patch_gan.rs`: taming-transformers' NLayerDiscriminator, with group norms
of eight channels in the place of its batch norms, on weights and images of formulas."""

import torch
from torch import nn


def formula(shape, frequency, scale):
    n = torch.Size(shape).numel()
    i = torch.arange(1, n + 1, dtype=torch.float64)
    return (torch.sin(i * frequency) * scale).float().reshape(shape)


def n_layer_discriminator(channels, layers):
    sequence = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    width = channels
    for n in range(1, layers + 1):
        before, width = width, channels * min(2**n, 8)
        stride = 2 if n < layers else 1
        sequence += [nn.Conv2d(before, width, 4, stride, 1), nn.GroupNorm(width // 8, width, eps=1e-5)]
        sequence += [nn.LeakyReLU(0.2)]
    return nn.Sequential(*sequence, nn.Conv2d(width, 1, 4, 1, 1))


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    for layers, shape in [(2, (2, 3, 16, 13)), (3, (1, 3, 24, 32))]:
        model = n_layer_discriminator(8, layers)
        place = 0
        for module in model:
            for name, parameter in module.named_parameters(recurse=False):
                frequency = 0.7 + 0.013 * place
                if name == "bias":
                    parameter.copy_(formula(parameter.shape, frequency, 0.2))
                elif isinstance(module, nn.GroupNorm):
                    parameter.copy_(1 + formula(parameter.shape, frequency, 0.3))
                else:
                    fan_in = parameter[0].numel()
                    parameter.copy_(formula(parameter.shape, frequency, 2 * fan_in**-0.5))
                place += 1
        print(layers, model(formula(shape, 0.0123, 1.0)).flatten().tolist())


main()
