"""Single figures of speed and memory, as measured, from the newest rows of saved results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from rows import Results, Row, newest

MIB_OF_PEERS = ("diffusers TaylorSeer, modules", "cache-dit DBCache + TaylorSeer")


class Found(NamedTuple):
    """A figure as measured, and whether it is as asked; None where nothing is asked of it."""

    text: str
    holds: bool | None = None


Finder = Callable[[Results], Found | None]
"""Looks a figure up; None where nothing was measured."""


def _least(cells: Iterable[tuple[str, float]], bound: float, form: str = ".3f") -> Found | None:
    """The smallest of named figures, which is to be `bound` or more."""
    name, value = min(cells, key=lambda cell: cell[1], default=("", None))
    return None if value is None else Found(f"{value:{form}} ({name}, the least)", value >= bound)


def _on_cuda(rows: list[Row], *keys: str) -> list[Row]:
    return newest((row for row in rows if row["gpu"]), *keys)


def bandwidth(results: Results) -> Found | None:
    rows = newest(results["bandwidth"], "kernel")
    return _least(((r["kernel"], r["gb_s_p50"] / r["copy_gb_s_p50"]) for r in rows), 0.9)


def launches(results: Results) -> Found | None:
    rows = _on_cuda(results["kernels"], "kernel", "latents", "clock")
    counts = [row["launches"] for row in rows if row.get("launches")]
    return Found(f"{min(counts)} to {max(counts)}", max(counts) == 1) if counts else None


def beside(version: str, bound: float) -> Finder:
    """How often faster than another version a kernel is on the device."""

    def found(results: Results) -> Found | None:
        rows = _on_cuda(results["kernels"], "kernel", "latents", "clock")
        column = f"{version}_us_p50"
        return _least(
            (
                (f"{row['kernel']}, {row['latents']}", row[column] / row["ours_us_p50"])
                for row in rows
                if row["clock"] == "device" and column in row
            ),
            bound,
            ".2f",
        )

    return found


def ended(bench: str) -> Finder:
    """How tests that need CUDA ended when they were last run there."""

    def found(results: Results) -> Found | None:
        rows = [row for row in results["on_cuda"] if row["bench"] == bench]
        return Found(rows[-1]["end"], rows[-1]["end"] == "done") if rows else None

    return found


def reads(results: Results) -> Found | None:
    rows = newest(results["lagged"], "cell", "tolerance", "lagged")
    exact = [row["host_reads"] for row in rows if not row["lagged"]]
    return Found(f"{max(exact)} in 28 steps", max(exact) <= 28) if exact else None


def fidelity(results: Results) -> Found | None:
    rows = newest(results["lagged"], "cell", "tolerance", "lagged")
    psnr = {(row["cell"], row["tolerance"], row["lagged"]): row["psnr"] for row in rows}
    found = [psnr[c, t, True] - value for (c, t, late), value in psnr.items() if not late]
    return Found(f"{min(found):+.1f} to {max(found):+.1f} dB") if found else None


def overhead(library: str, blocks: int, column: str, bound: float, *peers: str) -> Finder:
    """Milliseconds of a library in the overhead bench, with those of `peers` in the same run.

    A median within the bound tells nothing where the run's own 80th percentile is beyond it.
    """

    def found(results: Results) -> Found | None:
        rows = newest((r for r in results["overhead"] if "blocks" in r), "library", "blocks")
        rows = [row for row in rows if row["blocks"] == blocks]
        each = {row["library"]: row[f"{column}_p50"] for row in rows}
        if library not in each:
            return None
        most = {row["library"]: row[f"{column}_p80"] for row in rows}[library]
        others = ", ".join(f"{peer} {each[peer]:.3f}" for peer in peers)
        text = f"{each[library]:.3f} ms" + (f" ({others})" if others else "")
        if each[library] <= bound < most:
            return Found(f"{text}, too unsteady to tell: up to {most:.3f}")
        return Found(text, each[library] <= bound)

    return found


def realised(site: str, bound: float, cuda: bool) -> Finder:
    """The least share of the ideal speed-up that diffcache realised on a site, over models."""

    def found(results: Results) -> Found | None:
        rows = newest(
            (r for r in results["speedup"] if bool(r.get("gpu")) is cuda),
            "model",
            "site",
            "library",
        )
        ours = [row for row in rows if row["library"] == "diffcache" and row["site"] == site]
        return _least(((row["model"], row["realised_p50"]) for row in ours), bound)

    return found


def half_batches(results: Results) -> Found | None:
    rows = newest(results["batches"], "site", "gpu")
    return _least(((row["site"], row["speed_p50"]) for row in rows), 0.9, ".2f")


def kept(model: str) -> Finder:
    """Bytes that `adaptive` keeps on a model, beside TaylorSeer on every module."""

    def found(results: Results) -> Found | None:
        rows = newest((r for r in results["memory"] if r["model"] == model), "method", "how")
        mib = {row["method"]: row.get("cache_mib") for row in rows if row["how"] == "meta"}
        if "adaptive" not in mib:
            return None
        named = ", ".join(f"{peer} {mib[peer]}" for peer in MIB_OF_PEERS if mib.get(peer))
        peers = [mib[peer] for peer in MIB_OF_PEERS if mib.get(peer)]
        text = f"{mib['adaptive']} MiB ({named})"
        return Found(text, mib["adaptive"] < min(peers, default=inf))

    return found


def peak(results: Results) -> Found | None:
    rows = [row for row in results["memory"] if row["how"] == "cuda" and "peak_mib" in row]
    mib = {(row["model"], row["method"]): row["peak_mib"] for row in rows}
    more = [mib[model, "adaptive"] - mib[model, "plain"] for model, m in mib if m == "adaptive"]
    return Found(f"{max(more):+.0f} MiB at most", max(more) <= 64) if more else None
