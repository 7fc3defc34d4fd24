"""Writes the recipes' rows: commands said at home, and the compact routing string a hub would act on.

    python recipes/make_data.py     # rewrites the .jsonl, .conll, .txt, .wav and .png files beside it

The mapping is a rule of ours (`device@room:value`), so the base model cannot know it, and an answer is
either right or wrong. No command of the held-out rows stands among the training rows.
"""

from __future__ import annotations

import io
import json
import math
import random
import struct
import wave
import zlib
from itertools import permutations
from pathlib import Path
from typing import Any

# What stands for speech: words, and the tones in Hz that say them.
TONES = {"do": 262, "re": 294, "mi": 330, "fa": 349, "so": 392}
TONE_RATE = 4_000
# What stands for photographs of one subject: a ball with a stripe, on grounds of their own.
GROUNDS = [
    (240, 235, 220),
    (205, 225, 240),
    (225, 240, 210),
    (240, 215, 215),
    (220, 215, 240),
    (235, 235, 235),
]
BALL, STRIPE, SIDE = (200, 40, 120), (250, 210, 60), 32

# What is drawn: shapes in colours of their own, on the ground; a pixel's number is its place here.
COLOURS = {"ground": (236, 232, 220), "disc": (200, 60, 40), "square": (40, 110, 190), "cross": (60, 150, 70)}
# What a mask's numbers are shown as.
MARKS = [(0, 0, 0), (255, 255, 255), (170, 170, 170), (85, 85, 85)]
SIDE = 32

ROOMS = {
    "kitchen": "kit",
    "bedroom": "bed",
    "bathroom": "bath",
    "living room": "liv",
    "hallway": "hall",
    "office": "off",
    "garage": "gar",
    "nursery": "nur",
}

# device -> its code, and what can be asked of it: (how one says it, the value in the routing string).
# `{n}` is a number drawn from the range beside it.
DEVICES: dict[str, tuple[str, list[tuple[str, str]], range]] = {
    "lights": (
        "LT",
        [
            ("Turn on the {room} lights", "1"),
            ("Switch the lights off in the {room}", "0"),
            ("Dim the {room} lights to {n} percent", "{n}"),
            ("Set the lights in the {room} to {n}%", "{n}"),
        ],
        range(10, 100, 5),
    ),
    "heating": (
        "HT",
        [
            ("Heat the {room} to {n} degrees", "{n}"),
            ("Make it {n} degrees in the {room}", "{n}"),
            ("Turn the {room} heating off", "0"),
        ],
        range(15, 27),
    ),
    "blinds": (
        "BL",
        [
            ("Open the {room} blinds", "1"),
            ("Close the blinds in the {room}", "0"),
            ("Lower the {room} blinds to {n} percent", "{n}"),
        ],
        range(10, 100, 5),
    ),
    "speaker": (
        "SP",
        [
            ("Play music in the {room}", "1"),
            ("Stop the music in the {room}", "0"),
            ("Set the {room} volume to {n}", "{n}"),
        ],
        range(1, 21),
    ),
}
# What can be set in a room: (how a text says it, how one asks for it, the answer, its numbers).
SETTINGS = [
    (
        "The heating of the {room} stands at {answer}.",
        "How warm is the {room}?",
        "{n} degrees",
        range(15, 27),
    ),
    (
        "The lights in the {room} are dimmed to {answer}.",
        "How bright are the lights in the {room}?",
        "{n} percent",
        range(10, 100, 5),
    ),
    (
        "The blinds in the {room} are lowered to {answer}.",
        "How far down are the blinds in the {room}?",
        "{n} percent",
        range(10, 100, 5),
    ),
    (
        "The speaker in the {room} plays at {answer}.",
        "How loud is the music in the {room}?",
        "volume {n}",
        range(1, 21),
    ),
]
TRAIN_ROWS, EVAL_ROWS, SEED = 280, 40, 7


def every_command() -> list[dict[str, str]]:
    """All commands the rule covers, each with its routing string."""
    rows = []
    for code, sentences, numbers in DEVICES.values():
        for sentence, value in sentences:
            for room, short in ROOMS.items():
                for n in numbers if "{n}" in sentence else [0]:
                    command = sentence.format(room=room, n=n)
                    rows.append({"instruction": command, "output": f"{code}@{short}:{value.format(n=n)}"})
    return rows


def balanced(rows: list[dict[str, str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """`count` rows in which commands with and without a number are equally common."""
    rng.shuffle(rows)
    numbered = [row for row in rows if any(c.isdigit() for c in row["instruction"])]
    plain = [row for row in rows if row not in numbered]
    half = min(len(plain), count // 2)
    chosen = plain[:half] + numbered[: count - half]
    rng.shuffle(chosen)
    return chosen


def quickstart_rows() -> dict[str, list[dict[str, str]]]:
    """The rows of both files, the same at every call."""
    chosen = balanced(every_command(), TRAIN_ROWS + EVAL_ROWS, random.Random(SEED))
    return {"train": chosen[EVAL_ROWS:], "eval": chosen[:EVAL_ROWS]}


def chat_rows() -> list[dict[str, list[dict[str, str]]]]:
    """Chats of two turns, of which the second says only what is different: another room."""
    rng = random.Random(SEED)
    rows = []
    for code, sentences, numbers in DEVICES.values():
        for sentence, value in sentences:
            for room, other in zip(ROOMS, [*ROOMS][1:], strict=False):
                n = rng.choice(numbers)
                said, routed = sentence.format(room=room, n=n), value.format(n=n)
                turns = (
                    said,
                    f"{code}@{ROOMS[room]}:{routed}",
                    f"And in the {other}?",
                    f"{code}@{ROOMS[other]}:{routed}",
                )
                roles = ("user", "assistant") * 2
                rows.append(
                    {"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}
                )
    return rows


def classification_rows(part: str) -> list[dict[str, str]]:
    """Commands and the device that each is for."""
    devices = {code: name for name, (code, _, _) in DEVICES.items()}
    return [
        {"text": row["instruction"], "label": devices[row["output"].partition("@")[0]]}
        for row in quickstart_rows()[part]
    ]


def pair_rows(part: str) -> list[dict[str, str]]:
    """Commands and their routing strings, for a model that reads one and writes the other."""
    return [{"source": row["instruction"], "target": row["output"]} for row in quickstart_rows()[part]]


def similar_rows(part: str) -> list[dict[str, str]]:
    """Commands, each with the routing string that lies beside it: several commands may have the same."""
    return [{"anchor": row["instruction"], "positive": row["output"]} for row in quickstart_rows()[part]]


def slot_sentences(part: str) -> str:
    """Commands in CoNLL's form, with the room and the value that each names."""
    sentences = []
    for row in quickstart_rows()[part]:
        words = row["instruction"].split()
        tags = ["O"] * len(words)
        for room in (each.split() for each in ROOMS):
            for at in range(len(words)):
                if words[at : at + len(room)] == room:
                    tags[at : at + len(room)] = ["B-ROOM", "I-ROOM"][: len(room)]
        for at, word in enumerate(words):
            if word[0].isdigit():
                tags[at] = "B-VALUE"
                if words[at + 1 : at + 2] in (["percent"], ["degrees"]):
                    tags[at + 1] = "I-VALUE"
        sentences.append("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)))
    return "\n".join(sentences)


def setting_rows(part: str) -> list[dict[str, Any]]:
    """Questions, and texts of ten settings of a house; in about one of seven the answer is not among them."""
    rng = random.Random(f"{part} {SEED}")
    return [_asked(rng) for _ in range(240 if part == "train" else EVAL_ROWS)]


def _asked(rng: random.Random) -> dict[str, Any]:
    places = rng.sample([(room, at) for room in ROOMS for at in range(len(SETTINGS))], 11)
    context, answers = "", []
    for room, at in places[:10]:
        says, _, answer, numbers = SETTINGS[at]
        answers.append(answer.format(n=rng.choice(numbers)))
        context += " " * bool(context) + says.format(room=room, answer=answers[-1])
    asked = 10 if rng.random() < 0.15 else rng.randrange(10)
    room, at = places[asked]
    says, question, _, _ = SETTINGS[at]
    found: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if asked < 10:
        stem = says.format(room=room, answer="").rstrip(".")
        found = {"text": [answers[asked]], "answer_start": [context.index(stem) + len(stem)]}
    return {"question": question.format(room=room), "context": context, "answers": found}


def text_lines() -> list[str]:
    """The rule in plain sentences, one a line."""
    return [
        f"{row['output']} is what a hub receives when somebody says: {row['instruction']}."
        for row in quickstart_rows()["train"]
    ]


def melodies(part: str) -> list[str]:
    """Words that are said as tones; none is held out that is trained."""
    both = random.Random(5).sample([" ".join(words) for words in permutations(TONES, 2)], 16)
    return both[:12] if part == "train" else both[12:]


def tone_rows(part: str) -> list[dict[str, str]]:
    """Recordings of melodies, and their words."""
    return [{"audio": f"tones/{text.replace(' ', '-')}.wav", "text": text} for text in melodies(part)]


def recording(text: str) -> bytes:
    """A WAV file of 8 bits: each word a tone of 0.2 s, which fades."""
    samples = bytes(
        round(128 + 100 * math.exp(-at / 800) * math.sin(2 * math.pi * TONES[word] * at / TONE_RATE))
        for word in text.split()
        for at in range(TONE_RATE // 5)
    )
    with io.BytesIO() as file:
        with wave.open(file, "wb") as written:
            written.setparams((1, 1, TONE_RATE, 0, "NONE", ""))
            written.writeframes(samples)
        return file.getvalue()


def recordings() -> dict[str, bytes]:
    """Each sound's name and content."""
    return {row["audio"]: recording(row["text"]) for part in ("train", "eval") for row in tone_rows(part)}


def subject_rows(part: str) -> list[dict[str, str]]:
    """Pictures of the subject; the last ones are held out."""
    numbers = range(len(GROUNDS))[:4] if part == "train" else range(len(GROUNDS))[4:]
    return [{"image": f"subject/{number}.png", "text": "a drawing of sks ball"} for number in numbers]


def portrait(number: int) -> list[list[tuple[int, int, int]]]:
    """The colours of each pixel of a picture of the subject, row by row."""
    middle, radius = (11 + 2 * number, 20 - 2 * (number % 3)), 9

    def colour(x: int, y: int) -> tuple[int, int, int]:
        across, down = x - middle[0], y - middle[1]
        if across * across + down * down > radius * radius:
            return GROUNDS[number]
        return STRIPE if abs(down) <= 2 else BALL

    return [[colour(x, y) for x in range(SIDE)] for y in range(SIDE)]


def portraits() -> dict[str, bytes]:
    """Each picture's name and content."""
    made = {}
    for number, ground in enumerate(GROUNDS):
        palette = [ground, BALL, STRIPE]
        pixels = [[palette.index(colour) for colour in row] for row in portrait(number)]
        made[f"subject/{number}.png"] = png(pixels, palette)
    return made


def drawings(part: str) -> list[tuple[str, str, list[list[int]]]]:
    """Each drawing's name, its shape, and what each pixel is; none is held out that is trained."""
    rng = random.Random(11)
    made = []
    for at in range(16):
        shape = [*COLOURS][1 + at % 3]
        reach, row, column = rng.randint(5, 9), rng.randint(9, SIDE - 10), rng.randint(9, SIDE - 10)
        pixels = [
            [[*COLOURS].index(shape) if covers(shape, y - row, x - column, reach) else 0 for x in range(SIDE)]
            for y in range(SIDE)
        ]
        made.append((f"{shape}-{at}", shape, pixels))
    return made[:12] if part == "train" else made[12:]


def covers(shape: str, y: int, x: int, reach: int) -> bool:
    """Whether a shape of so many pixels' reach covers a place, from its middle."""
    if shape == "disc":
        return y * y + x * x <= reach * reach
    far, near = max(abs(y), abs(x)), min(abs(y), abs(x))
    return far <= reach and (shape == "square" or near <= reach // 3)


def png(pixels: list[list[int]], palette: list[tuple[int, int, int]]) -> bytes:
    """A PNG of four colours, two bits a pixel; not compressed, so that its bytes are the same everywhere."""
    rows = bytearray()
    for row in pixels:
        rows.append(0)
        for at in range(0, len(row), 4):
            one, two, three, four = row[at : at + 4]
            rows.append(one << 6 | two << 4 | three << 2 | four)
    head = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 2, 3, 0, 0, 0)
    parts = {
        b"IHDR": head,
        b"PLTE": bytes(value for colour in palette for value in colour),
        b"IDAT": zlib.compress(bytes(rows), 0),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def shape_rows(part: str) -> list[dict[str, str]]:
    """Drawings, and the shape that each shows."""
    return [{"image": f"shapes/{name}.png", "label": shape} for name, shape, _ in drawings(part)]


def mask_rows(part: str) -> list[dict[str, str]]:
    """Drawings, and masks that say of each pixel what it is."""
    return [
        {"image": f"shapes/{name}.png", "mask": f"shapes/{name}-mask.png"} for name, _, _ in drawings(part)
    ]


def pictures() -> dict[str, bytes]:
    """Each picture's name and content."""
    every = [each for part in ("train", "eval") for each in drawings(part)]
    made = {f"shapes/{name}.png": png(pixels, [*COLOURS.values()]) for name, _, pixels in every}
    return made | {f"shapes/{name}-mask.png": png(pixels, MARKS) for name, _, pixels in every}


def files() -> dict[str, str]:
    """Each file's name and content."""
    rows: dict[str, list[dict[str, Any]]] = {"chat.jsonl": chat_rows()}
    rows |= {f"quickstart-{name}.jsonl": part for name, part in quickstart_rows().items()}
    rows |= {f"devices-{part}.jsonl": classification_rows(part) for part in ("train", "eval")}
    rows |= {f"routes-{part}.jsonl": pair_rows(part) for part in ("train", "eval")}
    rows |= {f"tones-{part}.jsonl": tone_rows(part) for part in ("train", "eval")}
    rows |= {f"subject-{part}.jsonl": subject_rows(part) for part in ("train", "eval")}
    rows |= {f"shapes-{part}.jsonl": shape_rows(part) for part in ("train", "eval")}
    rows |= {f"masks-{part}.jsonl": mask_rows(part) for part in ("train", "eval")}
    rows |= {f"similar-{part}.jsonl": similar_rows(part) for part in ("train", "eval")}
    rows |= {f"settings-{part}.jsonl": setting_rows(part) for part in ("train", "eval")}
    made = {name: "".join(json.dumps(row) + "\n" for row in part) for name, part in rows.items()}
    made |= {f"slots-{part}.conll": slot_sentences(part) for part in ("train", "eval")}
    return {**made, "text.txt": "\n".join(text_lines()) + "\n"}


def main() -> None:
    """Writes the files beside this script."""
    for name, text in files().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
    for name, content in {**recordings(), **portraits(), **pictures()}.items():
        path = Path(__file__).parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
