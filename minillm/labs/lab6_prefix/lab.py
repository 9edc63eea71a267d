"""Lab 6: a prefix cache that proves its hits: what a key must contain, and what a match must compare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from minillm.labs.grader.lab import Case, Lab, Part, Task, Words
from minillm.labs.grader.serving import Ask, serve
from minillm.labs.lab6_prefix.cache_user import random_lives, watched
from minillm.labs.lab6_prefix.digest_cases import DIGEST_CASES, DIGEST_MISTAKES, random_changes
from minillm.labs.lab6_prefix.encode_cases import ENCODE_CASES, ENCODE_MISTAKES, random_keys
from minillm.labs.lab6_prefix.evict_cases import EVICT_CASES, EVICT_MISTAKES
from minillm.labs.lab6_prefix.find_cases import FIND_CASES
from minillm.labs.lab6_prefix.find_mistakes import FIND_MISTAKES
from minillm.labs.lab6_prefix.match_cases import MATCH_CASES, MATCH_MISTAKES
from minillm.labs.lab6_prefix.publish_cases import PUBLISH_CASES, PUBLISH_MISTAKES
from minillm.labs.lab6_prefix.release_cases import RELEASE_CASES, RELEASE_MISTAKES
from minillm.memory.prefix_cache import sha256

CACHE = "minillm.memory.prefix_cache"


def in_engine(asks: Sequence[Ask], num_blocks: int, is_constant: bool, parts: Any) -> list[Any]:
    """Every step, the answers, the blocks in the cache, and whether there were false matches."""
    caches = list[Any]()

    def make_cache(pool: Any) -> Any:
        caches.append(parts.PrefixCache(pool, (lambda data: b"same") if is_constant else sha256))
        return caches[0]

    served = serve({"prefix_cache": make_cache}, asks, num_blocks)
    matches = Words("false matches" if caches[0].false_matches else "no false matches")
    return [*served, caches[0].num_blocks, caches[0].num_unused, matches]


def walks_in_engine(parts: Any) -> list[Words]:
    """Whether serving the questions walks over every block or digest of the cache."""
    walks = list[Any]()

    def make_cache(pool: Any) -> Any:
        cache = parts.PrefixCache(pool, sha256)
        walks.append(watched(cache))
        return cache

    serve({"prefix_cache": make_cache}, QUESTIONS, 60)
    return list(walks[0]())


QUESTIONS = (
    Ask(25, 6, story=1),
    Ask(33, 9, at=4, story=1),
    Ask(30, 5, at=5, story=2, n=2),
    Ask(25, 6, at=9, story=1, tenant="alice"),
    Ask(33, 6, at=14, story=1, tenant="alice"),
    Ask(27, 12, at=16, story=2),
)
LAB = Lab(
    6,
    "prefix",
    "A prefix cache that proves its hits",
    (
        Task(
            "6.1",
            "different keys, different bytes",
            15,
            Part(CACHE, "encode"),
            ENCODE_CASES,
            ENCODE_MISTAKES,
            random_keys,
        ),
        Task(
            "6.2",
            "the key of a block",
            10,
            Part(CACHE, "PrefixCache", ("digest",)),
            DIGEST_CASES,
            DIGEST_MISTAKES,
            random_changes,
        ),
        Task(
            "6.3",
            "the proof",
            20,
            Part(CACHE, "PrefixCache", ("_find",)),
            FIND_CASES,
            FIND_MISTAKES,
            random_lives,
        ),
        Task(
            "6.4",
            "the longest chain",
            10,
            Part(CACHE, "PrefixCache", ("match",)),
            MATCH_CASES,
            MATCH_MISTAKES,
            random_lives,
        ),
        Task(
            "6.5",
            "make a block findable",
            15,
            Part(CACHE, "PrefixCache", ("publish",)),
            PUBLISH_CASES,
            PUBLISH_MISTAKES,
            random_lives,
        ),
        Task(
            "6.6",
            "unused, but kept",
            10,
            Part(CACHE, "PrefixCache", ("released",)),
            RELEASE_CASES,
            RELEASE_MISTAKES,
            random_lives,
        ),
        Task(
            "6.7",
            "make room",
            10,
            Part(CACHE, "PrefixCache", ("evict",)),
            EVICT_CASES,
            EVICT_MISTAKES,
            random_lives,
        ),
        Task(
            "6.8",
            "your cache in the running engine",
            10,
            None,
            (
                Case("questions to two stories, from two tenants", partial(in_engine, QUESTIONS, 60, False)),
                Case("in a small pool, with evictions", partial(in_engine, QUESTIONS, 16, False)),
                Case("with a constant hash function", partial(in_engine, QUESTIONS, 60, True)),
                Case("what serving the questions looks at", walks_in_engine, "cost"),
            ),
        ),
    ),
)
