"""A setting that was searched for, and what it achieved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .measuring import TOO_FAST, too_fast
from .options import is_number
from .saved import Saved, all_named


@dataclass(frozen=True)
class Achieved:
    """What a setting gave on some pictures.

    Attributes:
        pictures: how many.
        compute: share of the row-steps that was computed.
        speedup: wall time of the plain pipeline over that with the setting.
        psnr: mean PSNR to the plain pictures, in dB, capped at 60 a picture.
        psnr_p5, psnr_p50: percentiles over the pictures.
        psnr_assured: what nine in ten of all pictures reach, as far as these can tell.
        met: share of the pictures that reach the PSNR that was asked for; of a speed-up, 1 or 0,
            as all of them are as fast together.
    """

    pictures: int
    compute: float
    speedup: float
    psnr: float
    psnr_p5: float
    psnr_p50: float
    psnr_assured: float
    met: float

    def __str__(self) -> str:
        return (
            f"{self.compute:.0%} of the compute, {self.speedup:.2f}× the speed, "
            f"{self.psnr:.1f} dB (median {self.psnr_p50:.1f}, p5 {self.psnr_p5:.1f})"
        )


@dataclass(frozen=True)
class Tuned(Saved):
    """A setting, found on some prompts and confirmed on others.

    Attributes:
        options: what to pass on: `diffcache.wrap(pipe, **tuned.options)`.
        asked: `{"psnr": …}` or `{"speedup": …}`.
        searched: what was achieved on the prompts that it was found on.
        confirmed: the same on the others; None where there were none.
        tried: every setting that was tried, with its compute and the figure that was searched by.
        setting: pipeline, scheduler, steps and call that this holds for.
    """

    kind: ClassVar[str] = "tuned setting"
    command: ClassVar[str] = "diffcache.tune(pipe, prompts, psnr=40).save(path)"

    options: dict[str, float]
    asked: dict[str, float]
    searched: Achieved
    confirmed: Achieved | None
    tried: list[dict[str, float]]
    setting: dict[str, Any]

    def __str__(self) -> str:
        ((asked, wanted),) = self.asked.items()
        options = ", ".join(f"{name}={value:.3g}" for name, value in self.options.items())
        lines = [f"{asked}={wanted:g}: diffcache.wrap(pipe, {options})"]
        parts = ("searched", "picture", self.searched), ("confirmed", "other", self.confirmed)
        for name, whose, found in parts:
            if found is None:
                continue
            # A speed is met by all pictures together.
            met = f", {found.met:.0%} met {wanted:g} dB" if asked == "psnr" else ""
            many = "s" if found.pictures > 1 else ""
            lines.append(f"  {name:<9} on {found.pictures} {whose}{many}: {found}{met}")
            if too_fast(found.speedup, found.compute):
                lines.append(
                    f"  note      {found.speedup:.2f}× is {TOO_FAST}; tune again when "
                    "nothing else runs"
                )
        return "\n".join(lines)

    @classmethod
    def restored(cls, found: dict[str, Any]) -> Tuned:
        ((asked, _),) = found["asked"].items()
        if asked not in ("psnr", "speedup"):
            raise ValueError(f"nothing is asked for by {asked!r}")
        on_others = found["confirmed"] is not None
        measured = ["searched", "confirmed"] if on_others else ["searched"]
        for name in ("options", "asked", *measured):
            all_named(found[name], is_number)
        for tried in found["tried"]:
            all_named(tried, is_number)
        all_named(found["setting"], lambda value: True)
        return cls(**{**found, **{name: Achieved(**found[name]) for name in measured}})
