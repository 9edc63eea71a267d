"""The pipeline: compiles some sources of csrc into one shared library, once.

    Unit: source, flags -- compile --> object --+
    Unit: source, flags -- compile --> object --+-- link --> <name>-<source key>-<compiler key>.so

    source key     digest of sources, headers, flags, torch's version if it is used, and the platform
    compiler key   digest of the C++ compiler's version

    searched in     minillm/kernels (setup.py writes it with MINILLM_PREBUILD=1)
                    the cache (cache.py)
    else compiled   into the cache, or for this process only if the cache cannot be written

The path of a file is no part of a key. So two checkouts with the same sources share their libraries, and a
library that setup.py compiled is found after pip has installed it elsewhere.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from minillm.toolchain.cache import (
    cache_folder,
    clear_leftovers,
    install,
    is_whole,
    locked_cache,
    temporary_folder,
)
from minillm.toolchain.compiler import (
    BuildFailed,
    Compiler,
    find_compiler,
    num_jobs,
    require_compiler,
    run_compiler,
    shared_runtime,
)
from minillm.toolchain.crew import Crew
from minillm.toolchain.sources import PACKAGE

_log = logging.getLogger(__name__)
PREBUILT = PACKAGE / "kernels"
HEADERS = (".h", ".cuh")
SOURCES = (*HEADERS, ".cpp", ".cu")
Progress = Callable[[int, int], None]
_compile_seconds = list[float]()  # of each library


@dataclass(frozen=True)
class Unit:
    """One source file and how it is compiled. `compiler` None means the C++ compiler.

    `places` are flags with folders of this machine (-I, -isystem). They are no part of the key. The content
    of these folders is part of it, through `Library.headers` and `Library.versions`.
    """

    source: Path
    flags: Sequence[str]
    places: Sequence[str] = ()
    compiler: Compiler | None = None

    def arguments(self, target: Path) -> list[str]:
        """The compiler's arguments that make the object file `target`."""
        return [*self.flags, *self.places, "-c", str(self.source), "-o", str(target)]


@dataclass(frozen=True)
class Library:
    """One shared library.

    Attributes:
        name: the first part of the file name.
        units: the sources.
        libraries: link flags.
        places: link flags with folders of this machine (-L); no part of the key.
        headers: folders of headers, at any depth, that the units include. Files beside a unit always count.
        versions: other versions that the result depends on.
        folder: the folder of the library, instead of the cache.
    """

    name: str
    units: Sequence[Unit]
    libraries: Sequence[str] = ()
    places: Sequence[str] = ()
    headers: Sequence[Path] = ()
    versions: Sequence[str] = ()
    folder: Path | None = None

    def path(self) -> Path:
        """The path of the library, whether it is built or not.

        Raises:
            BuildFailed: there is no compiler.
        """
        return self._folder() / self._file_name(require_compiler())

    def find(self) -> Path | None:
        """The library, if it is compiled already; by any compiler, if this machine has none."""
        compiler, key = find_compiler(), self._source_key()
        any_compiler = f"{glob.escape(self.name)}-{key}-*.so"
        cached = glob.escape(self._file_name(compiler)) if compiler else any_compiler
        for folder, pattern in ((PREBUILT, any_compiler), (self._folder(), cached)):
            with contextlib.suppress(OSError):
                for path in sorted(folder.glob(pattern)):
                    if is_whole(path):
                        return path
        return None

    def build(self) -> Path:
        """Compile and link the library, unless it exists already.

        Raises:
            BuildFailed: there is no compiler, it fails, or no folder can be written.
        """
        target = self.path()
        if is_whole(target):
            return target
        try:
            with locked_cache(target.parent) as folder:
                if not is_whole(target):  # no other process has built it while we waited
                    clear_leftovers(folder)
                    _log.info("compiling %s kernels (kept in %s)", self.name, folder)
                    self._compile_with_bar(folder)
            return target
        except OSError as error:
            return self._build_for_this_process(target, error)

    def compile_into(self, folder: Path, progress: Progress | None = None) -> Path:
        """Compile and link into `folder`. An incomplete library never appears there.

        Args:
            folder: an existing folder.
            progress: called with (units compiled, number of units).

        Raises:
            BuildFailed: there is no compiler, or it fails.
            OSError: the folder cannot be written, or is full.
        """
        compiler, started = require_compiler(), time.perf_counter()
        target = folder / self._file_name(compiler)
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
            objects = [Path(scratch) / f"{i}.o" for i in range(len(self.units))]
            commands = [
                [(unit.compiler or compiler).path, *unit.arguments(out)]
                for unit, out in zip(self.units, objects, strict=True)
            ]
            built = Path(scratch) / target.name
            with Crew(Path(scratch)) as crew:
                _run_all(crew, commands, progress)
                run_compiler(crew, self._link_command(compiler, objects, built))
            install(built, target)
        _compile_seconds.append(time.perf_counter() - started)
        return target

    def _build_for_this_process(self, target: Path, reason: OSError) -> Path:
        cache, why = target.parent, reason.strerror or str(reason)
        try:
            folder = temporary_folder(target.name)
            if not is_whole(folder / target.name):
                _log.warning("kernels cannot be kept in %s (%s): compiling for this process only", cache, why)
                self._compile_with_bar(folder)
            return folder / target.name
        except OSError as error:
            why = f"{why}; a temporary folder cannot be written either: {error.strerror or error}"
            raise BuildFailed(f"{cache} cannot be written: {why}") from None

    def _compile_with_bar(self, folder: Path) -> None:
        from minillm.progress import Bar  # imported late: setup.py may run without rich

        with Bar(f"compiling {self.name}") as bar:
            self.compile_into(folder, bar)

    def _link_command(self, compiler: Compiler, objects: Sequence[Path], target: Path) -> list[str]:
        # Symbols of the simulator and of torch are resolved when the library is loaded.
        shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        files = [*map(str, objects), "-o", str(target)]
        return [compiler.path, *shared, *files, *shared_runtime(compiler), *self.places, *self.libraries]

    def _folder(self) -> Path:
        return self.folder or cache_folder()

    def _file_name(self, compiler: Compiler) -> str:
        compiler_key = hashlib.sha256(compiler.version.encode()).hexdigest()[:8]
        return f"{self.name}-{self._source_key()}-{compiler_key}.so"

    def _source_key(self) -> str:
        digest = hashlib.sha256()
        for name, content in sorted((path.name, path.read_bytes()) for path in self._files()):
            digest.update(f"{name}\0".encode() + content)
        units = [
            (unit.source.name, list(unit.flags), unit.compiler and unit.compiler.version)
            for unit in self.units
        ]
        settings = [units, list(self.libraries), list(self.versions), sys.platform, platform.machine()]
        digest.update(repr(settings).encode())
        return digest.hexdigest()[:20]

    def _files(self) -> set[Path]:
        """The units, the files beside them, and all headers: every file that could be included."""
        beside = {path for unit in self.units for path in unit.source.parent.iterdir()}
        below = {path for folder in self.headers for path in folder.rglob("*") if path.suffix in HEADERS}
        return {path for path in beside | below if path.suffix in SOURCES and path.is_file()}


def compile_seconds() -> float:
    """Seconds that this process has spent on compiling libraries."""
    return sum(_compile_seconds)


def _run_all(crew: Crew, commands: Sequence[list[str]], progress: Progress | None) -> None:
    with ThreadPoolExecutor(num_jobs()) as pool:
        jobs = [pool.submit(run_compiler, crew, command) for command in commands]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if progress:
                    progress(done, len(jobs))
        except BaseException:  # Ctrl-C, too: the pool would wait for all of them
            pool.shutdown(wait=False, cancel_futures=True)
            crew.kill()
            raise
