"""VoiceBench (Chen et al., 2024): the scorers of its nine subsets, and the overall score of its leaderboard."""

from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["open", "qa", "choice", "truth", "instructions", "refusal"]
KINDS: Final[dict[str, Kind]] = {  # the columns of the leaderboard, in its order, and who scores them
    "alpacaeval": "open",
    "commoneval": "open",
    "wildvoice": "open",
    "sd-qa": "qa",
    "mmsu": "choice",
    "openbookqa": "choice",
    "bbh": "truth",
    "ifeval": "instructions",
    "advbench": "refusal",
}
JUDGED = ("open", "qa")  # kinds that an LLM judges
TASK = "voicebench"  # of its records; those of a subset have it in brackets
