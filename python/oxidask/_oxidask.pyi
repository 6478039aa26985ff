from collections.abc import Sequence

def main(argv: Sequence[str], /) -> int:
    """Run the command line; `argv` begins with the program's name.

    Must be called on the main thread.
    """

def order_indices(
    dependency_offsets: bytes,
    dependencies: bytes,
    is_task: bytes,
    name_rank: bytes,
    /,
) -> tuple[bytes, bytes]:
    """Order the tasks of a graph given as packed arrays in native byte order.

    Returns priorities as ``u32`` and numbers of critical paths as ``f64``.

    Raises
    ------
    ValueError
        If the arrays do not fit together.
    RuntimeError
        With a message and the indices of a cycle.
    """
