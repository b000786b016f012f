"""Number formats that features are cached in, their sizes, and folders of caches: what is known without PyTorch."""

import re
from pathlib import Path
from typing import Literal

CacheDtype = Literal["float32", "float16", "bfloat16", "int8"]
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_FOLDER = re.compile(rf"[0-9a-f]{{16}}-({'|'.join(BYTES)})")


def stored_bytes(dtype: CacheDtype, clips: int, frames: int, dim: int) -> int:
    """Bytes of the numbers of clips that have so many frames together, (frames, dim); headers aside."""
    scales = 4 * clips * dim if dtype == "int8" else 0
    return BYTES[dtype] * frames * dim + scales


def is_current(folder: Path) -> bool:
    """Whether a folder is of a cache as it is written now; older ones, of one file a clip, are not read."""
    return bool(_FOLDER.fullmatch(folder.name))
