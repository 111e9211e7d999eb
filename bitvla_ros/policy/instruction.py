"""What no instruction may be, whichever model it is for."""

from __future__ import annotations

import re

LONGEST = 500  # characters; the longest of LIBERO's instructions has 107, and attention grows with the square of the prompt
_CONTROL = re.compile(r"<[^\s<>]+>")  # as tokenizers spell their control tokens: <|eot_id|>, <proprio_pad>, </s>


def problem_of(instruction: str) -> str:
    """Why it cannot be carried out: in the end of a sentence, "" where it can. A model's own tokens are the prompt's to check."""
    if not instruction.strip():
        return "the instruction is empty; say in words what the robot is to do"
    if len(instruction) > LONGEST:
        return f"the instruction has {len(instruction)} characters, at most {LONGEST} are accepted; say it in a sentence"
    if found := _CONTROL.search(instruction):
        return f"the instruction holds {found[0]!r}, which may be a control token of the model; say it in words"
    return ""
