"""Rows of our own in the format of each publisher of problem sets, and files of them."""

import csv
import json

import pyarrow as pa
from pyarrow import parquet

from ibtpo.data.published import DATASETS

# Rows of our own in the format of each publisher: (rows, questions, answers). GPQA has a test of its own.
_INSTRUCTION = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def dapo_row(question, answer, index):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": _INSTRUCTION.format(question), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def gpqa_row(question, options):
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return {"Record ID": "r", "Question": question, **dict(zip(names, options))}


IFEVAL_ROW = {
    "key": 7,
    "prompt": "Write two lines without a comma.\nUse at least 5 words. ",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 5}],
}
_MATH_ROW = {"problem": "What is $\\frac{3}{6}$?", "level": "Level 1", "type": "Algebra"}
_MATH_ROW |= {"solution": "Half: $\\boxed{3}$ over 6, so $\\boxed{\\frac{1}{2}}$."}
FORMATS = {
    "dapo_math_17k": (
        [dapo_row("One plus one?", "2", "a"), dapo_row("Two plus two?", "4", "b"), dapo_row("One plus one?", "2", "c")],
        ["One plus one?", "Two plus two?"],
        ["2", "4"],
    ),
    "gsm8k": (
        [{"question": "How much is it?", "answer": "It is <<2*600=1200>>1200.\n#### 1,200"}],
        ["How much is it?"],
        ["1200"],
    ),
    "math": ([_MATH_ROW], [_MATH_ROW["problem"]], ["\\frac{1}{2}"]),
    "math_500": (
        [{**_MATH_ROW, "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}],
        [_MATH_ROW["problem"]],
        ["\\frac{1}{2}"],
    ),
    "aime_2024": (
        [{"id": 60, "problem": "How many?", "solution": "So $25$.", "answer": "025", "url": "u", "year": "2024"}],
        ["How many?"],
        ["25"],
    ),
    "aime_2025": (
        [{"question": "How many?", "answer": "000"}, {"question": "Which angle?", "answer": "336^\\circ"}],
        ["How many?", "Which angle?"],
        ["0", "336"],
    ),
    "amc_2023": ([{"id": 0, "question": "How far?", "answer": 27.0, "url": "u"}], ["How far?"], ["27"]),
    "amc_2024": (
        [{"problem": "How far?", "answer": "\\frac{1}{3}", "solution": "s", "year": 2024, "url": "u"}],
        ["How far?"],
        ["\\frac{1}{3}"],
    ),
    "ifeval": ([IFEVAL_ROW], [IFEVAL_ROW["prompt"]], None),
}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def eval_split(name):
    return DATASETS[name].eval_split or "train"
