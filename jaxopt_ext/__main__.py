"""`python -m jaxopt_ext demo` and `python -m jaxopt_ext systems [words]`."""

import argparse
import sys


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="jaxopt_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="solve, differentiate and distribute one problem")
    demo.add_argument("--figure", default="out/demo.png", help="where the figure goes")
    systems = commands.add_parser("systems", help="what is here, by name, paper or identifier")
    systems.add_argument("words", nargs="*", help="all must match; everything without one")
    systems.add_argument("--markdown", action="store_true", help="as the page docs/systems.md")
    options = parser.parse_args(arguments)
    if options.command == "systems":
        return _systems(options.words, options.markdown)
    return _demo(options.figure)


def _demo(figure: str) -> int:
    try:
        from ._demo import run
    except ModuleNotFoundError as error:
        print(f"{error}; install the extra: pip install 'jaxopt-ext[demo]'", file=sys.stderr)
        return 1
    return run(figure)


def _systems(words: list[str], as_page: bool) -> int:
    from .catalog.find import describe, find, markdown, verdicts  # the table imports every family

    found = find(*words)
    if not found:
        print(f"no system matches {' '.join(words)}", file=sys.stderr)
        return 1
    known = verdicts()
    if as_page:
        print(markdown(found, known), end="")
        return 0
    print("\n\n".join(describe(row, known) for row in found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
