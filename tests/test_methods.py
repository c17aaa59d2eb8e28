"""What every method of the catalogue says of itself."""

import importlib
import re
from typing import get_args

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

import diffcache
from diffcache.calibration import fitted
from diffcache.methods import Method, registry
from diffcache.methods.base import Kind


@pytest.mark.parametrize("name", registry())
def test_file_and_docstring_tell_the_name_and_what_the_cache_holds(name):
    module = importlib.import_module(f"diffcache.methods.{name}")
    assert module.METHOD.name == name
    assert " The cache holds " in " ".join(module.__doc__.split())
    assert module.METHOD.kind in get_args(Kind)


@pytest.mark.parametrize("name", sorted(registry().keys() - {"mask"}))
def test_citations_are_whole_entries(name):
    entry = diffcache.cite(name)
    assert re.match(r"@\w+\{\w+,\n", entry) and entry.endswith("}")
    assert entry.count("{") == entry.count("}")
    assert all(re.search(rf"\b{field}\s*=", entry) for field in ("title", "author", "year"))
    assert re.search(r"arXiv:\d{4}\.\d{5}\b|url\s*= \{https://", entry)


@pytest.fixture(scope="module")
def flux():
    """FLUX.1-dev but for its widths."""
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )


@pytest.mark.parametrize("name", [name for name in registry() if registry()[name].published])
def test_published_constants_are_for_the_architecture_and_timetable_they_were_measured_on(
    flux, name
):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    (constants,) = registry()[name].published
    ((option, value),) = constants.options.items()
    assert fitted(registry()[name], [flux], [scheduler], None).options()[option] == value
    small = FluxTransformer2DModel.from_config(flux.config, num_layers=1, num_single_layers=1)
    schnell = FluxTransformer2DModel.from_config(flux.config, guidance_embeds=False)
    for other in (small, schnell):
        assert not constants.fits(other, scheduler)
    for other in (FlowMatchEulerDiscreteScheduler(), DDIMScheduler()):
        assert not constants.fits(flux, other)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='dynamic' is no class of methods"):
        Method(kind="dynamic")


def test_catalogue_is_made_from_the_registry(bench):
    catalogue = bench("catalogue")
    assert catalogue.DOCUMENT.read_text() == catalogue.document(), "run python bench/catalogue.py"
