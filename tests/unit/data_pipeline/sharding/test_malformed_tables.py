"""Tables that would lose a row, a label or an image are refused, as is what is no table at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coatnet.config import UserError
from data_pipeline.sharding.sharder import shard_corpus


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "path,label\n../../secret.jpg,a\n", "leads out of"),
        ("t.csv", "path,label\n/etc/passwd,a\n", "leads out of"),
        ("t.csv", "picture,label\nx.jpg,a\n", "row 1: has no image; expected a column path"),
        ("t.csv", "path\nx.jpg\n", "row 1: has no label; expected a column label.*, found 'path'"),
        ("t.csv", "path;label\nx.jpg;a\n", "row 1: has no label; .*, found 'path;label'"),
        ("t.csv", "path,label\nx.jpg,a\n", r"row 1: .*x\.jpg: No such file"),
        (
            "t.csv",
            "path,label\nx.jpg,12:30\n",
            "row 1, column label: '12:30' is read as '12' with the weight 30",
        ),
        ("t.csv", "", "holds no rows"),
        ("t.jsonl", '{"bytes": "", "label": 1}\n\n{"label" 1}', "t.jsonl: line 3: Expecting ':' delimiter"),
        ("t.jsonl", '[{"bytes": "", "label": 1},\n', "t.jsonl: line 1: Expecting value"),
        ("t.jsonl", '{"bytes": "@@@", "label": 1}', "is not base64"),
        ("t.jsonl", '{"bytes": "", "label": true}', "True is not a label"),
        ("t.jsonl", '{"bytes": "", "label": {"a": null}}', "'a' has the weight None"),
        ("t.jsonl", '{"bytes": "", "label": [["a", NaN]]}', "'a' has the weight nan"),
        ("t.jsonl", '{"bytes": "", "label": [{"label": [1]}]}', r"\[1\] is not a label"),
        ("t.jsonl", '{"bytes": "", "label": ""}\n{"bytes": "", "label": "a"}', "row-1 has no label"),
        ("t.csv", "bytes,label\n,0.0\n,10.0\n", r"t\.csv: labels such as '0\.0' are decimals"),
        ("t.csv", "bytes,label\n,1\n,1.0\n", r"t\.csv: labels such as '1\.0' are decimals"),
        ("t.jsonl", '{"bytes": "", "label": "a\\tb"}', r"control character U\+0009"),
        (
            "t.jsonl",
            '{"bytes": "", "label": "caf\u00e9"}\n{"bytes": "", "label": "cafe\u0301"}',
            r"'cafe\\u0301' and 'caf\\xe9' are one name, written in two ways",
        ),
        (
            "t.jsonl",
            '{"bytes": "", "label": 1, "split": "train"}\n{"bytes": "", "label": 1, "split": "Test"}',
            "column split: holds parts of a data set, test, train; make a table of each",
        ),
        ("t.csv", "path,label\na.jpg,a, b\n", r"t\.csv: line 2: more cells than columns; quote those"),
        (
            "t.csv",
            "path,label,labels\na.jpg,1,1;2\n",
            r"t\.csv, row 1: columns label and labels all name labels; keep one",
        ),
        ("t.jsonl", '{"bytes": "", "target": 3, "class": "a"}', "row 1: columns class and target all name"),
        ("t.csv", "path,label,label\na.jpg,1,2\n", r"t\.csv: two columns are called 'label'"),
        (
            "t.csv",
            'path,label,text\na.jpg,1,"a\nb.jpg,2,b\n',
            r"t\.csv: after line 1: unexpected end of data",
        ),
        ("t.tsv", 'path\tlabel\n"a".jpg\t1\n', r"t\.tsv: after line 1: '.' expected after '\"'"),
        ("t.jsonl", '{"path": "a\\u0000", "label": 1}', r"row 1: the path 'a\\x00' is none"),
        ("t.jsonl", '{"path": "\\ud800", "label": 1}', r"row 1: the path '\\ud800' is none"),
        ("t.jsonl", '{"label": ' + "[" * 100_000, "t.jsonl: line 1: (maximum recursion|Stack overflow)"),
        ("t.jsonl", '{"bytes": "", "label": 1' + "0" * 5000 + "}", "t.jsonl: line 1: Exceeds the limit"),
        ("t.jsonl", '{"image": "x.jpg", "label": 1}', "is not base64; a path belongs in a column path"),
        ("t.jsonl", '["x.jpg", 1]', "row 1: is not a mapping of columns"),
        ("t.parquet", "no parquet at all", r"t\.parquet: Parquet magic bytes not found"),
        ("t.tar.gz", "x", "is of no known kind"),
    ],
)
def test_a_malformed_table_is_one_clear_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        shard_corpus(tmp_path / name, tmp_path / "packed", quiet=True)


def test_without_the_library_for_a_kind_of_table_it_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"t\.parquet: needs pyarrow; pip install 'coatnet\[tables\]'"):
        shard_corpus(tmp_path / "t.parquet", tmp_path / "packed", quiet=True)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_named_as_such(tmp_path: Path, name: str, encoding: str) -> None:
    """As spreadsheets write them."""
    (tmp_path / name).write_bytes('{"path": "x.jpg", "label": "caf\xe9"}\n'.encode(encoding))
    with pytest.raises(UserError, match=rf"{name}: is not UTF-8 text; save it in that encoding"):
        shard_corpus(tmp_path / name, tmp_path / "packed", quiet=True)
