"""`python -m ops.build`: compile the ops now."""

from __future__ import annotations

import argparse
import sys

from ops.build import build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.build", description="Compile the ops now.")
    parser.add_argument("--prebuilt", action="store_true", help="for any CPU of this architecture, into ops/prebuilt/")
    args = parser.parse_args()
    try:
        print(build(portable=args.prebuilt))
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
