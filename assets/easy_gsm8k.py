r"""The easy problems of GSM8K, of which a model of 135 M parameters solves some now and then. From the repository root
(`make real` does it):

    python assets/easy_gsm8k.py --files=FOLDER data

Writes data/gsm8k_easy_train.jsonl and data/gsm8k_easy_test.jsonl, 508 and 86 problems: those whose published solution
has at most --calculations calculations, all of them sums, differences and products of whole numbers up to --largest,
and whose question has at most --characters characters. Without --files the publisher's files come through the hub.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ibtpo.data.published import DATASETS
from ibtpo.data.published_problems import download, find_files
from ibtpo.data.records import BadRecord, find_field, read_records
from ibtpo.errors import UserError

GSM8K = DATASETS["gsm8k"]
_CALCULATION = re.compile(r"<<([^<>]*)>>")  # as the published solutions write one


def is_easy(solution: str, calculations: int, largest: int) -> bool:
    """Whether a solution has so few calculations, all of them of whole numbers that small and without a division."""
    found = _CALCULATION.findall(solution)
    if not 0 < len(found) <= calculations or not all(re.fullmatch(r"[\d+\-*=]*\d[\d+\-*=]*", text) for text in found):
        return False
    return max(int(number) for text in found for number in re.findall(r"\d+", text)) <= largest


def easy_problems(files: list[Path], options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """{question, answer} of the records of files that are easy, in their order."""
    for file in files:
        for _, record in read_records(file, GSM8K.columns):
            if isinstance(record, BadRecord):
                continue
            question, answer = GSM8K.parse(record)
            solution = str(find_field(record, ("answer",)))
            if len(question) <= options.characters and is_easy(solution, options.calculations, options.largest):
                yield {"question": question, "answer": answer}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="the easy problems of GSM8K as JSON lines")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--files", default="", help="folder with the publisher's files; default: through the hub")
    parser.add_argument("--calculations", type=int, default=2, help="most of a solution")
    parser.add_argument("--characters", type=int, default=200, help="most of a question")
    parser.add_argument("--largest", type=int, default=100, help="largest number of a calculation")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for split in GSM8K.rows:
        try:
            files = find_files(GSM8K, options.files, split) if options.files else []
            found = list(easy_problems(files or download(GSM8K, split, options.files), options))
        except UserError as error:
            sys.exit(f"error: {error}")
        path = options.output / f"gsm8k_easy_{split}.jsonl"
        path.write_text("".join(json.dumps(problem) + "\n" for problem in found), encoding="ascii")
        print(f"{path}: {len(found):,} problems")


if __name__ == "__main__":
    main(sys.argv[1:])
