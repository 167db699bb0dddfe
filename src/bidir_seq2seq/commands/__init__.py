"""The command lines: arguments in, one call of the package, files out.

Each module's `main` is one command; `cli` finds it by its name.
"""
