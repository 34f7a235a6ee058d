"""llds_core: the Lazy Likelihood-Displacement death spiral of search agents, reproduced and
measured.

Importing the package is cheap on purpose: torch, trl, vllm and faiss are imported by the modules
that own them.
"""

import warnings

__version__ = "0.1.0"

# In a notebook without ipywidgets tqdm's bar is a line of text, which is all it has to be.
warnings.filterwarnings("ignore", message="IProgress not found")
