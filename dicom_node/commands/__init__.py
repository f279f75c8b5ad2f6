"""What stands behind each command of the command line, one module for each kind of work.

A command parses, calls, prints; it decides nothing. Whatever is slow to import is imported inside it.
"""
