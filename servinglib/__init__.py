"""The library of the course: a batching server, engines and policies, small enough to read.

Importing this package loads no heavy dependency; torch, transformers and the like are imported by
the parts that use them, when they are used.
"""

__version__ = "0.1.0"
