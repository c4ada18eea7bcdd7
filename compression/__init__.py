"""KVCache -> Compressed (bytes that are really stored) -> KVCache, and what that costs.

Python 3.14 has a standard-library package of this name; its modules stay importable beside ours.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
