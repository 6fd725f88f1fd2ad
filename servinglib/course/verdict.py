"""How the verdict on an exercise looks: as text, and as HTML in a notebook, in either language.

The verdict itself ("01.2: passed") is the same English words everywhere, because both editions of a
lesson share their outputs and the builder looks for it; the explanation is in the reader's language.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Literal

Text = dict[str, str]  # language -> words
Status = Literal["passed", "not solved yet", "not right yet"]
VERDICT = re.compile(r"^(\d\d\.\d+): (passed|not solved yet|not right yet)", re.MULTILINE)
_COLOURS = {"passed": "#009E73", "not solved yet": "#0072B2", "not right yet": "#D55E00"}

WORDS: dict[str, Text] = {
    "passed": {"en": "all {n} cases are right.", "zh": "{n} 个用例全部正确。"},
    "unsolved": {
        "en": "write the function, then run this cell again.",
        "zh": "写出函数，再运行这个单元格。",
    },
    "not a function": {
        "en": "hand in the function itself, without calling it; got {got}.",
        "zh": "请交函数本身，不要调用它；收到的是 {got}。",
    },
    "input": {"en": "input", "zh": "输入"},
    "expected": {"en": "expected", "zh": "应为"},
    "got": {"en": "got", "zh": "得到"},
    "cause": {"en": "likely cause", "zh": "可能的原因"},
    "endless": {
        "en": "no answer after {n:,} lines: does the loop end for every input?",
        "zh": "执行了 {n:,} 行仍没有结果：循环对每种输入都会结束吗？",
    },
    "hint": {"en": 'for a hint: hint("{id}")', "zh": '需要提示：hint("{id}")'},
}


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The verdict on one answer; shows itself as text or, in a notebook, as HTML.

    Attributes
    ----------
    exercise : str
    status : {"passed", "not solved yet", "not right yet"}
    lang : {"zh", "en"}
    note : str
        One sentence on a pass, or on an answer that can't be judged.
    case, expected, got : str
        The smallest failing case.
    cause : str
        The mistake recognised, if any.
    """

    exercise: str
    status: Status
    lang: str
    note: str = ""
    case: str = ""
    expected: str = ""
    got: str = ""
    cause: str = ""

    @property
    def passed(self) -> bool:
        """Whether the exercise is solved."""
        return self.status == "passed"

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of every line below the verdict."""
        values = {"input": self.case, "expected": self.expected, "got": self.got, "cause": self.cause}
        return [(WORDS[name][self.lang], value) for name, value in values.items() if value]

    def __repr__(self) -> str:
        head = f"{self.exercise}: {self.status}" + (f"; {self.note}" if self.note else "")
        lines = [f"  {label}: {value}" for label, value in self.rows()]
        tail = [] if self.passed else ["  " + WORDS["hint"][self.lang].format(id=self.exercise)]
        return "\n".join([head, *lines, *tail])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left;vertical-align:top">{html.escape(label)}</td>'
            f'<td style="text-align:left"><code style="white-space:pre-wrap">{html.escape(value)}</code></td></tr>'
            for label, value in self.rows()
        )
        table = f"<table>{rows}</table>" if rows else ""
        tip = html.escape(WORDS["hint"][self.lang].format(id=self.exercise))
        tail = "" if self.passed else f"<div><small>{tip}</small></div>"
        return (
            f'<div style="border-left:4px solid {_COLOURS[self.status]};padding:.3em .8em">'
            f"<b>{self.exercise}: {self.status}</b> {html.escape(self.note)}{table}{tail}</div>"
        )
