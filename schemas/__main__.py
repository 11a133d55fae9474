"""`python -m schemas` writes the documents in schemas/ anew; with `--check` it only compares, and exits 1 if stale."""

import argparse
import sys

from schemas.generate import FOLDER, stale, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args(arguments).check:
        names = stale()
        for name in names:
            print(f"{FOLDER / name}: differs from the code; run `make generate`", file=sys.stderr)
        return 1 if names else 0
    for path in write():
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
