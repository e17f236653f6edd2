r"""The short problems of GSM8K, which a model of 135 M parameters solves now and then. From the repository root
(`make real` does it):

    python assets/short_gsm8k.py --files=FOLDER data

Writes data/gsm8k_short_train.jsonl and data/gsm8k_short_test.jsonl: the problems whose published solution has at most
--calculations calculations and whose question has at most --characters characters, an eighth of all. Without --files
the publisher's files come through the hub.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ibtpo.data.published import DATASETS
from ibtpo.data.published_problems import download, find_files
from ibtpo.data.records import BadRecord, find_field, read_records
from ibtpo.errors import UserError

GSM8K = DATASETS["gsm8k"]


def short_problems(files: list[Path], calculations: int, characters: int) -> Iterator[dict[str, str]]:
    """{question, answer} of the records of files that are short, in their order."""
    for file in files:
        for _, record in read_records(file, GSM8K.columns):
            if isinstance(record, BadRecord):
                continue
            solution = str(find_field(record, ("answer",)))
            question, answer = GSM8K.parse(record)
            if 0 < solution.count("<<") <= calculations and len(question) <= characters:
                yield {"question": question, "answer": answer}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="the short problems of GSM8K as JSON lines")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--files", default="", help="folder with the publisher's files; default: through the hub")
    parser.add_argument("--calculations", type=int, default=2, help="most of a solution")
    parser.add_argument("--characters", type=int, default=160, help="most of a question")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for split in GSM8K.rows:
        try:
            files = find_files(GSM8K, options.files, split) if options.files else []
            found = list(short_problems(files or download(GSM8K, split, options.files), *_limits(options)))
        except UserError as error:
            sys.exit(f"error: {error}")
        path = options.output / f"gsm8k_short_{split}.jsonl"
        path.write_text("".join(json.dumps(problem) + "\n" for problem in found), encoding="ascii")
        print(f"{path}: {len(found):,} problems")


def _limits(options: argparse.Namespace) -> tuple[int, int]:
    return options.calculations, options.characters


if __name__ == "__main__":
    main(sys.argv[1:])
