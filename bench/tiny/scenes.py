"""Procedural captioned scenes, and a reader that checks pictures against their captions.

A scene holds one to four objects in one or two groups, such as "two red circles and one striped
blue square", on a muted gradient. Objects are saturated and backgrounds are not, so that a small
model learns the scenes in an hour and the reader can segment by chroma alone.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIZE = 64
COLOURS = {
    "red": (225, 35, 35),
    "yellow": (235, 215, 30),
    "green": (35, 190, 50),
    "cyan": (30, 205, 220),
    "blue": (40, 60, 230),
    "purple": (205, 45, 215),
}
SHAPES = ("circle", "square", "triangle", "cross", "letter T", "letter H")
TEXTURES = ("plain", "striped", "dotted")
NUMBERS = ("one", "two", "three", "four")
# Crosses and letters have strokes too thin to carry a pattern.
TEXTURED_SHAPES = ("circle", "square", "triangle")

_SHADE = 0.42  # dark parts of a pattern: still more saturated than any background
_GAP = 2.5
_MIN_CHROMA = 46
_MIN_AREA = 45
_CELLS = 16  # shapes are compared on masks resampled to this many cells a side


class Group(NamedTuple):
    """``count`` equal objects; ``texture``, ``colour`` and ``shape`` are words of this module."""

    count: int
    texture: str
    colour: str
    shape: str


def caption(spec: tuple[Group, ...]) -> str:
    """The English caption of a scene, e.g. ``"two red circles and one dotted blue square"``."""
    phrases = []
    for group in spec:
        texture = "" if group.texture == "plain" else f"{group.texture} "
        shape = group.shape
        if group.count > 1:
            shape = shape.replace("letter", "letters")
            shape += {"cross": "es"}.get(shape, "" if "letter" in shape else "s")
        phrases.append(f"{NUMBERS[group.count - 1]} {texture}{group.colour} {shape}")
    return " and ".join(phrases)


def parse(text: str) -> tuple[Group, ...]:
    """The groups a caption names. Raises ``ValueError`` for text :func:`caption` never writes."""
    groups = []
    for phrase in text.split(" and "):
        number, *words = phrase.split()
        texture = words.pop(0) if words and words[0] in TEXTURES else "plain"
        colour, shape = words[0] if words else "", " ".join(words[1:])
        shape = shape.replace("letters", "letter").replace("crosses", "cross")
        shape = shape if shape in SHAPES else shape.removesuffix("s")
        if number not in NUMBERS or colour not in COLOURS or shape not in SHAPES:
            raise ValueError(f"not a scene caption: {phrase!r} in {text!r}")
        groups.append(Group(NUMBERS.index(number) + 1, texture, colour, shape))
    return tuple(groups)


def sample(rng: np.random.Generator) -> tuple[Group, ...]:
    """A random scene of one to four objects; two groups differ in colour or shape."""
    total = int(rng.choice((1, 2, 3, 4), p=(0.25, 0.35, 0.25, 0.15)))
    first = total
    if total > 1 and rng.random() < 0.75:
        first = int(rng.integers(1, total))
    groups: list[Group] = []
    for count in (first, total - first):
        while count:
            shape = str(rng.choice(SHAPES, p=(0.2, 0.2, 0.2, 0.16, 0.12, 0.12)))
            colour = str(rng.choice(list(COLOURS)))
            if groups and (groups[0].colour, groups[0].shape) == (colour, shape):
                continue
            plain = shape not in TEXTURED_SHAPES or rng.random() < 0.55
            texture = "plain" if plain else str(rng.choice(TEXTURES[1:]))
            groups.append(Group(count, texture, colour, shape))
            break
    return tuple(groups)


def held_out(count: int = 96) -> list[tuple[str, int]]:
    """The ``(caption, seed)`` pairs of ``prompts.json``: distinct captions, never trained on."""
    rng = np.random.default_rng(20261121)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[caption(sample(rng))] = None
    return [(text, 1000 + index) for index, text in enumerate(captions)]


def render(spec: tuple[Group, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a scene. ``rng`` places the objects and picks the background.

    Returns ``uint8`` of shape ``(64, 64, 3)``.
    """
    objects = [group for group in spec for _ in range(group.count)]
    low, high = (9.0, 11.0) if len(objects) < 3 else (8.5, 10.0 if len(objects) == 3 else 9.3)
    radii = rng.uniform(low, high, len(objects))
    centres = _place(radii, rng)
    image = _background(rng)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    for group, radius, (x, y) in zip(objects, radii, centres, strict=True):
        dx, dy = columns - x, rows - y
        alpha = np.clip(0.5 - _distance(group.shape, dx, dy, radius), 0.0, 1.0)[..., None]
        paint = np.array(COLOURS[group.colour], np.float32) * _pattern(group.texture, dx, dy)
        image += alpha * (paint - image)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def read(image: np.ndarray) -> Counter:
    """Count the objects in a picture.

    ``image`` is ``(64, 64, 3)``, ``uint8`` or floats in [0, 1]. Returns a ``Counter`` whose keys
    are ``(texture, colour, shape)``. Raises ``ValueError`` for another shape.
    """
    image = np.asarray(image)
    if image.shape != (SIZE, SIZE, 3):
        raise ValueError(f"expected an image of shape {(SIZE, SIZE, 3)}, got {image.shape}")
    pixels = image.astype(np.float32) * (1.0 if image.dtype == np.uint8 else 255.0)
    chroma = pixels.max(-1) - pixels.min(-1)
    hues = (pixels - pixels.min(-1, keepdims=True)) / np.maximum(chroma, 1.0)[..., None]
    nearest = ((hues[:, :, None] - _HUES) ** 2).sum(-1).argmin(-1)
    found: Counter = Counter()
    for index, colour in enumerate(COLOURS):
        labels, _ = ndimage.label((nearest == index) & (chroma > _MIN_CHROMA), np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[box] == number
            if mask.sum() < _MIN_AREA:
                continue
            shape = _shape_of(mask)
            texture = (
                _texture_of(pixels[box].max(-1), mask) if shape in TEXTURED_SHAPES else "plain"
            )
            found[texture, colour, shape] += 1
    return found


def matches(image: np.ndarray, text: str, *, textures: bool = True) -> bool:
    """Whether a picture shows exactly the objects its caption names.

    ``image`` is as for :func:`read`. Counts, colours and shapes must all agree, and textures too
    unless ``textures`` is false.
    """
    skip = 0 if textures else 1
    wanted, found = Counter(), Counter()
    for count, *kind in parse(text):
        wanted[tuple(kind[skip:])] += count
    for kind, count in read(image).items():
        found[kind[skip:]] += count
    return wanted == found


def _place(radii: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Many whole layouts at once: four objects fit in about one random layout in a hundred.
    apart = 1.2 * (radii[:, None] + radii) + _GAP
    np.fill_diagonal(apart, 0.0)
    margin = radii[:, None] + 1.0
    while True:
        batch = 8 ** len(radii)
        centres = margin + rng.random((batch, len(radii), 2)) * (SIZE - 1 - 2 * margin)
        gaps = np.linalg.norm(centres[:, :, None] - centres[:, None], axis=-1)
        fits = (gaps >= apart).all((1, 2))
        if fits.any():
            return centres[fits.argmax()]


def _background(rng: np.random.Generator) -> np.ndarray:
    level, tint = rng.uniform(70, 190), rng.uniform(-9, 9, 3)
    slope = rng.uniform(-35, 35, 2)
    ramp = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    plane = level + slope[0] * ramp[:, None] + slope[1] * ramp
    return (plane[..., None] + tint).astype(np.float32)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside."""

    def bar(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
        return np.maximum(
            np.abs(dx - x * radius) - half_width * radius,
            np.abs(dy - y * radius) - half_height * radius,
        )

    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return bar(0, 0, 0.88, 0.88)
    if shape == "triangle":
        # Apex one radius up, base 0.85 down and 1.05 wide to either side.
        slant = (np.abs(dx) * 1.85 - (dy + radius) * 1.05) / np.hypot(1.85, 1.05)
        return np.maximum(slant, dy - 0.85 * radius)
    if shape == "cross":
        return np.minimum(bar(0, 0, 1.0, 0.33), bar(0, 0, 0.33, 1.0))
    if shape == "letter T":
        return np.minimum(bar(0, -0.72, 0.9, 0.26), bar(0, 0, 0.26, 0.98))
    return np.minimum(
        np.minimum(bar(-0.62, 0, 0.25, 0.98), bar(0.62, 0, 0.25, 0.98)), bar(0, 0, 0.5, 0.22)
    )


def _pattern(texture: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    if texture == "plain":
        return np.ones((1, 1, 1), np.float32)
    if texture == "striped":
        dark = np.clip(0.5 + 1.75 - np.abs(np.mod(dy, 7.0) - 3.5), 0, 1)
    else:
        dots = np.hypot(np.mod(dx, 7.0) - 3.5, np.mod(dy, 7.0) - 3.5)
        dark = np.clip(0.5 + 2.2 - dots, 0, 1)
    return (1.0 - (1.0 - _SHADE) * dark)[..., None]


def _normalised(mask: np.ndarray) -> np.ndarray:
    """A mask stretched so that its bounding box becomes 16 by 16 cells."""
    height, width = mask.shape
    grid = (np.arange(_CELLS) + 0.5) / _CELLS
    where = np.meshgrid(grid * height - 0.5, grid * width - 0.5, indexing="ij")
    return ndimage.map_coordinates(mask.astype(np.float32), where, order=1, mode="nearest")


def _shape_of(mask: np.ndarray) -> str:
    errors = np.abs(_TEMPLATES - _normalised(mask)).sum((1, 2))
    return SHAPES[int(errors.argmin())]


def _texture_of(value: np.ndarray, mask: np.ndarray) -> str:
    # Edges blend into the background and would pass for a pattern.
    inner = ndimage.binary_erosion(mask, iterations=2)
    if inner.sum() < 25 or value[inner].std() < 0.11 * value[inner].max():
        return "plain"
    counts = inner.sum(1)
    rows = counts >= 4
    if not rows.any():
        # So thin an object, as broken pictures have, shows no stripes.
        return "dotted"
    means = (value * inner).sum(1)[rows] / counts[rows]
    between = np.average((means - value[inner].mean()) ** 2, weights=counts[rows])
    return "striped" if between > 0.6 * value[inner].var() else "dotted"


def _templates() -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2
    masks = []
    for shape in SHAPES:
        mask = _distance(shape, columns, rows, 10.0) < 0.3
        masks.append(_normalised(mask[ndimage.find_objects(mask.astype(int))[0]]))
    return np.stack(masks)


def _hues() -> np.ndarray:
    palette = np.array(list(COLOURS.values()), np.float32)
    palette -= palette.min(-1, keepdims=True)
    return palette / palette.max(-1, keepdims=True)


_TEMPLATES = _templates()
_HUES = _hues()
