"""Writes keys.json: what Python and dask make of task keys.

Run it with distributed installed after adding a case; test_wire.py checks that
the table agrees with the installed version.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import msgpack
from dask.utils import key_split
from distributed.utils import key_split_group

KEYS = [
    "x", "x-1", "x-1-2-3", "hello-world-1", "hello-world-foo", "ae05086432ca935f6eba409a8ecd4896",
    "AE05086432ca935f6eba409a8ecd4896", "<module.submodule.myclass object at 0xdaf372",
    "<module.submodule.myclass object at 0xdaf372>", "x-abcdefab", "x-feedback-1", "x-abcdefgh",
    "x-ABCDEFAB-y", "_(x)", "_(x)-foo-1", "('x-2', 1)", "('x', 1)", "(\"x-2\", 1)", "1-x", "-x", "--",
    "x-", "x--y", "<", "<>", "< >", "<a>", "\x00", " ", "é-ö-1", "naïve-ключ-1", "数-据-12",
    "it's", 'say "hi"', "both ' and \"", "back\\slash", "tab\tnewline\nreturn\r", "\x7f\x80\xa0\xad",
    "\u200b\u2028\ufeff", "emoji 😀", "\ue000", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 70000,
    "a" * 32, "getitem-" + "a" * 32, "inc-aea773e43f71127752f47e22b74b36f9", "shuffle-barrier-abc",
    "read-csv-abc-def-0123", "sum-aggregate-finalize-hlgfinalizecompute-0abc15214161455faa6715699d670850",
    b"hello-world-1", b"x", b"\xff\xfe", b"it's", b'"', b"'\"", b"\n\\\x00",
    0, 1, -1, 31, -32, -33, 127, 128, 255, 256, 65535, 65536, -128, -129, -32768, -32769,
    2**31 - 1, 2**31, 2**32, -(2**31) - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    0.0, -0.0, 1.0, -1.0, 0.5, 1e15, 1e16, 123456789012345680.0, 1e-4, 1e-5, 1.5e-7, 1e100, 1e22, 2.0**53,
    2.0**63, 2.0**64, -(2.0**63), 5e-324, 1.7976931348623157e308, 0.1, float("inf"), float("-inf"),
    True, False,
    ("x-2", 1), ("x", 1, 2), ("x-1",), ("sum-158217041e68c0d59fce4899d18de602", 0, 0), (1, 2), (1.0, 2), (True, 2),
    ("a", 1), ("a", 1.0), ("a", True), ("a", 2), (b"a", 1), (("a", 1), 2), (("a", True), 2.0), ((), 1), (("b-1", 2), "c"),
    ("a", ("b", ("c", (1.0,)))), ("a", ("b", ("c", (1,)))), (b"x-1", 1), ("", 1), (1e16, "x"), ("it's", 'q"'),
    ("x", 2**63), ("x", 2.0**63),
]


def outcome(function, key):
    try:
        result = function(key)
    except Exception:
        return "Other"
    return result if isinstance(result, str) else str(result)


def table():
    rows = []
    for key in KEYS:
        rows.append(
            {
                "msgpack": base64.b64encode(msgpack.packb(key, use_bin_type=True)).decode(),
                "repr": repr(key),
                "str": str(key),
                "key_split": outcome(key_split, key),
                "key_split_group": outcome(key_split_group, key),
                "equals": [i for i, other in enumerate(KEYS) if other == key],
            }
        )
    return rows


if __name__ == "__main__":
    path = Path(__file__).with_name("keys.json")
    path.write_text(json.dumps(table(), indent=0, ensure_ascii=True) + "\n")
