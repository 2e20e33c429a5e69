"""What ONNX files of real models go through: exporter, rewriter and precision; rewriting time; compression fronts.

    python benchmarks/graphs.py models    17 architectures: export, rewrite, four precisions, TensorRT-RTX's compiler
    python benchmarks/graphs.py time      rewriting time against the size of the graph
    python benchmarks/graphs.py fronts    `compress` on trained models against uniform ranks, ONNX in and out

Rows are lines of files in --out, each with its machine, versions and date. What is there is not computed again, unless
it was made on another machine or with other versions; every subcommand ends with its tables and where they are from.
`time` and `fronts` measure: nothing else may run meanwhile. See each subcommand's --help.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import graph_fronts
import graph_models
import graph_time

_VERBS = {"models": graph_models, "time": graph_time, "fronts": graph_fronts}


def main() -> None:
    """Records what is not recorded yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, module in _VERBS.items():
        verb = verbs.add_parser(name, help=module.__doc__.splitlines()[0])
        verb.add_argument("--out", type=Path, default=Path("runs/graphs"), help="rows and models are kept here")
        module.add_arguments(verb)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    module = _VERBS[options.verb]
    module.record(options)
    print(f"\n{module.tables(options.out)}")


if __name__ == "__main__":
    main()
