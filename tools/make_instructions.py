"""Makes short instructions with reference answers and rules that an answer can be checked by.

    python tools/make_instructions.py --out runs/smollm2_assets

Writes ``sft.jsonl``, ``prompts.jsonl`` (for rollouts) and ``eval.jsonl`` (held out), one object a line: ``prompt``,
``response`` (the data's own answer), ``answer`` (what ``evaluate.checker: rules`` reads) and ``kind``. Everything
follows from ``assets/instructions/content.yaml`` and the seed. The files are disjoint in what is asked about: a topic,
country, word or sentence of one file is in no other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from npd_ascend.store.atomic import write_bytes

CONTENT = Path(__file__).resolve().parents[1] / "assets" / "instructions" / "content.yaml"
FILES = ("sft.jsonl", "prompts.jsonl", "eval.jsonl")
SHARES = (0.6, 0.3, 0.1)
_SENTENCES = 120
Content = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One instruction.

    Attributes:
        kind: family of instructions.
        about: what is asked about; decides together with others of its kind in which file the row is.
        prompt, response: the user's turn and the data's answer.
        rule: see ``npd_ascend/tasks/rewards/rules.py``.
    """

    kind: str
    about: str
    prompt: str
    response: str
    rule: dict[str, Any]

    def line(self) -> str:
        """As a line of the file."""
        return (
            json.dumps(
                {
                    "prompt": self.prompt,
                    "response": self.response,
                    "kind": self.kind,
                    "answer": json.dumps(self.rule, ensure_ascii=False),
                },
                ensure_ascii=False,
            )
            + "\n"
        )


def split_fields(entry: str) -> list[str]:
    """Fields of an entry of the content file."""
    return [part.strip() for part in entry.split("|")]


def topics(content: Content, rng: random.Random) -> Iterator[Row]:
    """What things are: definitions, sentences with a given word, questions."""
    for entry in content["topics"]:
        topic, keys, definition = split_fields(entry)
        known = {"any": split_keys(keys)}
        for kind, prompt, rule in (
            ("define", f"Explain in one sentence what {topic} is.", known),
            ("define", f"What is {topic}? Answer in one sentence.", known),
            ("define", f"Say in simple words what {topic} is.", known),
            ("tell", f"Tell me something about {topic}.", known),
            ("length", f"Describe {topic} in at most thirty words.", {**known, "max_words": 30}),
        ):
            yield Row(kind, topic, prompt, definition, rule)
        word = given_word(definition, topic, rng)
        yield Row(
            "contains",
            topic,
            f'Write one sentence about {topic} that contains the word "{word}".',
            definition,
            {"all": [word]},
        )
        yield Row("question", topic, f"Write one question about {topic}.", f"What is {topic}?", {"ends": "?"})


def split_keys(keys: str) -> list[str]:
    """Words with commas between them."""
    return [key.strip() for key in keys.split(",")]


def given_word(definition: str, topic: str, rng: random.Random) -> str:
    """A longer word of the definition that does not name the topic."""
    words = [
        w
        for w in re.findall(r"[a-z]{4,}", definition.lower())
        if w not in topic and w not in ("that", "with", "which", "when", "from", "through")
    ]
    return rng.choice(words)


def capitals(content: Content, rng: random.Random) -> Iterator[Row]:
    """Capitals of countries."""
    for country, city in content["capitals"].items():
        for prompt in (
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Name the capital of {country}.",
        ):
            yield Row("capital", country, prompt, f"The capital of {country} is {city}.", {"any": [city]})


def continents(content: Content, rng: random.Random) -> Iterator[Row]:
    """Continents of countries."""
    for country, continent in content["continents"].items():
        for prompt in (f"On which continent is {country}?", f"Name the continent on which {country} lies."):
            yield Row("continent", country, prompt, f"{country} is in {continent}.", {"any": [continent]})


def opposites(content: Content, rng: random.Random) -> Iterator[Row]:
    """Words of opposite meaning."""
    for word, opposite in content["opposites"].items():
        for prompt in (f'What is the opposite of "{word}"?', f'Name a word that means the opposite of "{word}".'):
            yield Row("opposite", word, prompt, f'The opposite of "{word}" is "{opposite}".', {"any": [opposite]})


def symbols(content: Content, rng: random.Random) -> Iterator[Row]:
    """Symbols of chemical elements."""
    for element, symbol in content["symbols"].items():
        yield Row(
            "symbol",
            element,
            f"What is the chemical symbol of {element}?",
            f"The chemical symbol of {element} is {symbol}.",
            {"words": [symbol]},
        )


def rewriting(content: Content, rng: random.Random) -> Iterator[Row]:
    """Sentences in the past tense, or about somebody else."""
    verbs = [split_fields(entry) for entry in content["verbs"]]
    subjects = content["subjects"]
    all_sentences = list(itertools.product(subjects, verbs, content["places"]))
    for subject, (now, past), place in rng.sample(all_sentences, _SENTENCES):
        sentence = sentence_of(subject, now, place)
        yield Row(
            "past",
            sentence,
            f'Rewrite this sentence in the past tense: "{sentence}"',
            sentence_of(subject, past, place),
            {"all": [past, place]},
        )
        other = rng.choice([s for s in subjects if s != subject])
        yield Row(
            "replace",
            sentence,
            f'Replace "{subject}" with "{other}" in this sentence: "{sentence}"',
            sentence_of(other, now, place),
            {"all": [other, now, place]},
        )


def sentence_of(subject: str, verb: str, place: str) -> str:
    """A sentence with its capital letter and full stop."""
    return f"{subject[0].upper()}{subject[1:]} {verb} {place}."


def lists(content: Content, rng: random.Random) -> Iterator[Row]:
    """Three of a kind."""
    for kind, members in content["lists"].items():
        answer = ", ".join(members)
        yield Row("list", kind, f"Name three {kind}, separated by commas.", answer, {"min_commas": 2})
        yield Row(
            "list",
            kind,
            f"Which {kind} do you know? Name three in one sentence.",
            f"Three {kind} are {members[0]}, {members[1]} and {members[2]}.",
            {"max_words": 40},
        )


def reasons(content: Content, rng: random.Random) -> Iterator[Row]:
    """One reason for something."""
    for entry in content["reasons"]:
        what, why = split_fields(entry)
        for prompt in (f"Give one reason to {what}. Use one sentence.", f"In one sentence, why is it good to {what}?"):
            yield Row("reason", what, prompt, why, {"max_words": 40})


def arithmetic(content: Content, rng: random.Random) -> Iterator[Row]:
    """Sums of two numbers below ten."""
    for a, b in itertools.product(range(1, 10), repeat=2):
        yield Row("sum", f"{a}+{b}", f"What is {a} + {b}?", f"{a} + {b} = {a + b}", {"number": str(a + b)})


FAMILIES: tuple[Callable[[Content, random.Random], Iterator[Row]], ...] = (
    topics,
    capitals,
    continents,
    opposites,
    symbols,
    rewriting,
    lists,
    reasons,
    arithmetic,
)


def parts(rows: Sequence[Row], rng: random.Random) -> list[list[Row]]:
    """Rows of each of ``FILES``: what is asked about is dealt out, all that is asked about it goes along."""
    subjects = list(dict.fromkeys(row.about for row in rows))
    rng.shuffle(subjects)
    ends = [round(sum(SHARES[: i + 1]) * len(subjects)) for i in range(len(SHARES))]
    file = {about: next(i for i, end in enumerate(ends) if place < end) for place, about in enumerate(subjects)}
    return [[row for row in rows if file[row.about] == i] for i in range(len(FILES))]


def build(out: Path, seed: int = 0, content: Path = CONTENT) -> dict[str, int]:
    """Writes the three files.

    Args:
        out: folder.
        seed: of the choice of sentences, the parts and the order of rows.
        content: YAML file as ``assets/instructions/content.yaml``.

    Returns:
        Rows of each file.
    """
    loaded = yaml.safe_load(content.read_text(encoding="utf-8"))
    files: list[list[Row]] = [[] for _ in FILES]
    for family in FAMILIES:
        rng = random.Random(f"{seed} {family.__name__}")
        for rows, more in zip(files, parts(list(family(loaded, rng)), rng), strict=True):
            rows += more
    for name, rows in zip(FILES, files, strict=True):
        random.Random(f"{seed} {name}").shuffle(rows)
        write_bytes(out / name, "".join(row.line() for row in rows).encode())
    return {name: len(rows) for name, rows in zip(FILES, files, strict=True)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2_assets"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, count in build(args.out, args.seed).items():
        kinds = Counter(json.loads(line)["kind"] for line in (args.out / name).read_text().splitlines())
        print(f"{args.out / name}: {count} rows ({', '.join(f'{k} {n}' for k, n in sorted(kinds.items()))})")


if __name__ == "__main__":
    main()
