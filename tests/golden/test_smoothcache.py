"""SmoothCache's errors and schedule against the published algorithm, written naively."""

from statistics import mean

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import diffcache
from diffcache import Guards, Method
from diffcache.policies import LagErrors, NoEvidence, Step
from diffcache.policies.lag_errors import largest_lags
from diffcache.predictors import Reuse
from diffcache.runtime.rows import tensor_leaves
from diffcache.sites import Modules
from diffcache.sites.modules import modules_of


def scan(rows, threshold, steps):
    """Row k holds the change over k + 1 steps; the longest row that allows it is taken."""
    schedule = [None] * steps
    i = 0
    while i < steps:
        skipped = 0
        for k in reversed(range(len(rows))):
            if i < len(rows[k]) and rows[k][i] <= threshold:
                skipped = k + 1
                break
        schedule[i] = 1
        for j in range(i + 1, min(i + skipped + 1, steps)):
            schedule[j] = 0
        i += skipped + 1
    schedule[0] = schedule[-1] = 1
    return [bool(s) for s in schedule]


def errors(seed, steps, lags=3):
    generator = torch.Generator().manual_seed(seed)
    change = torch.rand(steps, generator=generator) * 0.1
    return [
        [float(change[i + 1 : i + 1 + lag].sum()) for i in range(steps - lag)]
        for lag in range(1, lags + 1)
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.08, 0.18, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 17, 50])
@pytest.mark.parametrize("seed", [0, 1])
def test_same_schedule_as_the_scan(alpha, steps, seed):
    rows = errors(seed, steps)
    assert list(largest_lags(rows, alpha, steps)) == scan(rows, alpha, steps)


def test_each_role_has_its_schedule():
    measured = {"self": errors(0, 20), "mlp": errors(1, 20)}
    policy = LagErrors(0.12, measured)
    for index in range(20):
        mask, _ = policy.decide(Step(index, 20), NoEvidence(2), {})
        wanted = [scan(rows, 0.12, 20)[index] for rows in measured.values()]
        assert mask.tolist() == [wanted] * 2
    with pytest.raises(ValueError, match="has no measured errors"):
        LagErrors(errors={})


def test_modules_follow_the_schedules_of_their_roles(flux_transformer):
    measured = {"self": errors(0, 16), "mlp": errors(3, 16)}
    method = Method(
        site=Modules(), policy=LagErrors(0.12, measured), predictor=Reuse(), guards=Guards.none()
    )
    runs = {"attn": [], "ff": []}
    block = flux_transformer.transformer_blocks[0]
    block.attn.to_q.register_forward_hook(lambda *_: runs["attn"].append(step[0]))
    block.ff.net[0].register_forward_hook(lambda *_: runs["ff"].append(step[0]))
    scheduler, step = FlowMatchEulerDiscreteScheduler(), [0]
    diffcache.wrap(flux_transformer, method, scheduler=scheduler)
    scheduler.set_timesteps(16)
    x = torch.randn(1, 16, 8)
    call = {
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "pooled_projections": torch.randn(1, 16),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }
    with torch.no_grad():
        for step[0], t in enumerate(scheduler.timesteps):
            velocity = flux_transformer(x, timestep=(t / 1000).expand(1), **call).sample
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
    for name, role in (("attn", "self"), ("ff", "mlp")):
        assert runs[name] == [i for i, on in enumerate(scan(measured[role], 0.12, 16)) if on]


CALL = {
    "prompt_embeds": torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(3)),
    "pooled_prompt_embeds": torch.randn(1, 32, generator=torch.Generator().manual_seed(4)),
    "num_inference_steps": 16,
    "height": 16,
    "width": 16,
    "output_type": "latent",
}


def run(pipe):
    return pipe(**CALL, generator=torch.Generator().manual_seed(5)).images


def released_errors(found, lag):
    """Mean over modules of |new − old| / |new|, both summed, by the older one's step."""

    def error(old, new):
        pairs = zip(old, new, strict=True)
        return mean(float((a - b).norm(p=1) / b.norm(p=1)) for a, b in pairs)

    return [mean(error(o[i], o[i + lag]) for o in found) for i in range(16 - lag)]


@pytest.mark.parametrize("quantile", [0.3, 0.7])
def test_calibrated_modules_follow_the_released_schedule(dit, tmp_path, quantile):
    modules = modules_of(dit.transformer)
    outputs = {path: [] for path in modules}

    def recording(path):
        return lambda module, args, out: outputs[path].append(
            [leaf.clone() for leaf in tensor_leaves(out)]
        )

    hooks = [module.register_forward_hook(recording(path)) for path, module in modules.items()]
    run(dit)
    for hook in hooks:
        hook.remove()
    attention = {path for path in modules if path.endswith("attn")}
    roles = {"self": attention, "mlp": modules.keys() - attention}
    rows = {
        role: [released_errors([outputs[path] for path in paths], lag) for lag in (1, 2, 3)]
        for role, paths in roles.items()
    }
    alpha = float(torch.tensor(rows["self"][1]).quantile(quantile))
    calibration = diffcache.calibrate(
        dit, [{**CALL, "generator": torch.Generator().manual_seed(5)}], "smoothcache"
    )
    calibration.save(tmp_path / "errors.json")
    calibration = diffcache.Calibration.load(tmp_path / "errors.json")
    policy = LagErrors().fit(calibration.statistics)
    for role, measured in policy.errors:
        for found, wanted in zip(measured, rows[role], strict=True):
            assert list(found) == pytest.approx(wanted, rel=1e-4)
    diffcache.wrap(dit, "smoothcache", calibration=calibration, alpha=alpha)
    ran, step = {path: [] for path in modules}, []
    dit.transformer.time_text_embed.register_forward_hook(lambda *_: step.append(len(step)))
    for path, module in modules.items():
        linear = next(m for m in module.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda *_, path=path: ran[path].append(step[-1]))
    run(dit)
    for role, paths in roles.items():
        wanted = [i for i, on in enumerate(scan(rows[role], alpha, 16)) if on]
        assert 2 < len(wanted) < 16
        assert all(ran[path] == wanted for path in paths), role
