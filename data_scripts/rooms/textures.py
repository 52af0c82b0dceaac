"""Procedural textures of the rooms, sampled with mipmaps.

A texture is a periodic square image in [0, 1] that blends the two colors of a material, so one texture serves any
colors. Textures with colors of their own blend black and white in each channel.
"""

from functools import lru_cache

import numpy as np

TEXTURE_SIZE = 256
# All scenes share the textures; they differ in the colors and scales of their materials.
_TEXTURE_SEED = 20260
_TICKS = (np.arange(TEXTURE_SIZE) + 0.5) / TEXTURE_SIZE
# Texture coordinates in [0, 1): x to the right, y upward.
_X, _Y = np.meshgrid(_TICKS, _TICKS)


def _smooth_noise(rng: np.random.Generator, exponent: float, stretch: float = 1.0) -> np.ndarray:
    """Periodic noise in [0, 1] with spectrum 1 / frequency^exponent; `stretch` > 1 stretches it along x."""
    frequency = np.fft.fftfreq(TEXTURE_SIZE) * TEXTURE_SIZE
    radius = np.hypot(frequency[:, None], stretch * frequency[None, :])
    radius[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))) / radius**exponent
    noise = np.fft.ifft2(spectrum).real
    low, high = np.percentile(noise, (2, 98))
    return np.clip((noise - low) / (high - low), 0.0, 1.0)


def _draw_plain(rng: np.random.Generator) -> np.ndarray:
    return np.ones((TEXTURE_SIZE, TEXTURE_SIZE))


def _draw_plaster(rng: np.random.Generator) -> np.ndarray:
    return 0.72 + 0.28 * (0.6 * _smooth_noise(rng, 1.2) + 0.4 * _smooth_noise(rng, 2.0))


def _draw_fabric(rng: np.random.Generator) -> np.ndarray:
    weave = 0.5 + 0.25 * np.sin(2 * np.pi * 24 * _X) + 0.25 * np.sin(2 * np.pi * 24 * _Y)
    return 0.55 + 0.25 * weave + 0.2 * _smooth_noise(rng, 1.0)


def _draw_carpet(rng: np.random.Generator) -> np.ndarray:
    return 0.55 * _smooth_noise(rng, 0.5) + 0.45 * _smooth_noise(rng, 1.6)


def _draw_wood(rng: np.random.Generator) -> np.ndarray:
    warp = 0.12 * _smooth_noise(rng, 2.2, stretch=4.0)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (7 * (_Y + warp)))
    return 0.3 + 0.4 * rings**2 + 0.3 * _smooth_noise(rng, 1.2, stretch=12.0)


def _draw_planks(rng: np.random.Generator) -> np.ndarray:
    """Boards along x, eight per repeat, each with its own tone; joints shift from row to row."""
    row = np.floor(8 * _Y).astype(int)
    shifted = 2 * _X + (row * 0.37) % 1.0
    board = row * 2 + np.floor(shifted % 2).astype(int)
    tone = rng.uniform(0.35, 1.0, 16)[board]
    seam = ((8 * _Y) % 1 < 0.05) | (shifted % 1 < 0.008)
    grain = _smooth_noise(rng, 1.3, stretch=10.0)
    return np.where(seam, 0.0, 0.7 * tone + 0.3 * grain)


def _draw_parquet(rng: np.random.Generator) -> np.ndarray:
    """Basket weave: squares of four strips whose direction alternates."""
    across = (np.floor(4 * _X) + np.floor(4 * _Y)).astype(int) % 2 == 0
    along, strip = np.where(across, 4 * _X % 1, 4 * _Y % 1), np.where(across, 4 * _Y % 1, 4 * _X % 1)
    cell = np.floor(4 * _X).astype(int) * 4 + np.floor(4 * _Y).astype(int)
    tone = rng.uniform(0.4, 1.0, 64)[cell * 4 + np.floor(4 * strip).astype(int)]
    seam = (4 * strip % 1 < 0.07) | (along < 0.02)
    return np.where(seam, 0.05, 0.8 * tone + 0.2 * _smooth_noise(rng, 1.0))


def _draw_tiles(rng: np.random.Generator) -> np.ndarray:
    tile = np.floor(4 * _X).astype(int) * 4 + np.floor(4 * _Y).astype(int)
    grout = (4 * _X % 1 < 0.035) | (4 * _Y % 1 < 0.035)
    tone = rng.uniform(0.75, 0.95, 16)[tile]
    return np.where(grout, 0.0, tone + 0.05 * _smooth_noise(rng, 1.5))


def _draw_checker(rng: np.random.Generator) -> np.ndarray:
    dark = (np.floor(4 * _X) + np.floor(4 * _Y)).astype(int) % 2 == 0
    marble = 0.12 * _smooth_noise(rng, 1.8)
    return np.where(dark, marble, 1.0 - marble)


def _draw_bricks(rng: np.random.Generator) -> np.ndarray:
    row = np.floor(12 * _Y).astype(int)
    shifted = 4 * _X + 0.5 * (row % 2)
    tone = rng.uniform(0.45, 1.0, 48)[row * 4 + np.floor(shifted % 4).astype(int)]
    mortar = (12 * _Y % 1 < 0.12) | (shifted % 1 < 0.04)
    return np.where(mortar, 0.0, 0.8 * tone + 0.2 * _smooth_noise(rng, 0.8))


def _draw_stripes(rng: np.random.Generator) -> np.ndarray:
    return np.where(6 * _X % 1 < 0.5, 1.0, 0.0)


def _draw_wallpaper(rng: np.random.Generator) -> np.ndarray:
    """Rows of four-petaled flowers, every other row shifted by half a step."""
    row = np.floor(6 * _Y).astype(int)
    u, v = (6 * _X + 0.5 * (row % 2)) % 1 - 0.5, 6 * _Y % 1 - 0.5
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    flower = radius < 0.2 + 0.12 * np.cos(4 * angle)
    return np.where(flower & (radius > 0.06), 0.15, 0.92 + 0.08 * _smooth_noise(rng, 1.0))


def _draw_leaves(rng: np.random.Generator) -> np.ndarray:
    return np.where(_smooth_noise(rng, 1.0) > 0.55, 1.0, 0.25) * 0.7 + 0.3 * _smooth_noise(rng, 1.0)


def _draw_rug(rng: np.random.Generator) -> np.ndarray:
    """A border, a field of diamonds, and noise; meant to be stretched over one face."""
    edge = np.minimum(np.minimum(_X, 1 - _X), np.minimum(_Y, 1 - _Y))
    border = (edge < 0.04) | ((edge > 0.07) & (edge < 0.1))
    diamonds = (np.abs(6 * _X % 1 - 0.5) + np.abs(4 * _Y % 1 - 0.5) < 0.28) & (edge > 0.12)
    return np.clip(np.where(border | diamonds, 0.1, 0.9) + 0.2 * (_smooth_noise(rng, 0.5) - 0.5), 0.0, 1.0)


def _draw_books(rng: np.random.Generator) -> np.ndarray:
    """A row of colored book spines, each with a title band."""
    edges = np.cumsum(rng.uniform(6, 16, 40)).astype(int)
    edges = edges[edges < TEXTURE_SIZE]
    colors = np.array([[0.62, 0.15, 0.14], [0.16, 0.28, 0.50], [0.20, 0.40, 0.25], [0.80, 0.66, 0.34]])
    colors = np.concatenate([colors, [[0.88, 0.84, 0.76], [0.30, 0.19, 0.14], [0.45, 0.25, 0.45]]])
    book = np.searchsorted(edges, np.arange(TEXTURE_SIZE), side="right")
    spine = colors[rng.integers(len(colors), size=len(edges) + 1)][book]  # (size, 3)
    image = np.repeat(spine[None], TEXTURE_SIZE, axis=0)
    band = (_Y > 0.68) & (_Y < 0.78)
    image = np.where(band[..., None], 0.5 * image + 0.45, image)
    gap = np.isin(np.arange(TEXTURE_SIZE), edges) | np.isin(np.arange(TEXTURE_SIZE) + 1, edges)
    return np.where(gap[None, :, None], 0.3 * image, image)


def _draw_screen(rng: np.random.Generator) -> np.ndarray:
    """A desktop: a blue gradient with three windows."""
    image = np.stack([0.10 + 0.15 * _X, 0.25 + 0.3 * _Y, 0.55 + 0.3 * _X], axis=-1)
    for left, bottom, width, height, color in (
        (0.08, 0.35, 0.4, 0.5, (0.92, 0.93, 0.95)),
        (0.55, 0.5, 0.36, 0.35, (0.95, 0.75, 0.30)),
        (0.55, 0.15, 0.3, 0.25, (0.85, 0.30, 0.30)),
    ):
        inside = (_X > left) & (_X < left + width) & (_Y > bottom) & (_Y < bottom + height)
        image = np.where(inside[..., None], color, image)
    return image


def _draw_landscape(rng: np.random.Generator) -> np.ndarray:
    """The view from a window: sky, clouds, hills and a meadow."""
    sky = np.stack([0.55 + 0.35 * (1 - _Y), 0.75 + 0.2 * (1 - _Y), 0.95 + 0 * _Y], axis=-1)
    clouds = np.clip(2.5 * _smooth_noise(rng, 1.8, stretch=0.5) - 1.2, 0.0, 1.0)[..., None]
    image = sky + clouds * (1.0 - sky)
    hills = 0.34 + 0.06 * np.sin(2 * np.pi * 2 * _X) + 0.03 * np.sin(2 * np.pi * 5 * _X + 1)
    image = np.where((_Y < hills)[..., None], (0.38, 0.55, 0.50), image)
    meadow = 0.2 + 0.03 * np.sin(2 * np.pi * 3 * _X + 2)
    return np.where((_Y < meadow)[..., None], (0.42, 0.62, 0.28), image)


def _draw_painting(rng: np.random.Generator) -> np.ndarray:
    """An abstract canvas of overlapping discs and bars."""
    image = np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), (0.93, 0.89, 0.80))
    for i in range(9):
        center, size, color = rng.uniform(0.1, 0.9, 2), rng.uniform(0.08, 0.28), rng.uniform(0.1, 0.95, 3)
        if i % 3 == 2:
            inside = (np.abs(_X - center[0]) < 0.35 * size) & (np.abs(_Y - center[1]) < 1.6 * size)
        else:
            inside = np.hypot(_X - center[0], _Y - center[1]) < size
        image = np.where(inside[..., None], color, image)
    return image


_DRAWINGS = {
    "plain": _draw_plain,
    "plaster": _draw_plaster,
    "fabric": _draw_fabric,
    "carpet": _draw_carpet,
    "wood": _draw_wood,
    "planks": _draw_planks,
    "parquet": _draw_parquet,
    "tiles": _draw_tiles,
    "checker": _draw_checker,
    "bricks": _draw_bricks,
    "stripes": _draw_stripes,
    "wallpaper": _draw_wallpaper,
    "leaves": _draw_leaves,
    "rug": _draw_rug,
    "books": _draw_books,
    "screen": _draw_screen,
    "landscape": _draw_landscape,
    "painting": _draw_painting,
}
TEXTURES = tuple(_DRAWINGS)
NUM_LEVELS = TEXTURE_SIZE.bit_length()


@lru_cache(maxsize=1)
def _mipmaps() -> tuple[np.ndarray, np.ndarray]:
    """All textures at all levels in one flat array `(texels, 3)` in [0, 1], and the start of each level."""
    images = []
    for index, draw in enumerate(_DRAWINGS.values()):
        image = draw(np.random.default_rng([_TEXTURE_SEED, index]))
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
        images.append(np.clip(image, 0.0, 1.0).astype(np.float32))
    level = np.stack(images)  # (textures, size, size, 3)
    levels, starts, start = [], [], 0
    for _ in range(NUM_LEVELS):
        levels.append(level.reshape(-1, 3))
        starts.append(start)
        start += len(levels[-1])
        if level.shape[1] > 1:
            level = (level[:, ::2, ::2] + level[:, 1::2, ::2] + level[:, ::2, 1::2] + level[:, 1::2, 1::2]) / 4
    return np.concatenate(levels), np.array(starts, np.int32)


def sample_textures(texture: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Sample textures at the mipmap level whose texels are about as large as the pixel.

    Args:
        texture (`np.ndarray` of shape `(num_samples,)`, integer): Index into `TEXTURES`.
        u, v (`np.ndarray` of shape `(num_samples,)`): Texture coordinates, in repeats.
        footprint (`np.ndarray` of shape `(num_samples,)`): Side of the pixel on the surface, in repeats.

    Returns:
        `np.ndarray` of shape `(num_samples, 3)`: Values in [0, 1].
    """
    texels, starts = _mipmaps()
    # The exponent of a float gives the floor of its base-2 logarithm, and is far cheaper than `log2`.
    level = np.clip(np.frexp(footprint * np.float32(TEXTURE_SIZE * 1.4))[1] - 1, 0, NUM_LEVELS - 1)
    bits = NUM_LEVELS - 1 - level
    mask = (1 << bits) - 1
    size = (mask + 1).astype(np.float32)
    column = np.floor(u * size).astype(np.int32) & mask
    row = np.floor(v * size).astype(np.int32) & mask
    return texels[starts[level] + (((texture << bits) + row) << bits) + column]
