"""A plan as JSON: ``python -m lmcore.plan < request.json > plan.json``; see ``lmcore.plan.request``."""

from __future__ import annotations

import json
import sys

from lmcore.errors import GristmillError
from lmcore.plan.request import answer


def main() -> int:
    """Answer the request on standard input; return the exit code."""
    try:
        json.dump(answer(json.load(sys.stdin)), sys.stdout, indent=1)
    except GristmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
