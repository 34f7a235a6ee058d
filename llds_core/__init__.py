"""llds_core: the Lazy Likelihood-Displacement death spiral of search agents, reproduced and
measured.

Importing the package is cheap on purpose: torch, trl, vllm and faiss are imported by the modules
    that own them.
"""

__version__ = "0.1.0"
