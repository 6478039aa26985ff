"""Writes config.json: what dask itself makes of configuration inputs.

Run with dask and distributed of the version that the scheduler stands in for:
``python generate.py > config.json``.
"""

import importlib
import json
import math
import os
import sys
import tempfile
import warnings

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

# A new process reads its configuration before distributed adds its own renamings.
own_deprecations = dict(dask.config.deprecations)
# `distributed.config` as an attribute is the configuration itself.
distributed_config = importlib.import_module("distributed.config")
dask.config.deprecations.clear()
dask.config.deprecations.update(own_deprecations)

LITERALS = """
5|-5|+5| 5|5 |- 5|--5|-(5)|(5)|((5))|(5,)|1,2|1,|1_000|1__0|_1|1_|007|0|00|0_0|0x1F|0X1f|0o17|0b101|0x|0b2|0o8
1.5|.5|5.|1e6|1E-3|1e|1.5e+3|-1.5|1_0.0_1|1._5|1.5.2|1e5_0|inf|nan|-inf|1e400|123456789012345678901234567890
True|False|None|true|FALSE|none|Null|TRUE|-True|yes|off|"quoted"|'quoted'|"a" 'b'|'a'b|r'a\\n'|'a\\n'|'\\x41\\u00e9\\101'
'\\q'|'it''s'|'''triple'''|'unclosed|"a'b"|u'x'|f'x'|[]|[1, 2]|[1, 2,]|[,]|[1 2]|[1, [2, (3,)], {'a': 1}]|()|(,)|{}|{1, 2}
{'a': 1, 'b': {'c': [None, True]}}|{'a': 1,}|{'a'}|{'a': 1, 'b'}|{1: 2}|set()|set( )|tcp://127.0.0.1:8786|5 minutes|30s|1kiB|10 GB
a.b.c|*|["*"]|["a:1", "b:2"]|http://{host}/x|1+2|1-2|5 # five|x=1|lambda: 1|[x]|$HOME|1if 1 else 2
'é'|été|{}x|[1]]|(1|...|b'abc'|"\\"|1 or 2|not True|'%(asctime)s - %(name)s'|%(asctime)s|0.1|1.0|-0.0|-0|1e3|0e0|09|0_7|1e+|.|-.5|+.5|-
""".strip("\n")

YAML_SCALARS = """
yes|No|on|OFF|true|True|TRUE|tRUE|y|n|null|~|Null|nUll|0|1|-1|+1|010|0o10|08|0x1F|0b11|1_000|-0|00|1:30|1:30:00|-1:30|1:60|1:5
1.5|-1.5|1.|.5|-.5|1e3|1.0e3|1.0e+3|1.e+3|1E5|1.5E-2|.inf|-.inf|.Inf|+.INF|.nan|.NaN|nan|inf|1_000.5|1:30.5|._5|1.2.3|1.0e|12e03
2001-01-01|"quoted"|'1'|"1"|'it''s'|"a\\tb\\u00e9"|a b|a#b|a #b|[1, 2]|[a, b: c]|{a: 1, b: [x, y]}|[]|{}|!!str 5|!!int "5"|!!float 5|! 5
tcp://127.0.0.1:8786|30s|5 minutes|64MiB|*|"*"|%x|@x|-|- a|a: b|a: {b: yes}|<<|=|1kiB|12:34:56:78|0.1|1e-3|9223372036854775808|"{scheme}://{host}"
&a 5|[&a x, *a]|{a: &m {x: 1}, b: {<<: *m, y: 2}}|{b: {<<: [{x: 1}, {x: 2, z: 3}], x: 0}}|{2: a, true: b, null: c, 1.5: d}|"\\x41"|'a\\nb'|"\\/"
""".strip("\n")

YAML_TEXTS = [
    "a: |\n  text\n  more\nb: >\n  folded\n  text\n",
    "a:\n  - 1\n  - b: 2\n    c: 3\n  -\n",
    "# only a comment\n",
    "",
    "---\na: 1\n...\n",
    "a: 1\na: 2\n",
    "%YAML 1.1\n---\na: yes\n",
    '{"a": [1, 2.5, true, null], "b": {"c": "d\\u00e9"}}\n',
    "a: [1,\n    2]\nb: 'multi\n  line'\n",
    "a: b: c\n",
    "a: [1\n",
    "\ta: 1\n",
    "- 1\n- 2\n",
    "text\n",
    "a: 1\n---\nb: 2\n",
    "a: !!python/object:os.system x\n",
    "a: *nonesuch\n",
]

TIMEDELTAS = [
    "3s", "3.5 seconds", "300ms", "1us", "1 ns", "5 minutes", "1h", "2 hours", "1d", "1w",
    "1 week", "20", "1e-3s", "1e3", "1.5h", "s", "ms", "minute", "MS", "Seconds", "S",
    "-5s", "5 foos", "", " ", "1 2 s", "inf", "infs", "nan", "1_000s", ".5s", "5.s", "s5", "1m30s",
    0, 1, 5, 1.5, 0.001, 1e-7, 1e22, -1, math.inf, True, None,
]  # fmt: skip

BYTES = [
    "100", "100 MB", "100M", "5kB", "5.4 kB", "1kiB", "1e6", "1e6 kB", "MB", "B", "", "1 GiB", "64MiB",
    "1Ki", "2k", "3 tb", "4PiB", "5 foos", "5 5", "-5", "k5", ".5 MB", "1_000", "infMB", "nan1", "1e400",
    123, 1.9, 0, -1, True, False, None,
]  # fmt: skip

FILES = {
    "a.yaml": "distributed:\n  scheduler:\n    allowed-failures: 7\n    worker_ttl: 10 minutes\n"
    "    default-task-durations:\n      my-task: 2s\n  comm:\n    timeouts:\n      connect: 5s\n",
    "b.yml": "distributed:\n  scheduler:\n    worker-ttl: null\n    bandwidth: 50 MB\n  admin: null\n",
    "c.json": '{"distributed": {"scheduler": {"work-stealing": false, "allowed_failures": 9}}}',
    "d.txt": "distributed: ignored\n",
    "Z.YAML": "connect-timeout: 7s\nshuffle: tasks\nlog-length: 55\n",
}

INHERITED = {
    "distributed": {
        "scheduler": {"allowed-failures": 11, "worker-saturation": math.inf, "preload": ["é\U0001f600"]},
        "comm": {"socket-backlog": 77},
    },
    "temporary-directory": "/x",
}

VARIABLES = [
    {},
    {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "5"},
    {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2h", "DASK_TEMPORARY_DIRECTORY": "/tmp/y"},
    {"DASK_DISTRIBUTED__SCHEDULER": "{'bandwidth': 5, 'locks': {'lease-timeout': '1m'}}"},
    {"DASK_ALLOWED_FAILURES": "12", "DASK_LOG_FORMAT": "%(message)s"},
    {"DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(INHERITED)},
    {
        "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(INHERITED),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "13",
        "DASK_DISTRIBUTED__COMM__SOCKET_BACKLOG": "78",
    },
    {"DASK_DISTRIBUTED__SCHEDULER__LOCKS": "5"},
    {"DASK_DISTRIBUTED__SCHEDULER__EVENTS_LOG_LENGTH": "21"},
    {"DASK_DATAFRAME__SHUFFLE__ALGORITHM": "p2p"},
]

KEYS = [
    "distributed.scheduler.allowed-failures",
    "distributed.scheduler.allowed_failures",
    "distributed.scheduler.worker-ttl",
    "distributed.scheduler.bandwidth",
    "distributed.scheduler.work-stealing",
    "distributed.scheduler.worker-saturation",
    "distributed.scheduler.preload",
    "distributed.scheduler.locks",
    "distributed.scheduler.locks.lease-timeout",
    "distributed.scheduler.default-task-durations",
    "distributed.comm.timeouts.connect",
    "distributed.comm.timeouts.tcp",
    "distributed.comm.socket-backlog",
    "distributed.admin.log-length",
    "distributed.admin.log-format",
    "distributed.admin.low-level-log-length",
    "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin",
    "dataframe.shuffle.method",
    "temporary-directory",
    "connect-timeout",
    "distributed.nonesuch",
]


def plain(value):
    """The value with what JSON lacks spelled out."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return float(value)
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"$other": str(value)}


def outcome(function, *args):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"value": plain(function(*args))}
    except Exception:
        return {"error": True}


def merged(files, variables):
    """Reads files and variables as a new process would; returns the values of KEYS."""
    config = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dask.config.refresh(config=config, defaults=[], paths=files, env=variables)
        dask.config.update_defaults(distributed_config.defaults, config=config, defaults=[])
        dask.config.rename(distributed_config.deprecations, config=config)
    missing = object()
    values = {}
    for key in KEYS:
        value = dask.config.get(key, default=missing, config=config)
        values[key] = {"missing": True} if value is missing else {"value": plain(value)}
    return values


def main():
    literals = [text for line in LITERALS.split("\n") for text in line.split("|")]
    literals += ["[1, # one\n 2]", "[1,\n2]", "1\n", "'a\nb'", "'''a\nb'''", "", "\t7"]
    scalars = [text for line in YAML_SCALARS.split("\n") for text in line.split("|")]
    merges = []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        for variables in VARIABLES:
            for paths in ([], [folder]):
                merges.append({"files": bool(paths), "variables": variables, "values": merged(paths, variables)})
    table = {
        "literals": [[text, outcome(dask.config.interpret_value, text)] for text in literals],
        "yaml": [[text, outcome(yaml.safe_load, text)]
                 for text in [f"k: {scalar}" for scalar in scalars] + YAML_TEXTS],
        "timedeltas": [[plain(value), outcome(parse_timedelta, value)] for value in TIMEDELTAS],
        "bytes": [[plain(value), outcome(parse_bytes, value)] for value in BYTES],
        "files": FILES,
        "merges": merges,
    }  # fmt: skip
    json.dump(table, sys.stdout, indent=1, ensure_ascii=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
