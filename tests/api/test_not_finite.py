"""Pictures that hold NaN, of the plain pipeline or of a method alone."""

from typing import Any

import numpy as np
import pytest

import diffcache
from diffcache import tiny
from diffcache.wrapping import wrappings

PROMPTS = tiny.prompts[:2]
CALL = {"num_inference_steps": 12, "seeds": [5, 6]}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trained pipeline that can be made to decode the first picture of each batch to NaN."""
    pipe = tiny.pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    decode = pipe.vae.decode

    def breaking(when: Any) -> Any:
        def decoded(*args: Any, **kwargs: Any) -> Any:
            found = decode(*args, **kwargs)
            if when():
                found[0][0] = float("nan")
            return found

        monkeypatch.setattr(pipe.vae, "decode", decoded, raising=False)
        return pipe

    return breaking


def test_tune_names_plain_pictures_that_are_not_finite(broken: Any) -> None:
    pipe = broken(lambda: True)
    with pytest.raises(
        ValueError, match=rf"1 of 1 pictures are not finite .*: '{PROMPTS[0]}' with seed 5; leave"
    ):
        diffcache.tune(pipe, PROMPTS, psnr=25, batch_size=2, **CALL)


def test_pictures_to_confirm_on_are_looked_at_before_the_search(broken: Any) -> None:
    decoded = iter([False, False, False, True])
    pipe = broken(lambda: next(decoded))
    with pytest.raises(ValueError, match=rf"'{PROMPTS[1]}' with seed 6; leave"):
        diffcache.tune(pipe, PROMPTS, speedup=1.5, **CALL)


def test_compare_notes_them_and_recommends_nothing(broken: Any) -> None:
    pipe = broken(lambda: True)
    found = diffcache.compare(pipe, PROMPTS, minutes=10, **CALL)
    (note,) = [note for note in found.notes if "not finite" in note]
    assert f"1 of 2 pictures are not finite without diffcache already: '{PROMPTS[0]}'" in note
    assert found.recommended is None and len(found.methods) == 1
    assert not any("no tolerance" in note for note in found.notes)
    assert "noise floor" not in str(found) and "at equal" not in str(found)


def test_a_picture_that_a_method_alone_breaks_has_no_decibel(broken: Any) -> None:
    pipe = broken(lambda: pipe in wrappings)
    found = diffcache.compare(pipe, PROMPTS, **CALL)["adaptive"]
    assert np.isnan(found.pictures[0]).any()
    assert found.psnr[0] == found.ssim[0] == 0
    assert found.psnr[1] > 20 and 0 < found.mean_error_psnr < 4
