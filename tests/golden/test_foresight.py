"""Foresight against its algorithm written naively: every module decides and caches by itself."""

import pytest
import torch

import diffcache
from diffcache.runtime.rows import tensor_leaves
from diffcache.sites.modules import modules_of

STEPS = 24


class Layer:
    """A module with a cache of its own, a threshold λ and the MSE δ of its last recomputation."""

    def __init__(self, forward, gamma, warmup, every):
        self.forward, self.gamma, self.warmup, self.every = forward, gamma, warmup, every
        self.step, self.threshold, self.metric = -1, 0.0, None
        self.cache = self.features = None
        self.ran = []

    def __call__(self, *args, **kwargs):
        self.step += 1
        if self.step >= self.warmup and self.step % self.every and self.reusable():
            return self.cache
        self.ran.append(self.step)
        self.cache = self.forward(*args, **kwargs)
        features = torch.cat([leaf.flatten() for leaf in tensor_leaves(self.cache)])
        if self.features is not None:
            self.metric = float((features - self.features).square().mean())
            ahead = self.warmup - (self.step + 1)
            if 0 <= ahead <= 2:
                self.threshold += self.metric / 10**ahead
        self.features = features
        return self.cache

    def reusable(self):
        return self.metric <= self.gamma * self.threshold


@pytest.mark.parametrize(
    ("gamma", "warmup", "every"), [(0.5, 8, 2), (1.0, 5, 3), (0.7, 6, 2), (2.0, 2, 4)]
)
def test_same_modules_and_latents_as_caches_inside_the_modules(
    flux_transformer, flow_scheduler, sample, gamma, warmup, every
):
    modules = modules_of(flux_transformer)
    assert len(modules) == 2 * 3 + 3 * 2
    plain, _ = sample(flux_transformer, flow_scheduler)
    layers = {path: Layer(module.forward, gamma, warmup, every) for path, module in modules.items()}
    for path, module in modules.items():
        module.forward = layers[path]
    expected, _ = sample(flux_transformer, flow_scheduler)
    for module in modules.values():
        del module.forward
    ran, step = {path: [] for path in modules}, []
    flux_transformer.time_text_embed.register_forward_hook(lambda *_: step.append(len(step)))
    for path, module in modules.items():
        linear = next(m for m in module.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda *_, path=path: ran[path].append(step[-1]))
    diffcache.wrap(
        flux_transformer,
        "foresight",
        scheduler=flow_scheduler,
        gamma=gamma,
        warmup=warmup,
        every=every,
    )
    found, _ = sample(flux_transformer, flow_scheduler)
    assert ran == {path: layer.ran for path, layer in layers.items()}
    free = (STEPS - warmup) * len(modules)
    assert 0 < STEPS * len(modules) - sum(map(len, ran.values())) < free
    assert len(set(map(tuple, ran.values()))) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, plain, rtol=1e-4, atol=1e-4)
