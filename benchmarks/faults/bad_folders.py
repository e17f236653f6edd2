"""Folders and files that a command cannot use: each function fills a new folder, by one name in `bad_inputs.jsonl`.

A model folder is `<folder>/model`, a copy of the tiny model with one fault.
"""

import json
import pathlib
import shutil
import struct
from collections.abc import Callable
from typing import Any

MODEL = pathlib.Path(__file__).resolve().parents[2] / "assets" / "qwen3-tiny"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
HTML = "<!DOCTYPE html><html><body>Sign in</body></html>"
GOOD = {"question": "What is 1 + 1?", "answer": "2"}
_WEIGHTS, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"

SETUPS: dict[str, Callable[[pathlib.Path], None]] = {}


def _setup(name: str, make: Callable[..., None], *arguments: Any) -> None:
    SETUPS[name] = lambda folder: make(folder, *arguments)


def model(folder: pathlib.Path) -> pathlib.Path:
    shutil.copytree(MODEL, folder / "model")
    return folder / "model"


def _replaced(folder: pathlib.Path, name: str, content: str | bytes | None) -> None:
    """content: of a file of the model; None: it is not there."""
    path = model(folder) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _cut(folder: pathlib.Path, name: str) -> None:
    path = model(folder) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_fields(folder: pathlib.Path, name: str, **fields: Any) -> None:
    """JSON fields of a file set; ... takes one away."""
    path = model(folder) / name
    content = json.loads(path.read_text())
    content |= fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def _weights(folder: pathlib.Path, change: Callable[[dict, bytearray], None]) -> None:
    """change(header, data) of the weight file."""
    path = model(folder) / _WEIGHTS
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:start]), bytearray(raw[start:])
    change(header, data)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data)


def _first(header: dict) -> str:
    return next(name for name in header if name != "__metadata__")


def _number(header: dict, data: bytearray, value: float) -> None:
    begin = header[_first(header)]["data_offsets"][0]
    data[begin : begin + 4] = struct.pack("<f", value)


def _drop(header: dict, data: bytearray) -> None:
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    begin, _ = header.pop(last)["data_offsets"]
    del data[begin:]


def _reshape(header: dict, data: bytearray) -> None:
    entry = header[_first(header)]
    entry["shape"] = [size for size in entry["shape"][::-1]] if len(entry["shape"]) > 1 else [*entry["shape"], 1]


def _other_dtype(header: dict, data: bytearray) -> None:
    header[_first(header)]["dtype"] = "I32"


def _shift(header: dict, data: bytearray) -> None:
    header[_first(header)]["data_offsets"] = [1, 5]


def _index(folder: pathlib.Path, weight_map: Any) -> None:
    path = model(folder)
    (path / _WEIGHTS).rename(path / "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _pickled(folder: pathlib.Path) -> None:
    path = model(folder)
    (path / _WEIGHTS).unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def _adapter(folder: pathlib.Path) -> None:
    (model(folder) / "adapter_config.json").write_text("{}")


def _sentencepiece(folder: pathlib.Path) -> None:
    path = model(folder)
    (path / _TOKENIZER).unlink()
    (path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a")


def _added(folder: pathlib.Path, name: str, text: str) -> None:
    (model(folder) / name).write_text(text)


def _file(folder: pathlib.Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _folder(folder: pathlib.Path, name: str) -> None:
    (folder / name).mkdir(parents=True)


def _link(folder: pathlib.Path) -> None:
    (folder / "link").symlink_to(folder / "nowhere")


def _records(folder: pathlib.Path, *records: Any) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _parquet(folder: pathlib.Path, columns: dict[str, list]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "data.parquet")


def _run_of_another(folder: pathlib.Path) -> None:
    from configs import tiny
    from ibtpo.config import resolve

    config = tiny.get_config()
    config.train.seed = 7
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(resolve(config).to_dict()))


for _kind, _content in {
    "empty": "",
    "lfs": LFS,
    "html": HTML,
    "list": "[1, 2]",
    "binary": bytes(range(256)) * 8,
    "bom": b"\xef\xbb\xbf{}",
    "utf16": "{}".encode("utf-16"),
    "deep": "[" * 100_000,
    "missing": None,
}.items():
    for _name, _file_name in (("config", _CONFIG), ("weights", _WEIGHTS), ("tokenizer", _TOKENIZER)):
        _setup(f"{_name}_{_kind}", _replaced, _file_name, _content)
    if _content is not None:
        _setup(f"tokenizer_config_{_kind}", _replaced, "tokenizer_config.json", _content)
        _setup(f"data_{_kind}", _file, "data.jsonl", _content)
        _setup(f"parquet_{_kind}", _file, "data.parquet", _content)
        _setup(f"config_file_{_kind}", _file, "config.py", _content)
        _setup(f"config_json_{_kind}", _file, "config.json", _content)
        _setup(f"run_config_{_kind}", _file, "run/config.json", _content)
        _setup(f"metrics_{_kind}", _file, "run/metrics.jsonl", _content)
for _name, _file_name in (("config", _CONFIG), ("weights", _WEIGHTS), ("tokenizer", _TOKENIZER)):
    _setup(f"{_name}_cut", _cut, _file_name)

for _name, _fields in {
    "type": dict(model_type="gpt2"),
    "no_type": dict(model_type=...),
    "no_vocab": dict(vocab_size=...),
    "vocab_text": dict(vocab_size="many"),
    "vocab_zero": dict(vocab_size=0),
    "vocab_huge": dict(vocab_size=2**40),
    "layers_negative": dict(num_hidden_layers=-1),
    "layers_true": dict(num_hidden_layers=True),
    "layers_more": dict(num_hidden_layers=5),
    "heads": dict(num_key_value_heads=3),
    "odd_head": dict(head_dim=33),
    "eps_nan": dict(rms_norm_eps=float("nan")),
    "eps_zero": dict(rms_norm_eps=0),
    "theta_inf": dict(rope_theta=float("inf")),
    "rope_yarn": dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    "rope_text": dict(rope_scaling="linear"),
    "activation": dict(hidden_act="gelu"),
    "bias": dict(attention_bias=True),
    "quantised": dict(quantization_config={"bits": 4}),
    "own_code": dict(auto_map={"AutoModelForCausalLM": "modeling.Model"}),
    "other_head": dict(architectures=["Qwen3ForSequenceClassification"]),
    "window": dict(use_sliding_window=True, sliding_window=16, max_window_layers=0),
    "positions_few": dict(max_position_embeddings=64),
    "smaller_vocab": dict(vocab_size=8),
}.items():
    _setup(f"config_{_name}", lambda folder, fields=_fields: _with_fields(folder, _CONFIG, **fields))

for _name, _change in {
    "nan": lambda header, data: _number(header, data, float("nan")),
    "inf": lambda header, data: _number(header, data, float("inf")),
    "no_tensor": _drop,
    "shape": _reshape,
    "dtype": _other_dtype,
    "overlap": _shift,
    "extra_bytes": lambda header, data: data.extend(b"12345678"),
    "no_entry": lambda header, data: header.update({_first(header): 3}),
    "unknown_tensor": lambda header, data: header.update({"extra.weight": header.pop(_first(header))}),
}.items():
    _setup(f"weights_{_name}", _weights, _change)
_setup("weights_header_long", _replaced, _WEIGHTS, struct.pack("<Q", 2**60) + b"{}")
_setup("weights_header_text", _replaced, _WEIGHTS, struct.pack("<Q", 4) + b"nope")
_setup("weights_header_list", _replaced, _WEIGHTS, struct.pack("<Q", 2) + b"[]")
_setup("weights_short", _replaced, _WEIGHTS, b"\0\0")
_setup("weights_pickled", _pickled)
_setup("index_shard_missing", _index, {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"})
_setup("index_outside", _index, {"model.embed_tokens.weight": "../../../etc/passwd"})
_setup("index_empty", _index, {})
_setup("index_list", _index, [1])
_setup("adapter", _adapter)
_setup("sentencepiece", _sentencepiece)
_setup("tokenizer_object", _replaced, _TOKENIZER, "{}")
_setup("chat_template_syntax", _added, "chat_template.jinja", "{% if %}")
_setup("chat_template_raises", _added, "chat_template.jinja", "{{ raise_exception('no') }}")
_setup("chat_template_silent", _added, "chat_template.jinja", "hello")
_setup("generation_list", _added, "generation_config.json", "[]")
_setup("generation_eos", _added, "generation_config.json", '{"eos_token_id": "x"}')
_setup("model_file", _file, "model", "no folder")
_setup("model_empty", _folder, "model")
_setup("model_config_folder", _folder, "model/config.json")

_setup("file", _file, "file", "no folder")
_setup("folder", _folder, "folder")
_setup("link", _link)
_setup("run_of_another", _run_of_another)
_setup("run_config_folder", _folder, "run/config.json")
_setup("run_config_text", _file, "run/config.json", "{}")
_setup("run_empty", _folder, "run")
_setup("metrics_no_step", _file, "run/metrics.jsonl", '{"loss": 1}\n')
_setup("metrics_good", _file, "run/metrics.jsonl", '{"step": 1, "train/loss": 1.0}\n')
_setup("metrics_texts", _file, "run/metrics.jsonl", '{"step": "one", "train/loss": "low"}\n')

_setup("data_folder", _folder, "data.jsonl")
_setup("data_blank", _file, "data.jsonl", "\n\n  \n")
_setup("data_no_question", _records, {"problem": "1 + 1", "answer": "2"})
_setup("data_no_answer", _records, {"question": "1 + 1"})
_setup("data_question_number", _records, {"question": 3, "answer": "2"})
_setup("data_question_blank", _records, {"question": "  ", "answer": "2"})
_setup("data_answer_null", _records, {"question": "1 + 1", "answer": None})
_setup("data_answer_list", _records, {"question": "1 + 1", "answer": ["2"]})
_setup("data_answer_nan", _records, {"question": "1 + 1", "answer": float("nan")})
_setup("data_answer_blank", _records, {"question": "1 + 1", "answer": " "})
_setup("data_lists", _records, [1], [2])
_setup("data_long", _records, {"question": "1 + " * 5000, "answer": "2"})
_setup("data_latin1", _file, "data.jsonl", '{"question": "caf\xe9", "answer": "2"}\n'.encode("latin-1"))
_setup("data_cut", _file, "data.jsonl", '{"question": "1 + 1", "ans')
_setup("data_good", _records, GOOD)
_setup("data_letters", _records, {"question": "Which?", "answer": "Z9"})
_setup("data_text", _file, "data.txt", "1 + 1\n")
_setup("parquet_cut", _file, "data.parquet", b"PAR1" + bytes(64))
_setup("parquet_columns", _parquet, {"problem": ["1 + 1"], "answer": ["2"]})
_setup("parquet_no_rows", _parquet, {"question": [], "answer": []})
_setup("parquet_types", _parquet, {"question": [1, 2], "answer": [1, 2]})

_TINY = "from configs import tiny\ndef get_config():\n    c = tiny.get_config()\n    {}\n    return c\n"
for _name, _content in {
    "syntax": "def get_config(:\n",
    "no_function": "x = 1\n",
    "not_callable": "get_config = 3\n",
    "none": "def get_config():\n    pass\n",
    "dict": "def get_config():\n    return {}\n",
    "empty_config": "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n",
    "raises": "def get_config():\n    raise RuntimeError('the\\nreason')\n",
    "raises_at_import": "raise RuntimeError('the reason')\n",
    "assertion": "def get_config():\n    assert False\n",
    "sys_exit": "import sys\nsys.exit(3)\n",
    "sys_exit_0": "import sys\ndef get_config():\n    sys.exit()\n",
    "missing_import": "import no_such_module\n",
    "missing_name": "from configs import no_such_config\n",
    "needs_argument": "def get_config(name):\n    return name\n",
    "recursion": "def get_config():\n    return get_config()\n",
    "zero_division": "x = 1 / 0\n",
    "interrupts": "def get_config():\n    raise BaseException('odd')\n",
    "unknown_key": _TINY.format("c.train.stps = 3"),
    "missing_key": _TINY.format("del c.train.steps"),
    "wrong_type": _TINY.format("c.train.steps = '3'"),
    "section_number": _TINY.format("c.train = 3"),
    "null_bytes": "x = 1\0\n",
    "bad_encoding": b"# \xff\xfe\nx = '\xe9'\n",
}.items():
    _setup(f"config_file_{_name}", _file, "config.py", _content)
for _name, _content in {
    "cut": '{"method": "ibtpo", ',
    "number": "3",
    "nan": '{"method": NaN}',
    "sections": '{"train": {"steps": 3}}',
    "dotted": '{"train.steps": 3}',
}.items():
    _setup(f"config_json_{_name}", _file, "config.json", _content)
