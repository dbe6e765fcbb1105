"""Makes plain-language questions of three kinds, and reads their answers: the checker of `hf-judge`.

- capital: a fact. "Tell Mia in one sentence what the capital of Spain is and what it is known for."
- reading: a story of two sentences and a question about it, answered in a full sentence.
- sum: a sum of two small numbers in words, answered in a sentence.

Every question has a right `answer`, and `choices`: the words that could stand in its place (none: any number).
An answer in free words is right if it names the right choice and no other; a sum, if its last number is right.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

PARTS = {"draft": 2000, "label": 400, "choose": 150, "test": 600}
"""Questions of each part; no question is in two parts."""

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "England": "London",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "China": "Beijing",
    "Greece": "Athens",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Ireland": "Dublin",
    "Hungary": "Budapest",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Chile": "Santiago",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Kenya": "Nairobi",
    "Indonesia": "Jakarta",
    "Australia": "Canberra",
}
NAMES = ["Ana", "Ben", "Eva", "Ivy", "Kim", "Leo", "Lea", "Max", "Mia", "Sam", "Tom", "Zoe"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TOWNS = ["Paris", "Rome", "Madrid", "Berlin", "Tokyo", "London", "Moscow", "Cairo"]
TOWNS += ["Athens", "Oslo", "Vienna", "Dublin", "Boston", "Chicago", "Sydney"]
PEOPLE = ["brother", "sister", "uncle", "aunt", "friend", "cousin", "teacher", "neighbour"]
ITEMS = ["apples", "books", "coins", "pens", "cards", "shells", "eggs", "stamps"]
BOUGHT = {
    "bike": "a red bike",
    "coat": "a warm coat",
    "hat": "a blue hat",
    "phone": "a new phone",
    "lamp": "a green lamp",
    "cake": "a big cake",
    "book": "an old book",
    "boat": "a small boat",
    "bag": "a black bag",
    "ring": "a gold ring",
    "shirt": "a white shirt",
    "table": "a wooden table",
}


def capital(rng: random.Random) -> dict:
    """Make a question about the capital of a country."""
    country, name = rng.choice(list(CAPITALS)), rng.choice(NAMES)
    text = rng.choice(
        (
            f"{name} is going to the capital of {country}. Tell {name} in one sentence which city this is and what it "
            "is known for.",
            f"In one sentence, tell {name} what the capital of {country} is and what it is known for.",
            f"Tell {name} in one sentence what the capital of {country} is and what it is known for.",
        )
    )
    return {"kind": "capital", "prompt": text, "answer": CAPITALS[country], "choices": sorted(CAPITALS.values())}


def reading(rng: random.Random) -> dict:
    """Make a story of two sentences and a question about it."""
    name, other = rng.sample(NAMES, 2)
    day, town, person, thing = (rng.choice(x) for x in (DAYS, TOWNS, PEOPLE, list(BOUGHT)))
    article = "an" if person[0] in "aeiou" else "a"
    story = (
        f"On {day}, {name} took the train to {town} with {article} {person}. "
        f"There {name} bought {BOUGHT[thing]} for {other}."
    )
    question, answer, choices = rng.choice(
        (
            (f"Where did {name} go?", town, TOWNS),
            (f"When did {name} travel?", day, DAYS),
            (f"What did {name} buy?", thing, list(BOUGHT)),
            (f"Who got {BOUGHT[thing]}?", other, [n for n in NAMES if n != name]),
            (f"Who went with {name}?", person, PEOPLE),
        )
    )
    prompt = f"{story} {question} Answer in one full sentence."
    return {"kind": "reading", "prompt": prompt, "answer": answer, "choices": choices}


def addition(rng: random.Random) -> dict:
    """Make a sum of two small numbers in words."""
    name, item, first, second = rng.choice(NAMES), rng.choice(ITEMS), rng.randint(2, 9), rng.randint(2, 5)
    verb = rng.choice(("gets", "finds", "buys"))
    prompt = (
        f"{name} has {first} {item} and {verb} {second} more. How many {item} does {name} have now? "
        "Answer in one sentence."
    )
    return {"kind": "sum", "prompt": prompt, "answer": str(first + second), "choices": []}


def questions(part: str, n: int | None = None) -> list[dict]:
    """Return the first questions of a part, the same ones on every machine.

    Args:
        part: a name in `PARTS`.
        n: number of questions; None: all of the part.

    Raises:
        ValueError: the part has fewer questions.
    """
    if n is not None and n > PARTS[part]:
        raise ValueError(f"the part '{part}' has {PARTS[part]} questions, {n} were asked for: ask for fewer")
    names = list(PARTS)
    start = sum(PARTS[name] for name in names[: names.index(part)])
    return _all_questions()[start : start + (PARTS[part] if n is None else n)]


def _all_questions() -> list[dict]:
    """Return different questions for all parts, the kinds in turn."""
    rng, found, makers = random.Random(17), {}, (capital, reading, addition)
    while len(found) < sum(PARTS.values()):
        question = makers[len(found) % len(makers)](rng)
        found.setdefault(question["prompt"], question | {"task_id": f"{question['kind']}-{len(found)}"})
    return list(found.values())


def write_questions(path: Path, chosen: list[dict]) -> None:
    """Write questions as the JSONL that `hf-judge` reads: chat messages, and what the checker needs."""
    rows = [question | {"prompt": [{"role": "user", "content": question["prompt"]}]} for question in chosen]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(response: str, task: dict) -> str | None:
    """Read the answer that a response gives: a checker of `hf-judge` (`--checker questions:answer`).

    Returns:
        The choices that the response names, in alphabetical order, joined by " and "; for a sum, its last number; None
        if there is none.
    """
    if not task["choices"]:
        numbers = re.findall(r"\d+", response)
        return numbers[-1] if numbers else None
    named = {word for word in task["choices"] if re.search(rf"\b{word}\b", response, re.IGNORECASE)}
    return " and ".join(sorted(named)) or None
