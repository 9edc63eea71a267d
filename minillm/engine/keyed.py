"""Digests for events, traces and logs: keyed, so that nobody can test a guess.

A plain digest of a prompt hides it only from those who cannot guess it. Whoever reads a trace could hash a
thousand likely prompts and compare. So a digest in a trace is an HMAC with a secret of this process:

    prompt --SHA-256--> digest in the output --HMAC(secret, tenant)--> digest in the trace

The secret is never written and ends with the process. The tenant is part of the message: a tenant that reads
a trace and sends guesses finds no prompt of another tenant. Within one tenant equal prompts have equal
digests, so a trace still shows which requests were alike.

Source: RFC 2104 (HMAC).
"""

from __future__ import annotations

import hmac
import secrets
from functools import lru_cache

from minillm.memory.encoding import canonical

_SECRET = secrets.token_bytes(32)


@lru_cache(maxsize=4096)
def tenant_label(tenant: str | None) -> str:
    """The name of a tenant in events and metrics: 16 hex digits, others in every process."""
    return hmac.digest(_SECRET, canonical(["tenant", tenant]), "sha256").hex()[:16]


def keyed(digest: str, tenant: str | None) -> str:
    """The digest of a tenant's prompt or answer for an event: 64 hex digits, others in every process."""
    return hmac.digest(_SECRET, canonical([tenant, digest]), "sha256").hex()
