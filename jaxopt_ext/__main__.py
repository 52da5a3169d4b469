"""`python -m jaxopt_ext demo`."""

import argparse
import sys


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="jaxopt_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="solve, differentiate and distribute one problem")
    demo.add_argument("--figure", default="out/demo.png", help="where the figure goes")
    options = parser.parse_args(arguments)
    try:
        from ._demo import run
    except ModuleNotFoundError as error:
        print(f"{error}; install the extra: pip install 'jaxopt-ext[demo]'", file=sys.stderr)
        return 1
    return run(options.figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
