"""`python -m prototile.demo`."""

import argparse
import sys

from prototile.demo.command import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m prototile.demo", description="What prototypes do, in minutes.")
    parser.add_argument("--out", default="prototile-demo", help="folder for index.html and result.json")
    parser.add_argument("--seeds", type=int, default=3, help="how often each arm is trained (3)")
    parser.add_argument("--quick", action="store_true", help="one seed and fewer steps: its numbers mean little")
    parser.add_argument("--no-open", dest="open", action="store_false", help="do not open the page in a browser")
    try:
        main(**vars(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
    except ValueError as error:
        sys.exit(f"error: {error}")
