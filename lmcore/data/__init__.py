"""From raw files to a token stream and its order."""

import os

# Read once, when Arrow is first loaded: what its Parquet takes from another allocator is given back, and then
# cleared anew, which took a tenth of the time to make tokens (``lmcore.data.arrow.keep_memory``).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
