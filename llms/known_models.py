"""config.json fields of well-known chat LLMs, as published: enough to build one without a network."""

import json
from pathlib import Path
from typing import Any

from sottovoce.audio_llm_layouts import PUBLISHED as AUDIO_LLMS

# Hub id -> fields; those left out have the published value as their default in transformers. Llama 3's stretched
# rotary embeddings: Llama team (2024), section 3.4.2.
PUBLISHED: dict[str, dict[str, Any]] = {
    **AUDIO_LLMS,
    **json.loads(Path(__file__).with_suffix(".json").read_text("utf-8")),
}
