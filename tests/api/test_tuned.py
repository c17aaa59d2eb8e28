"""A tuned setting says what to pass on and what it gave."""

from dataclasses import replace

from diffcache.tuned import Achieved, Tuned

SEARCHED = Achieved(21, 0.3834, 2.14159, 46.123, 41.06, 46.26, 40.2, 20 / 21)
OTHERS = replace(SEARCHED, pictures=11, psnr=47.0, met=1.0)
TUNED = Tuned({"tolerance": 0.13894954373135}, {"psnr": 40.0}, SEARCHED, OTHERS, [], {})


def test_a_setting_prints_as_what_was_asked_the_call_and_what_it_gave():
    assert str(TUNED).splitlines() == [
        "psnr=40: diffcache.wrap(pipe, tolerance=0.139)",
        "  searched  on 21 pictures: 38% of the compute, 2.14× the speed, 46.1 dB (median 46.3, "
        "p5 41.1), 95% met 40 dB",
        "  confirmed on 11 others: 38% of the compute, 2.14× the speed, 47.0 dB (median 46.3, "
        "p5 41.1), 100% met 40 dB",
    ]


def test_a_speed_is_not_met_by_pictures_and_may_not_be_confirmed():
    found = Tuned({"compute": 0.45}, {"speedup": 2.0}, replace(SEARCHED, pictures=1), None, [], {})
    first, second = str(found).splitlines()
    assert second.startswith("  searched  on 1 picture: 38%")
    assert first == "speedup=2: diffcache.wrap(pipe, compute=0.45)"
    assert second.endswith("p5 41.1)")


def test_a_speed_that_cannot_be_is_pointed_out():
    odd = replace(OTHERS, compute=0.367, speedup=3.94)
    *lines, note = str(replace(TUNED, confirmed=odd)).splitlines()
    assert len(lines) == 3
    assert note == (
        "  note      3.94× is faster than the share that was computed allows, so the machine was "
        "busier when the plain pipeline ran; tune again when nothing else runs"
    )
