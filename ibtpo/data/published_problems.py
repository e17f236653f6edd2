"""TFDS data set "published_problems": any split of `published.DATASETS`, made from the publisher's own files.

Prepared as ArrayRecord files and read as a random-access source, without TensorFlow. The numbers of records read and
left out are kept with the data, so that every run can check and report them.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from ibtpo import hub
from ibtpo.data import prepare as prepare_lib
from ibtpo.data.published import Dataset, find_files
from ibtpo.data.records import UNITS, BadRecord, list_places, read_records
from ibtpo.errors import UserError
from ibtpo.messages import hushed_import

with hushed_import():
    import huggingface_hub
    import tensorflow_datasets as tfds

_MAX_PLACES = 20  # of each reason and file that are kept


class PublishedConfig(tfds.core.BuilderConfig):
    """One split of a data set, read from `files`, which `origin` stands for in the name of the prepared copy."""

    def __init__(self, *, dataset: Dataset, split: str, files: Sequence[Path], origin: str):
        super().__init__(name=f"{dataset.name}_{split}_{origin}", description=dataset.title)
        self.dataset, self.split, self.files = dataset, split, tuple(files)


class PublishedProblems(tfds.core.GeneratorBasedBuilder):
    """Questions and answers of one split of a published data set."""

    name = "published_problems"
    # Prepared copies are reused by version: whoever changes what a record becomes (`published.py`) must raise it.
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First release.", "1.1.0": "Boxes without braces, the user turn, text that is no UTF-8."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"question": tfds.features.Text(), "answer": tfds.features.Text()}),
            supervised_keys=("question", "answer"),
            disable_shuffling=True,  # the publisher's order is the order read
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # the files are there
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yields the problems; then `info.metadata` has "records", how many were read; "repeated", those left out
        whose question came before, and "conflicting", those of them with another answer; "bad": a list of
        {reason, file, count, indices (the first of them)}."""
        dataset = self.builder_config.dataset
        answers: dict[str, str] = {}
        bad: dict[tuple[str, str], dict[str, Any]] = {}
        records = used = repeated = conflicting = 0
        for file in self.builder_config.files:
            for index, record in read_records(file, dataset.columns):
                records += 1
                try:
                    if isinstance(record, BadRecord):
                        raise record
                    question, answer = dataset.parse(record)
                except BadRecord as error:
                    entry = bad.setdefault(
                        (str(error), str(file)), {"reason": str(error), "file": str(file), "count": 0, "indices": []}
                    )
                    entry["count"] += 1
                    entry["indices"] += [index] * (len(entry["indices"]) < _MAX_PLACES)
                    continue
                if dataset.unique:
                    if question in answers:
                        repeated, conflicting = repeated + 1, conflicting + (answers[question] != answer)
                        continue
                    answers[question] = answer
                yield used, {"question": question, "answer": answer}
                used += 1
        report = dict(records=records, repeated=repeated, conflicting=conflicting, bad=list(bad.values()))
        if not used:
            where = ", ".join(map(str, self.builder_config.files))
            raise UserError(
                f"{dataset.title}: no usable problem in {where} ({_describe_bad(report) or 'it is empty'})"
            )
        self.info.metadata.update(report)


def load(dataset: Dataset, split: str, data_config) -> Sequence[dict[str, bytes]]:
    """The examples of a split, or of a TFDS slice of one ("train[:100]"), as a random-access source.

    They are prepared at the first use into `data.dir`, from `data.files` or, where that is "" or a folder without
    them, through the hub. Copies of local files are told apart by their content, so a changed file is read anew; what
    came through the hub once is not asked for again. Bad records are reported by file and line at every call.

    Raises:
      UserError: no such local file or folder, or not there and not to be had from the hub; no
        such split, no usable problem; another number of records than the publisher's, unless `data.check_rows` is
        off, where it is a warning; or records that fold into too few questions (`_check_repeated`).
    """
    base = re.split(r"\W", split, maxsplit=1)[0]
    if base not in dataset.rows:
        raise UserError(
            f"{dataset.title} has no split {split!r}: use {' or '.join(map(repr, dataset.rows))}, or a slice of it "
            f"such as '{next(iter(dataset.rows))}[:100]'"
        )
    files = find_files(dataset, data_config.files, base) if data_config.files else []
    # A benchmark is another set than the one whose revision is chosen.
    is_source = bool(dataset.repo) and data_config.source.lower() == f"hf:{dataset.repo}".lower()
    repo = hub.Repo.dataset(dataset.repo) if is_source else None
    revision = repo.pin(data_config.revision) if repo is not None and not files else ""
    origin = fingerprint(files) if files else "_".join(filter(None, ("hub", hub.commit_of(revision)[:12])))

    def fetch() -> list[Path]:
        if repo is None:
            return download(dataset, base, data_config.files)
        return [repo.file(name, revision) for name in (dataset.files or {})[base]]

    builder, prepared = prepared_copy(dataset, base, origin, files, fetch, data_config.dir)
    report = builder.info.metadata
    if not prepared and report["repeated"]:
        print(
            f"{dataset.title}: {report['records']:,} records, of which {report['repeated']:,} repeat a question and "
            f"are left out ({report['conflicting']:,} of them with another answer)",
            file=sys.stderr,
        )
    _check_rows(dataset, base, report["records"], ", ".join(map(str, files)) or str(builder.data_dir), data_config)
    _check_repeated(dataset, report, data_config)
    warn_of_bad(dataset, report)
    return prepare_lib.read_split(builder, split)


def prepared_copy(
    dataset: Dataset, split: str, origin: str, files: Sequence[Path], fetch: Callable[[], Sequence[Path]], folder: str
) -> tuple[PublishedProblems, bool]:
    """(the builder of a split's copy in `folder`, made where there is none; whether it was there already).

    Args:
      origin: what the copy is made from, in its name.
      files: where they are known, else [] and `fetch` gets them when they are needed.
    """

    def make_builder() -> PublishedProblems:
        config = PublishedConfig(dataset=dataset, split=split, files=files, origin=origin)
        data_dir = os.path.expanduser(folder) or None
        return PublishedProblems(config=config, data_dir=data_dir, file_format="array_record")

    with prepare_lib.usable_folder(), prepare_lib.quiet():
        prepared = make_builder().is_prepared()
    if not prepared and not files:
        files = fetch()
    with prepare_lib.usable_folder():
        return prepare_lib.prepare(make_builder), prepared


def warn_of_bad(dataset: Dataset, report: dict[str, Any]) -> None:
    """Says which records were left out when the copy was made, `report` being its metadata."""
    if report["bad"]:
        count = sum(entry["count"] for entry in report["bad"])
        logging.warning("%s: %d records left out (%s)", dataset.title, count, _describe_bad(report))


def download(dataset: Dataset, split: str, searched: str = "") -> list[Path]:
    """Fetches the files of a split through the hub, into its cache.

    searched: the local folder that did not have them, for the message.

    Raises:
      UserError: the set is not on the hub, or the hub could not be reached or refused; the message says where
        to get the files by hand.
    """
    found = f"data.files={searched!r} has no files of it" if searched else 'data.files="" names no files'
    by_hand = f"get them ({dataset.homepage}) and name the file or folder in data.files"
    if not dataset.repo:
        raise UserError(f"{dataset.title}, split {split!r}: {found}, and it is not on the hub: {by_hand}")
    try:
        return [
            Path(huggingface_hub.hf_hub_download(dataset.repo, name, repo_type="dataset"))
            for name in (dataset.files or {})[split]
        ]
    # No network, offline mode, a gated or missing file, a broken transfer: all are one of the hub's OSErrors.
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{dataset.title}, split {split!r}: {found}, and fetching {dataset.repo} failed ({type(error).__name__}: "
            f"{reason}): {by_hand}"
        ) from error


def _check_rows(dataset: Dataset, split: str, records: int, where: str, data_config) -> None:
    expected = dataset.rows[split]
    if records in expected:
        return
    published = " or ".join(f"{number:,}" for number in expected)
    found = f"{dataset.title}, split {split!r}: {where} has {records:,} records, the published set {published}"
    if data_config.check_rows:
        raise UserError(f"{found}: name the right files in data.files, or set data.check_rows=False to use these")
    logging.warning("%s; used as it is (data.check_rows=False)", found)


def _check_repeated(dataset: Dataset, report: dict[str, Any], data_config) -> None:
    """Raises UserError where the records that repeat a question show that it was not read right: they leave fewer than
    half of the different questions that so many records of the set should have (unless `data.check_rows` is off), or
    most of them have another answer."""
    records, repeated, conflicting = (report[key] for key in ("records", "repeated", "conflicting"))
    used = records - repeated - sum(entry["count"] for entry in report["bad"])
    few = data_config.check_rows and 2 * used < min(records, dataset.unique)
    if not few and 2 * conflicting <= records:
        return
    raise UserError(
        f"{dataset.title}: {records:,} records fold into {used:,} different questions; {repeated:,} repeat one, "
        f"{conflicting:,} of them with another answer, so what is read is not the question: name the publisher's files "
        "in data.files, or read yours as data.source=parquet:<path> or jsonl:<path> with data.question_field"
    )


def _describe_bad(report: dict[str, Any]) -> str:
    return "; ".join(
        f"{entry['reason']} ({entry['count']}): {entry['file']} "
        + list_places(UNITS[Path(entry["file"]).suffix.lower()], entry["indices"], entry["count"])
        for entry in report["bad"]
    )


def fingerprint(files: Sequence[Path]) -> str:
    """Of the files' content and kinds."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.suffix.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
