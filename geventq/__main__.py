"""``python -m geventq`` is the command ``geventq``."""

from geventq.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
