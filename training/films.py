"""Random films for the VAE: crowded boards on which much happens, right and wrong, so that it favors no task."""

from __future__ import annotations

import numpy as np

from ttopt.miniworld.look import ABSENT, CELLS, EMPTY, GRID, LOOKS, WALL, Actor, Film, adjacent

ODD = 0.04  # chance a board that a thing jumps, vanishes or comes back, or that a pad changes
TURNS = 0.08  # and that it changes its look; where that was rarer, the decoder took it for noise and mixed both colors


def random_film(rng: np.random.Generator, boards: int, busy: float) -> Film:
    """``busy`` in (0, 1]: the share of free cells with a thing at first, about. Things never share a cell."""
    grounds = np.where(rng.random(CELLS) < 0.35 * busy + 0.1, rng.integers(1, WALL, CELLS), EMPTY)
    if rng.random() < 0.4:
        grounds[rng.random(CELLS) < 0.2] = WALL
    cells = [int(c) for c in rng.permutation(np.flatnonzero(grounds != WALL))]
    count = 1 + int(busy * 0.7 * len(cells) * rng.random() ** 0.5)
    actors = [Actor([cell], [int(rng.integers(LOOKS))]) for cell in cells[:count]]
    heading = rng.integers(4, size=count)
    moves = rng.random(count) < 0.6
    film = [grounds]
    for _ in range(boards - 1):
        taken = {actor.track[-1] for actor in actors}
        for number, actor in enumerate(actors):
            here, shown = actor.track[-1], actor.looks[-1]
            if rng.random() < TURNS:
                shown = int(rng.integers(LOOKS))
            if here == ABSENT or rng.random() < ODD / 2:
                free = [c for c in range(CELLS) if c not in taken and grounds[c] != WALL]
                there = int(rng.choice(free)) if free and rng.random() < 0.5 else ABSENT
            else:
                if rng.random() < 0.3:
                    heading[number] = rng.integers(4)
                there = _ahead(here, int(heading[number])) if moves[number] and rng.random() < 0.85 else here
                if there != here and (there in taken or (grounds[there] == WALL and rng.random() < 0.9)):
                    there = here
            taken.add(there)
            actor.track.append(there)
            actor.looks.append(shown)
        grounds = grounds.copy()
        for cell in np.flatnonzero(rng.random(CELLS) < ODD / 4):
            grounds[cell] = rng.integers(0, WALL)
        film.append(grounds)
    return Film(actors, np.stack(film))


def _ahead(cell: int, heading: int) -> int:
    """The next cell in a direction; the same one at the edge of the board."""
    there = cell + (1, -1, GRID, -GRID)[heading]
    return there if 0 <= there < CELLS and adjacent(cell, there) else cell
