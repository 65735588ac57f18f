"""geventq at home in other software.  Each module needs the package that it is named after, which
the extra of that name installs: ``pip install 'geventq[django]'``."""
