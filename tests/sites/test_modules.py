"""Single modules by role, on pipelines and on denoisers of several families."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNetMotionModel

import diffcache
from diffcache import Guards, Method
from diffcache.policies import ByRole, Interval, Mask
from diffcache.predictors import Newton, Reuse
from diffcache.runtime.rows import tensor_leaves
from diffcache.sites import Modules
from diffcache.sites.modules import modules_of

STEPS = 12
ROWS = 3
FULL = [0, 1, 4, 8]


def method(policy: Any = None, predictor: Any = None, **site: Any) -> Method:
    return Method(
        site=Modules(**site),
        policy=policy or Interval(4),
        predictor=predictor or Reuse(),
        guards=Guards(protect=(2, 0), max_consecutive_skips=None, few_steps=0),
    )


def count_runs(modules: dict[str, torch.nn.Module]) -> dict[str, int]:
    """Keeps count of how often something inside of each module (or a leaf itself) runs."""
    runs = dict.fromkeys(modules, 0)

    def counting(path: str) -> Any:
        def hook(*_: Any) -> None:
            runs[path] += 1

        return hook

    for path, module in modules.items():
        linear = next(m for m in module.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(counting(path))
    return runs


def mixed_mask(samples: int) -> list[list[bool]]:
    """Sample 0 always computes; the others skip at different steps, sometimes together."""
    return [
        [True, *((step + sample) % 3 == 0 or step < 2 for sample in range(1, samples))]
        for step in range(STEPS)
    ]


def test_never_skipping_is_bit_identical(denoiser_of, pipe, generate, gate):
    plain = generate(pipe, steps=STEPS)
    before = [set(vars(module)) for module in denoiser_of(pipe).modules()]
    diffcache.wrap(pipe, method(Interval(1)))
    assert torch.equal(generate(pipe, steps=STEPS), plain)
    assert diffcache.report(pipe).compute_fraction == 1
    assert [set(vars(module)) for module in denoiser_of(pipe).modules()] == before
    diffcache.unwrap(pipe)
    assert torch.equal(generate(pipe, steps=STEPS), plain)


def test_skip_never_runs_what_it_bypasses(denoiser_of, pipe, generate, gate):
    modules = modules_of(denoiser_of(pipe))
    if gate == "forward":
        # The hooks of a leaf also run around a `forward` that is gated.
        modules = {path: module for path, module in modules.items() if any(module.children())}
    runs = count_runs(modules)
    diffcache.wrap(pipe, method())
    assert generate(pipe, steps=STEPS).isfinite().all()
    assert diffcache.report(pipe).mask[:, 0].nonzero()[:, 0].tolist() == FULL
    branches = 1 if hasattr(pipe, "unet") else 2
    assert len(runs) > 4
    assert set(runs.values()) == {len(FULL) * branches}


def test_two_generations_and_another_size(pipe, generate):
    diffcache.wrap(pipe, method())
    first = generate(pipe, steps=STEPS)
    larger = generate(pipe, steps=STEPS, size=32)
    assert diffcache.report(pipe).mask[:, 0].nonzero()[:, 0].tolist() == FULL
    assert larger.shape != first.shape
    assert torch.equal(generate(pipe, steps=STEPS), first)
    assert diffcache.report(pipe).cache_bytes > 0


@pytest.mark.parametrize("predictor", [Reuse(), Newton(1)], ids=["reuse", "linear"])
def test_rows_of_a_mixed_batch_equal_samples_alone(pipe, generate, predictor):
    plain = generate(pipe, 3, STEPS)
    mask = mixed_mask(3)
    diffcache.wrap(pipe, method(predictor=predictor), mask=mask)
    latents = generate(pipe, 3, STEPS)
    report = diffcache.report(pipe)
    assert report.mask.tolist() == mask
    assert any("rows are independent" in note for note in report.notes)
    torch.testing.assert_close(latents[0], plain[0], rtol=1e-3, atol=1e-3)
    for sample in (1, 2):
        assert not torch.equal(latents[sample], plain[sample])
        diffcache.wrap(pipe, method(predictor=predictor), mask=[[row[sample]] for row in mask])
        alone = generate(pipe, [sample], STEPS)
        torch.testing.assert_close(alone[0], latents[sample], rtol=1e-3, atol=1e-3)


def test_roles_of_a_unet_have_masks_of_their_own(unet, generate):
    runs = count_runs(modules_of(unet.unet))
    policy = ByRole({"self": Interval(2), "cross": Interval(6), "mlp": Interval(3)})
    diffcache.wrap(unet, method(policy))
    generate(unet, steps=STEPS)
    report = diffcache.report(unet)
    assert report.mask[:, 0].nonzero()[:, 0].tolist() == [0, 1, 6]
    for path, count in runs.items():
        wanted = {"attn1": 7, "attn2": 3, "ff": 5}.get(path.rpartition(".")[2])
        # The mid block's bare attentions are self-attention too.
        assert count == (wanted or 7), path


def test_guards_make_all_roles_compute(unet, generate):
    runs = count_runs(modules_of(unet.unet))
    policy = ByRole({"self": Interval(None, 1), "cross": Interval(2), "mlp": Interval(1)})
    diffcache.wrap(unet, method(policy), max_consecutive_skips=3, protect=(1, 1))
    generate(unet, steps=STEPS)
    self_runs = {count for path, count in runs.items() if path.endswith("attn1")}
    # Steps 0, 4 and 8 by the cap, 11 by protection.
    assert self_runs == {4}
    assert diffcache.report(unet).bound() == {"first": 2, "skip": 16, "cap": 4, "protect": 2}


def test_samples_differ_within_their_roles(unet, generate):
    def policy(sample: int | None) -> ByRole:
        own = [[[s % 3 == 0, s % 4 == 0], [s % 2 == 1, s % 5 == 0]] for s in range(STEPS)]
        columns = [0, 1] if sample is None else [sample]
        masks = [[[step[role][c] for c in columns] for step in own] for role in (0, 1)]
        return ByRole({"self": Mask(masks[0]), "mlp": Mask(masks[1])})

    roles = ("self", "mlp")
    diffcache.wrap(unet, method(policy(None), roles=roles))
    latents = generate(unet, 2, STEPS)
    for sample in range(2):
        diffcache.wrap(unet, method(policy(sample), roles=roles))
        alone = generate(unet, [sample], STEPS)
        torch.testing.assert_close(alone[0], latents[sample], rtol=1e-3, atol=1e-3)


def test_roles_that_are_left_out_compute(dit, generate):
    runs = count_runs(modules_of(dit.transformer))
    diffcache.wrap(dit, method(roles=("mlp",)))
    generate(dit, steps=STEPS)
    for path, count in runs.items():
        assert count == 2 * (STEPS if path.endswith("attn") else len(FULL)), path


def outputs(model: Any, scheduler: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    scheduler.set_timesteps(STEPS)
    latents = next(iter(inputs.values()))
    first = next(iter(inputs))
    found = []
    for index, t in enumerate(scheduler.timesteps):
        now = {**inputs, "timestep": torch.full((ROWS,), float(t))}
        now[first] = latents * (1 - 0.05 * index)
        prediction = tensor_leaves(model(**now))[0]
        # Some predict more channels (a variance) than the sample has.
        scheduler.step(prediction, t, torch.zeros_like(prediction))
        found.append(prediction)
    return found


def check_family(model: Any, inputs: dict[str, torch.Tensor], scheduler: Any) -> None:
    plain = outputs(model, scheduler, inputs)
    diffcache.wrap(model, method(), scheduler=scheduler, every=1)
    for found, wanted in zip(outputs(model, scheduler, inputs), plain, strict=True):
        assert torch.equal(found, wanted)
    mask = [[step in FULL, True, step in FULL or step % 2 == 0] for step in range(STEPS)]
    for decisions in (None, mask):
        diffcache.wrap(model, method(), scheduler=scheduler, mask=decisions)
        runs = count_runs(modules_of(model)) if decisions is None else {}
        found = outputs(model, scheduler, inputs)
        report = diffcache.report(model)
        assert report.mask.tolist() == (decisions or [[s in FULL] * ROWS for s in range(STEPS)])
        assert set(runs.values()) <= {len(FULL)}
        for index in range(STEPS):
            assert found[index].isfinite().all()
            for row in range(ROWS):
                same = torch.allclose(found[index][row], plain[index][row], rtol=1e-4, atol=1e-5)
                assert same == bool(report.mask[index, row]), (index, row)
    diffcache.unwrap(model)
    for found, wanted in zip(outputs(model, scheduler, inputs), plain, strict=True):
        assert torch.equal(found, wanted)


def test_family(denoiser):
    model, inputs = denoiser
    check_family(model, inputs, FlowMatchEulerDiscreteScheduler())


def motion_model() -> tuple[UNetMotionModel, dict[str, torch.Tensor]]:
    """AnimateDiff's denoiser: its attention has rows by frame, or by place where it is temporal."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UNetMotionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            cross_attention_dim=32,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            norm_num_groups=8,
        ).eval()
        # Motion modules begin as identities.
        for name, parameter in model.named_parameters():
            if "motion_modules" in name and "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        frames = 2
        inputs = {
            "sample": torch.randn(ROWS, 4, frames, 8, 8),
            "encoder_hidden_states": torch.randn(ROWS * frames, 7, 32),
        }
    return model.requires_grad_(False), inputs


def test_motion_modules():
    model, inputs = motion_model()
    check_family(model, inputs, DDIMScheduler())


def test_temporal_attention_is_a_role_of_its_own():
    model, inputs = motion_model()
    runs = count_runs(modules_of(model))
    scheduler = DDIMScheduler()
    policy = ByRole({"self": Interval(1), "cross": Interval(1), "temporal": Interval(4)})
    diffcache.wrap(model, method(policy), scheduler=scheduler)
    outputs(model, scheduler, inputs)
    skipped = {path for path, count in runs.items() if count == len(FULL)}
    assert skipped == {path for path in runs if "motion_modules" in path and "attn" in path}
    assert skipped and {runs[path] for path in runs if path not in skipped} == {STEPS}


def test_outputs_are_safe_from_writing_in_place(dit, generate):
    diffcache.wrap(dit, method())
    wanted = generate(dit, steps=STEPS)

    def spoil(module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        handed = output.clone()
        output.mul_(0.5)
        return handed

    dit.transformer.single_transformer_blocks[0].attn.register_forward_hook(spoil)
    assert torch.equal(generate(dit, steps=STEPS), wanted)


def test_compiled_denoisers_fall_back_with_a_note(dit, generate):
    diffcache.wrap(dit, method())

    # What a compiled graph does with gates on inner modules: it goes straight to `forward`.
    def bypass(module: torch.nn.Module) -> None:
        module.__class__ = type(
            type(module).__name__,
            (type(module),),
            {"__call__": lambda s, *a, **k: s.forward(*a, **k)},
        )

    for module in modules_of(dit.transformer).values():
        bypass(module)
    assert generate(dit, steps=STEPS).isfinite().all()
    report = diffcache.report(dit)
    assert report.compute_fraction < 1
    assert any("outputs are forecast" in note for note in report.notes)
    diffcache.wrap(dit, "pab")
    generate(dit, steps=STEPS)
    assert any("computed in full" in note for note in diffcache.report(dit).notes)
    assert diffcache.report(dit).compute_fraction == 1


def test_denoiser_without_modules_is_refused(unet):
    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, sample, timestep):
            return self.layer(sample)

    with pytest.raises(ValueError, match="Denoiser has no attention or MLP module"):
        diffcache.wrap(Denoiser(), "fora", scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match=r"roles=\('ff',\): use one or more of self"):
        Modules(roles=("ff",))
    with pytest.raises(ValueError, match=r"ByRole decides on \['mlp'\], which Modules"):
        method(ByRole({"mlp": Interval(2)}), roles=("self",))
