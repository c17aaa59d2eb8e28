"""Match rates of the tiny pipelines on held-out prompts.

``evaluate.py unet|dit --guidance 3 --steps 25 --count 96 [--sheet FILE.png]`` prints JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import scenes
import torch
from PIL import Image

from diffcache import tiny

HELD_OUT = Path(__file__).with_name("prompts.json")


def pictures(
    kind: str, pairs: list[tuple[str, int]], *, guidance: float, steps: int, batch: int = 16
) -> np.ndarray:
    """Generate one picture a ``(prompt, seed)`` pair, as ``uint8 (n, 64, 64, 3)``.

    ``guidance`` is classifier-free guidance: ``guidance_scale`` of the UNet's pipeline,
    ``true_cfg_scale`` of the transformer's; 1 turns it off.
    """
    pipe = tiny.pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    name = "guidance_scale" if kind == "unet" else "true_cfg_scale"
    made = []
    for start in range(0, len(pairs), batch):
        texts, seeds = zip(*pairs[start : start + batch], strict=True)
        made += pipe(
            list(texts),
            negative_prompt=[""] * len(texts),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **{name: guidance},
        ).images.tolist()
    return (np.array(made) * 255 + 0.5).astype(np.uint8)


def rates(images: np.ndarray, texts: list[str]) -> dict[str, float]:
    """Shares of ``images`` that match their captions, with textures and without."""
    pairs = list(zip(images, texts, strict=True))
    return {
        "match": float(np.mean([scenes.matches(*pair) for pair in pairs])),
        "match_without_textures": float(
            np.mean([scenes.matches(*pair, textures=False) for pair in pairs])
        ),
    }


def sheet(images: np.ndarray, columns: int = 12) -> Image.Image:
    """The pictures side by side in rows of ``columns``, doubled in size."""
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, len(images), columns)]
    rows = [row for row in rows if row.shape == rows[0].shape]
    whole = Image.fromarray(np.concatenate(rows))
    return whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.NEAREST)


def main() -> None:
    """Parse the command line, generate, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("unet", "dit"))
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held_out = json.loads(HELD_OUT.read_text())["prompts"][: options.count]
    pairs = [(entry["prompt"], entry["seed"]) for entry in held_out]
    images = pictures(options.kind, pairs, guidance=options.guidance, steps=options.steps)
    if options.sheet:
        sheet(images).save(options.sheet)
    line = {"kind": options.kind, "guidance": options.guidance, "steps": options.steps}
    print(json.dumps(line | {"count": len(pairs)} | rates(images, [text for text, _ in pairs])))


if __name__ == "__main__":
    main()
