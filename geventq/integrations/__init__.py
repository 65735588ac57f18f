"""geventq at home in other software.  Each module needs the package that it is named after."""
