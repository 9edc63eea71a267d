"""compressed-tensors reads what `minillm quantize` writes, and converts AWQ, as we read both.

Its numbers are recorded (tests/helpers/quantized_libraries.py), so the library need not be installed. Where
it is, it is asked again.
"""

from __future__ import annotations

import json

import pytest
import torch
from quantized_cases import Case, all_cases
from quantized_libraries import RECORD, converted, digest, library_weights
from quantized_written import WRITTEN, matrices, write
from torch import Tensor

RECORDED = json.loads(RECORD.read_text())
AWQ = {case.name: case for case in all_cases() if case.method == "awq"}


def read(case: Case) -> Tensor:
    return case.scheme.read(case.module, case.tensors, case.shape).dequantize()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Case]]:
    """The matrices of each written folder."""
    base = tmp_path_factory.mktemp("written")
    return {name: matrices(write(base, name)) for name in WRITTEN}


def all_weights(cases: list[Case], dtype: torch.dtype) -> Tensor:
    return torch.cat([read(case).to(dtype).flatten() for case in cases])


def test_every_case_is_recorded_once() -> None:
    stored = [case.name for case in all_cases()]
    assert list(RECORDED) == [*stored, *(f"converted-{name}" for name in AWQ), *WRITTEN]


@pytest.mark.parametrize("name", AWQ)
def test_awq_is_what_compressed_tensors_converted_it_to(name: str) -> None:
    dtype, expected = RECORDED[f"converted-{name}"]
    assert digest(read(AWQ[name]).to(getattr(torch, dtype))) == expected


@pytest.mark.parametrize("name", AWQ)
def test_awq_is_what_compressed_tensors_converts_it_to(name: str) -> None:
    pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    ours, theirs = (c.scheme.read(c.module, c.tensors, c.shape) for c in (AWQ[name], converted(AWQ[name])))
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.dequantize(), theirs.dequantize())


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_folder_has_the_numbers_that_the_library_read(
    folders: dict[str, list[Case]], name: str
) -> None:
    dtype, expected = RECORDED[name]
    assert len(folders[name]) == 7
    assert digest(all_weights(folders[name], getattr(torch, dtype))) == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_folder_has_the_numbers_that_the_library_reads(
    folders: dict[str, list[Case]], name: str
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    for case in folders[name]:
        expected = library_weights(case)
        assert torch.equal(read(case).to(expected.dtype), expected)
        assert expected.abs().max() > 0


def test_a_changed_bit_changes_the_digest(folders: dict[str, list[Case]]) -> None:
    """The control of the record."""
    name = next(iter(WRITTEN))
    dtype, expected = RECORDED[name]
    case = folders[name][3]
    codes = case.tensors[".weight_packed"].clone()
    codes[2, 3] ^= 1
    changed = Case(case.name, case.config, case.shape, case.tensors | {".weight_packed": codes})
    cases = [changed if other is case else other for other in folders[name]]
    assert digest(all_weights(cases, getattr(torch, dtype))) != expected
