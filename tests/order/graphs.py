"""Random graphs of the kinds that collections make, as key -> dependencies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from dask._task_spec import Task, TaskRef

Structure = dict[tuple, list[tuple]]


def random_dag(random: Random) -> Structure:
    """Every task takes a few of those before it, near ones more often."""
    count = random.randint(10, 120)
    reach = random.choice([3, 8, 20, count])
    fan_in = random.randint(1, 4)
    graph: Structure = {}
    for i in range(count):
        near = range(max(0, i - reach), i)
        taken = random.sample(near, min(len(near), random.randint(0, fan_in)))
        graph["x", i] = [("x", j) for j in taken]
    return graph


def layered_dag(random: Random) -> Structure:
    """Layers of random width; every task takes some of the layer before."""
    graph: Structure = {}
    previous: list[tuple] = []
    for layer in range(random.randint(2, 8)):
        current = [("x", layer, i) for i in range(random.randint(2, 15))]
        for key in current:
            count = random.randint(1, min(4, len(previous))) if previous else 0
            graph[key] = random.sample(previous, count)
        previous = current
    return graph


def tree_reduction(random: Random) -> Structure:
    """Load, map a few times, reduce in groups; several reductions may share inputs."""
    width, split, depth = (
        random.randint(2, 60),
        random.randint(2, 8),
        random.randint(0, 3),
    )
    graph: Structure = {("load", i): [] for i in range(width)}
    for output in range(random.randint(1, 3)):
        level = [("load", i) for i in range(width)]
        for step in range(depth):
            mapped = [("map", output, step, i) for i in range(width)]
            graph.update(
                {key: [below] for key, below in zip(mapped, level, strict=True)}
            )
            level = mapped
        step = 0
        while len(level) > 1:
            groups = [level[i : i + split] for i in range(0, len(level), split)]
            level = [("reduce", output, step, i) for i in range(len(groups))]
            graph.update(zip(level, groups, strict=True))
            step += 1
    return graph


def uneven_tree(random: Random) -> Structure:
    """Joins random pairs until one is left, with chains of random length between."""
    graph: Structure = {}
    ends: list[tuple] = []
    for i in range(random.randint(3, 50)):
        graph["leaf", i] = []
        ends.append(("leaf", i))
    while len(ends) > 1:
        name = len(graph)
        joined = random.sample(ends, min(len(ends), random.randint(2, 3)))
        ends = [end for end in ends if end not in joined]
        graph["join", name] = joined
        last = ("join", name)
        for i in range(random.randint(0, 2)):
            graph["chain", name, i] = [last]
            last = ("chain", name, i)
        ends.append(last)
    return graph


def map_overlap(random: Random) -> Structure:
    """Stencils over a line of blocks, one or several in a row."""
    width, reach = random.randint(3, 30), random.randint(1, 2)
    has_share = random.random() < 0.5
    graph: Structure = {("load", i): [] for i in range(width)}
    level = [("load", i) for i in range(width)]
    for step in range(random.randint(1, 4)):
        if has_share:
            level_shared = [("share", step, i) for i in range(width)]
            graph.update({key: [b] for key, b in zip(level_shared, level, strict=True)})
            level = level_shared
        stencil = [("stencil", step, i) for i in range(width)]
        for i, key in enumerate(stencil):
            graph[key] = level[max(0, i - reach) : i + reach + 1]
        level = stencil
    return graph


def grid_overlap(random: Random) -> Structure:
    """A stencil over a grid of blocks, then a reduction along one axis."""
    rows, columns = random.randint(2, 7), random.randint(2, 7)
    graph: Structure = {("load", i, j): [] for i in range(rows) for j in range(columns)}
    for i in range(rows):
        for j in range(columns):
            around = [(i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            graph["stencil", i, j] = [
                ("load", a, b) for a, b in around if 0 <= a < rows and 0 <= b < columns
            ]
    if random.random() < 0.6:
        for i in range(rows):
            graph["sum", i] = [("stencil", i, j) for j in range(columns)]
    return graph


def shuffle(random: Random) -> Structure:
    """All to all through splits, over one or two inputs; then more work or none."""
    before, after = random.randint(2, 12), random.randint(2, 12)
    graph: Structure = {}
    for table in range(random.randint(1, 2)):
        for i in range(before):
            graph["load", table, i] = []
            graph["group", table, i] = [("load", table, i)]
            for j in range(after):
                graph["split", table, i, j] = [("group", table, i)]
        for j in range(after):
            graph["concat", table, j] = [("split", table, i, j) for i in range(before)]
    tables = [name for name in ("concat",) if ("concat", 1, 0) in graph]
    if tables:
        for j in range(after):
            graph["merge", j] = [("concat", 0, j), ("concat", 1, j)]
    if random.random() < 0.5:
        last = "merge" if tables else "concat"
        ends = [
            ("merge", j) if last == "merge" else ("concat", 0, j) for j in range(after)
        ]
        graph["total",] = ends
    return graph


def chains_with_shared_roots(random: Random) -> Structure:
    """Chains that each start from some of a few shared roots."""
    roots, chains = random.randint(1, 6), random.randint(2, 25)
    graph: Structure = {("root", i): [] for i in range(roots)}
    ends = []
    for chain in range(chains):
        start = random.sample(range(roots), random.randint(1, min(3, roots)))
        below = [("root", i) for i in start]
        if random.random() < 0.5:
            graph["load", chain] = []
            below.append(("load", chain))
        for step in range(random.randint(1, 5)):
            graph["chain", chain, step] = below
            below = [("chain", chain, step)]
        ends.extend(below)
    if random.random() < 0.5:
        graph["end",] = ends
    return graph


def many_outputs(random: Random) -> Structure:
    """Each input feeds several outputs, and some outputs take several inputs."""
    inputs = random.randint(2, 20)
    graph: Structure = {("load", i): [] for i in range(inputs)}
    for i in range(inputs):
        for j in range(random.randint(0, 4)):
            graph["own", i, j] = [("load", i)]
    for k in range(random.randint(1, 20)):
        graph["mixed", k] = [
            ("load", i) for i in random.sample(range(inputs), min(inputs, 2))
        ]
        if random.random() < 0.3:
            graph["after", k] = [("mixed", k)]
    return graph


def rechunk(random: Random) -> Structure:
    """Blocks cut along one axis and put together along another, in two rounds."""
    size, step = random.randint(2, 8), random.randint(1, 3)
    graph: Structure = {("load", i): [] for i in range(size)}
    level = [("load", i) for i in range(size)]
    for turn in range(random.randint(1, 2)):
        merged = []
        for target in range(size):
            parts = []
            for i in range(target, size, step):
                graph["cut", turn, target, i] = [level[i]]
                parts.append(("cut", turn, target, i))
            graph["merge", turn, target] = parts
            merged.append(("merge", turn, target))
        level = merged
    return graph


def cumulative(random: Random) -> Structure:
    """A running total over blocks, with a result for every block."""
    width = random.randint(2, 40)
    graph: Structure = {}
    for i in range(width):
        graph["load", i] = []
        graph["sum", i] = [("load", i)]
        graph["total", i] = [("sum", i)] + ([("total", i - 1)] if i else [])
        graph["result", i] = [("load", i)] + ([("total", i - 1)] if i else [])
    if random.random() < 0.5:
        graph["end",] = [("result", i) for i in range(width)]
    return graph


def linear_algebra(random: Random) -> Structure:
    """A product of two matrices of blocks, summed over the inner axis."""
    rows, inner, columns = (random.randint(1, 5) for _ in range(3))
    graph: Structure = {("a", i, k): [] for i in range(rows) for k in range(inner)}
    graph.update({("b", k, j): [] for k in range(inner) for j in range(columns)})
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                graph["mul", i, j, k] = [("a", i, k), ("b", k, j)]
            graph["sum", i, j] = [("mul", i, j, k) for k in range(inner)]
    return graph


FAMILIES: list[Callable[[Random], Structure]] = [
    random_dag,
    layered_dag,
    tree_reduction,
    uneven_tree,
    map_overlap,
    grid_overlap,
    shuffle,
    chains_with_shared_roots,
    many_outputs,
    rechunk,
    cumulative,
    linear_algebra,
]


def make(seed: int) -> tuple[str, dict[tuple, Any]]:
    """The graph of one seed, insertion order shuffled, and its family's name.

    The names of layers become numbers: dask's result depends on the iteration
    order of sets, and strings would change that from one process to the next.
    """
    random = Random(seed)
    family = FAMILIES[seed % len(FAMILIES)]
    structure = family(random)
    numbers = {name: i for i, name in enumerate(sorted({key[0] for key in structure}))}

    def numbered(key: tuple) -> tuple:
        return (numbers[key[0]], *key[1:])

    items = list(structure.items())
    random.shuffle(items)
    return family.__name__, {
        numbered(key): Task(
            numbered(key), sum, *(TaskRef(numbered(dep)) for dep in deps)
        )
        for key, deps in items
    }
