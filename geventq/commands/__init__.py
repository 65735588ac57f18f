"""What the commands of `geventq.cli` do, one module each.

They run in a process of their own: only here may a module print, patch, fork or read a file.
"""
