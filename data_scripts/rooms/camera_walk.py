"""The walk of a camera through a furnished room.

The camera stays near the walls and looks across the room. It turns around a free spot: for each heading, it stands as
far behind that spot as the free floor allows. As the heading changes, its position follows a smooth loop.
"""

import math

import numpy as np

from .layout import OrientedBox, Room

EYE_HEIGHT = 1.5
# Meters; the distance that the camera keeps from walls and furniture.
BODY_RADIUS = 0.3
_CELL = 0.05
_NUM_HEADINGS = 180
_NUM_SPOTS = 48
# Meters; how far behind the free spot the camera may stand.
_MAX_REACH = 3.0


def draw_walk(room: Room, num_views: int, rng: np.random.Generator) -> np.ndarray | None:
    """Draw a walk whose views overlap and show the furniture.

    Args:
        room (`Room`): The furnished room.
        num_views (`int`): Number of poses; about 30 go once around the room.

    Returns:
        `np.ndarray` of shape `(num_views, 4, 4)`: Camera-to-world, OpenCV axes (x right, y down, z forward), world z
        up. `None` if the furniture leaves too little free floor, or too many views would show bare walls.
    """
    spot, reach = _best_spot(_free_cells(room), rng)
    if reach is None or reach.mean() < 0.35:
        return None
    reach = _smooth_lower_bound(reach)
    headings = np.arange(_NUM_HEADINGS) * 2 * math.pi / _NUM_HEADINGS
    back = np.roll(reach, -_NUM_HEADINGS // 2)  # free distance behind the spot, by heading
    positions = spot + _directions(headings) * -back[:, None]
    count = _count_pieces_ahead(room, positions, headings)
    if np.mean(count < 2) > 0.3:
        return None
    interest = count / count.max()

    turn = 1 if rng.random() < 0.5 else -1
    start = int(rng.choice(np.flatnonzero(interest >= np.quantile(interest, 0.8))))
    heading, wander, pitch = headings[start], rng.uniform(0, 2 * math.pi, 3), rng.uniform(0.16, 0.26)
    poses = []
    for view in range(num_views):
        share = (heading / (2 * math.pi) * _NUM_HEADINGS) % _NUM_HEADINGS
        distance = np.interp(share, np.arange(_NUM_HEADINGS + 1), np.append(back, back[0]))
        distance *= 0.86 + 0.14 * math.sin(0.31 * view + wander[0])
        position = spot - distance * _directions(np.array([heading]))[0]
        height = EYE_HEIGHT + 0.04 * math.sin(0.9 * view + wander[1])
        view_pitch = pitch + 0.03 * math.sin(0.5 * view + wander[2])
        poses.append(_camera_pose(np.array([*position, height]), heading, view_pitch))
        # The camera turns by 6 to 20 degrees from view to view, less where it shows more furniture.
        attention = np.interp(share, np.arange(_NUM_HEADINGS + 1), np.append(interest, interest[0]))
        heading += turn * math.radians(20.0 - 14.0 * attention)
    return np.stack(poses)


def _directions(headings: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(headings), np.sin(headings)], axis=-1)


def _camera_pose(position: np.ndarray, heading: float, pitch: float) -> np.ndarray:
    """Camera-to-world pose that looks along `heading`, `pitch` radians below the horizon, without roll."""
    cos, sin = math.cos(heading), math.sin(heading)
    right = [sin, -cos, 0.0]
    forward = [math.cos(pitch) * cos, math.cos(pitch) * sin, -math.sin(pitch)]
    down = [-math.sin(pitch) * cos, -math.sin(pitch) * sin, -math.cos(pitch)]
    pose = np.eye(4)
    pose[:3] = np.stack([right, down, forward, position], axis=1)
    return pose


def _free_cells(room: Room) -> np.ndarray:
    """Whether the camera may stand in each cell of the floor: `(rows along y, columns along x)`."""
    columns, rows = (np.ceil(room.size[:2] / _CELL)).astype(int)
    x = (np.arange(columns) + 0.5)[None, :] * _CELL
    y = (np.arange(rows) + 0.5)[:, None] * _CELL
    free = (x > BODY_RADIUS) & (x < room.size[0] - BODY_RADIUS) & (y > BODY_RADIUS) & (y < room.size[1] - BODY_RADIUS)
    # A rug is no obstacle; a piece on top of another lies within the footprint of the lower one.
    obstacles = [piece.box for piece in room.pieces if piece.box.size[2] > 0.05 and not piece.stands_on]
    for obstacle in obstacles + ([room.notch] if room.notch else []):
        free &= ~_touches(obstacle, x, y)
    return free


def _touches(obstacle: OrientedBox, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the camera's body would touch the obstacle at `(x, y)`; the coordinates broadcast."""
    cos, sin = math.cos(obstacle.yaw), math.sin(obstacle.yaw)
    dx, dy = x - obstacle.center[0], y - obstacle.center[1]
    half = obstacle.size / 2 + BODY_RADIUS
    return (np.abs(cos * dx + sin * dy) < half[0]) & (np.abs(cos * dy - sin * dx) < half[1])


def _best_spot(free: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """The one of some random spots with the most free floor around it, and the free distance in each direction."""
    rows, columns = np.nonzero(free)
    if len(rows) == 0:
        return np.zeros(2), None
    chosen = rng.integers(len(rows), size=_NUM_SPOTS)
    spots = (np.stack([columns[chosen], rows[chosen]], axis=-1) + 0.5) * _CELL  # (spots, 2)
    directions = _directions(np.arange(_NUM_HEADINGS) * 2 * math.pi / _NUM_HEADINGS)
    steps = np.arange(1, int(_MAX_REACH / _CELL) + 1) * _CELL
    points = spots[:, None, None] + directions[None, :, None] * steps[None, None, :, None]
    cells = np.floor(points / _CELL).astype(int)
    inside = (cells >= 0).all(axis=-1) & (cells[..., 0] < free.shape[1]) & (cells[..., 1] < free.shape[0])
    open_floor = inside & free[np.where(inside, cells[..., 1], 0), np.where(inside, cells[..., 0], 0)]
    reach = np.minimum.accumulate(open_floor, axis=-1).sum(axis=-1) * _CELL  # (spots, headings)
    best = int(np.argmax(reach.mean(axis=1)))
    return spots[best], reach[best]


def _smooth_lower_bound(reach: np.ndarray) -> np.ndarray:
    """A smooth function of direction that never exceeds `reach`: the running mean of a running minimum.

    Both windows have the same size, so each term of the mean is a minimum that includes `reach` in this direction.
    """
    window = _NUM_HEADINGS // 18
    shifted = np.stack([np.roll(reach, shift) for shift in range(-window, window + 1)])
    lowest = shifted.min(axis=0)
    return np.stack([np.roll(lowest, shift) for shift in range(-window, window + 1)]).mean(axis=0)


def _count_pieces_ahead(room: Room, positions: np.ndarray, headings: np.ndarray) -> np.ndarray:
    """Number of pieces in front of the camera, for each position `(headings, 2)` and its heading."""
    centers = np.stack([piece.box.center[:2] for piece in room.pieces])
    offsets = centers[None] - positions[:, None]  # (headings, pieces, 2)
    distance = np.hypot(offsets[..., 0], offsets[..., 1])
    ahead = (offsets * _directions(headings)[:, None]).sum(axis=-1)
    seen = (ahead > distance * math.cos(math.radians(28))) & (distance > 0.8)
    return seen.sum(axis=1)
