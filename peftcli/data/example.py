"""What a format makes of a row: the text to learn from, before any tokenizer has seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftcli.registry import FORMATS

if TYPE_CHECKING:
    # They need numpy, which a report and a starter do without.
    from peftcli.data.audio import Sound
    from peftcli.data.pictures import Picture


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text: every token is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt as it is, and what follows it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction and its answer: a chat of one turn where there is a chat template, else plain text."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages in order, with `role` and `content`; other strings in them are for the template to use."""

    messages: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or two, and what it is: a name, several names, or a number; None where it is to be predicted."""

    text: str
    text_pair: str | None
    label: Label | list[Label] | float | None


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text's words, and for each a tag; None where they are to be predicted."""

    tokens: list[str]
    tags: list[Label] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A text, and what is to be written of it; None where that is to be generated."""

    source: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Spoken:
    """A recording, and what is said in it; None where that is to be predicted."""

    sound: Sound
    text: str | None


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture, and what it is made of: a prompt; None where the task has one for all."""

    image: Picture
    text: str | None


@dataclass(frozen=True, slots=True)
class Pictured:
    """A picture, and what it shows: a name, several names, or a number; None where it is to be predicted."""

    image: Picture
    label: Label | list[Label] | float | None


@dataclass(frozen=True, slots=True)
class Segmented:
    """A picture, and one whose pixels are numbers of classes; None where they are to be predicted."""

    image: Picture
    mask: Picture | None


@dataclass(frozen=True, slots=True)
class Similar:
    """A text, one that means the same, and one that does not; or two texts and how alike they are, from -1 to 1.

    Where a text is to be embedded the others are None.
    """

    anchor: str
    positive: str | None = None
    negative: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of a context, and the character that it starts at."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the text that answers it; no answer where it does not, None where they are to be predicted."""

    question: str
    context: str
    answers: list[Answer] | None


Label = str | int
Example = (
    Text
    | Completion
    | Instruction
    | Chat
    | Labelled
    | Tagged
    | Pair
    | Similar
    | Spoken
    | Question
    | Captioned
    | Pictured
    | Segmented
)

# An encoded row: what a task's collator makes tensors of. Rows of text have `input_ids`.
Row = dict[str, Any]

# From examples to encoded rows, one list an example. Examples come in batches: tokenizers are fast on lists.
Encode = Callable[[Sequence[Example]], list[list[Row]]]


def row_length(row: Row) -> int:
    """How much of a batch the row takes: its tokens, or those of its target; a row without tokens counts one."""
    return next((len(row[name]) for name in ("input_ids", "labels") if name in row), 1)


def cut_tokens(row: Row, limit: int) -> Row:
    """The row's first tokens, of every column."""
    return {key: value[:limit] for key, value in row.items()}


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a column of tokens may be.

    Attributes:
        column: the row's.
        name: what it is, for reports: "target".
        tokens: at most; None where nothing limits them.
        setting: the recipe's key that says so.
        cut: a row with the column cut to a number of tokens.
        unit: what the column's length is in, where that is not tokens: "ms of audio".
        advice: what to do about rows that are too long; by default to raise the setting.
    """

    column: str
    name: str
    tokens: int | None
    setting: str
    cut: Callable[[Row, int], Row]
    unit: str = ""
    advice: str = ""

    def shown(self, length: int) -> str:
        """A length for a reader."""
        return f"{length:,} {self.unit or (self.name + ' tokens').strip()}"

    @property
    def key(self) -> str:
        """The setting without its section."""
        return self.setting.rpartition(".")[2]

    def passed(self, length: int) -> bool:
        """Whether so many tokens are too many."""
        return self.tokens is not None and length > self.tokens


@dataclass(slots=True)
class Tally:
    """What a task counts while it encodes rows.

    Attributes:
        counts: each the sum over all rows.
        largest: of all tokens, as a number; -1 where there was none.
    """

    counts: dict[str, int] = field(default_factory=dict)
    largest: int = -1

    def count(self, name: str, more: int = 1) -> None:
        """So many more."""
        self.counts[name] = self.counts.get(name, 0) + more

    def add(self, other: Tally) -> None:
        """What was counted elsewhere."""
        for name, more in other.counts.items():
            self.count(name, more)
        self.largest = max(self.largest, other.largest)

    def taken(self) -> Tally:
        """What it holds; from here on it holds nothing."""
        found = Tally(self.counts, self.largest)
        self.counts, self.largest = {}, -1
        return found


@dataclass(frozen=True, slots=True)
class Encoder:
    """A task's part in preparing rows.

    Attributes:
        encode: from examples to rows.
        formats: those that the task takes; a type is guessed among them.
        settle: called when all training rows have been read, before any that is held out.
        notes: what was found in the rows, such as their labels.
        remarks: warnings about the rows encoded so far.
        trained: how many tokens of a row are trained; None where what is trained is the row.
        cut: a row cut to a number of tokens.
        limits: of columns that have tokens, too, and a limit of their own beside `data.max_length`.
        identity: a text that differs where encoding does, for rows that are kept; empty where they cannot be, since
            more is learnt of them than `tally` says.
        tally: what has been counted.
    """

    encode: Encode
    formats: tuple[str, ...] = tuple(FORMATS)
    settle: Callable[[], None] = lambda: None
    notes: Callable[[], Sequence[str]] = tuple
    remarks: Callable[[], Sequence[str]] = tuple
    trained: Callable[[Row], int] | None = None
    cut: Callable[[Row, int], Row] = cut_tokens
    limits: tuple[Limit, ...] = ()
    identity: Callable[[], str] = str
    tally: Tally = field(default_factory=Tally)
