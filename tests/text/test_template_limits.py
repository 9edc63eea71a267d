"""Chat templates end: in few steps, with values of bounded size, and with a typed error where they would not.

The templates below would run for hours or take gigabytes. Each is refused before it does. What well-behaved
templates use gives the same text as in jinja2's own sandbox.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minillm.errors import TemplateLimit, UsageError
from minillm.text import template_limits
from minillm.text.chat_template import MAX_TEMPLATE, render
from minillm.text.template_sandbox import GenerationTag

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello <b>world</b>"},
    {"role": "assistant", "content": "x\ny"},
]
GROW = (
    "{%% set ns = namespace(v=%s) %%}{%% for i in range(60) %%}{%% set ns.v = %s %%}{%% endfor %%}{{ ns.v }}"
)
STEPS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% for i in range(99999) recursive %}{% if loop.depth < 3 %}{{ loop(range(99999)) }}"
    "{% endif %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}"
    "{% endmacro %}{{ g() }}",
    "{{ [1] | slice(10**9) | list }}",
    "{% for i in range(99999) %}{% for j in range(99999) | map('string') %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | map('upper') | select('equalto', 'x') | list }}"
    "{% endfor %}",
]  # fmt: skip
SIZES = [
    "{{ '%3000000000d' % 1 }}",
    "{{ '%*d' % (3000000000, 1) }}",
    "{{ '%.3000000000f' % 1 }}",
    "{{ '%-3000000000s' | format('x') }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=3000000000) }}",
    "{{ '{0:{1}}'.format(1, 3000000000) }}",
    "{{ '{a:>3000000000}'.format_map({'a': 1}) }}",
    "{{ ('{a}' * 100000)['format_map']({'a': 'b' * 10000}) }}",
    "{{ ('{a}' * 100000).format(a='b' * 10000) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'b' * 10000} }}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [1] * 10**10 }}",
    "{{ (1, 2) * 10**10 }}",
    "{{ ('a' | escape) * 10**10 }}",
    "{{ 10 ** 10**8 }}{{ 10 ** (10**8) }}",
    "{{ 5 | round(10**9) }}",
    "{{ 5 | round(-10**9, 'ceil') }}",
    "{{ 'x' | center(3000000000) }}",
    "{{ 'x' | center(width=3000000000) }}",
    "{% filter center(3000000000) %}x{% endfilter %}",
    "{{ ['x'] | map('center', 3000000000) | list }}",
    "{{ 'x'.center(3000000000) }}",
    "{{ 'x'['ljust'](3000000000) }}",
    "{{ ('x' | attr('rjust'))(3000000000) }}",
    "{% set f = 'x'.zfill %}{{ f(3000000000) }}",
    "{{ 'a\nb' | indent(3000000000) }}",
    "{{ ('a\n' * 10000) | indent('x' * 10000) }}",
    "{{ ('a' * 100000).replace('a', 'a' * 100000) }}",
    "{{ ('a' * 100000) | replace('', 'a' * 100000) }}",
    "{{ range(9999) | list | join('a' * 100000) }}",
    "{{ range(99999) | map('string') | join('a' * 100000) }}",
    "{{ ('a' * 100000).join(range(99999) | map('string')) }}",
    "{{ ('a' * 100000).join('b' * 100000) }}",
    "{{ ('b' * 500000) | trim('a' * 500000) }}",
    "{{ ('a' * 500000).rfind('b' ~ 'a' * 250000) }}",
    "{{ [1] | batch(10**9) | list }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | tojson(separators=('x' * 1000000, 'y')) }}",
    "{{ ([[1] * 10] * 9999) | sum(start=[]) }}",
    "{{ ('a.' * 100000) | urlize }}",
    "{{ ('<!--' * 100000) | striptags }}",
    "{{ ('ab ' * 100000) | wordwrap(1) }}",
    "{{ dict.fromkeys(range(99999), 'x' * 100000) }}",
    "{{ range(99999) | map('center', 99999) | list }}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}{% endset %}",
    "{% for i in range(99999) %}{% set x = 'a' * 1000000 %}{% endfor %}",
    "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('abc') }}",
    GROW % ("[1]", "[ns.v, ns.v]"),
    GROW % ("(1,)", "(ns.v, ns.v)"),
    GROW % ("[1]", "ns.v + ns.v"),
    GROW % ("'a'", "ns.v ~ ns.v"),
    GROW % ("'a'", "ns.v + ns.v"),
    GROW % ("'ab'", "ns.v.join([ns.v] * 9)"),
    GROW % ("'ab'", "'%s%s' % (ns.v, ns.v)"),
    GROW % ("'ab'", "[ns.v, ns.v] | join"),
    GROW % ("3", "ns.v * ns.v"),
    GROW % ("{}", "{'a': ns.v, 'b': ns.v}"),
    GROW % ("{}", "dict(a=ns.v, b=ns.v)"),
    GROW % ("[[1]]", "[ns.v]") + "{% for i in range(99) %}{% set ns.v = [ns.v] %}{% endfor %}",
]
NOT_THERE = [
    "{{ lipsum(n=10**6) }}",
    "{{ 'x'.expandtabs(10**9) }}",
    "{{ 'x'.encode('idna') }}",
    "{{ 'x'.translate({120: 'y'}) }}",
    "{{ (5).to_bytes(10**9) }}",
    "{{ range(10**9) }}",
]


@pytest.mark.parametrize("template", STEPS + SIZES)
def test_a_template_without_measure_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if template in STEPS:
        monkeypatch.setattr(template_limits, "MAX_STEPS", 50_000)  # for the test to be quick
    with pytest.raises(TemplateLimit) as caught:
        render(template, TALK, {})
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("template", NOT_THERE)
def test_what_a_template_does_not_get(template: str) -> None:
    with pytest.raises(UsageError, match="chat template"):
        render(template, TALK, {})


def test_no_template_takes_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort, where few steps take long."""
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.0)
    with pytest.raises(TemplateLimit, match="seconds"):
        render("{{ messages[0].content }}", TALK, {})


def test_limits_hold_in_any_thread() -> None:
    """Without signals, so not only in the main thread."""
    caught: list[BaseException] = []

    def work() -> None:
        try:
            render(SIZES[0], TALK, {})
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [TemplateLimit]


def test_a_template_that_is_long() -> None:
    with pytest.raises(TemplateLimit, match="characters"):
        render("x" * (MAX_TEMPLATE + 1), TALK, {})
    assert render("x" * MAX_TEMPLATE, TALK, {}) == "x" * MAX_TEMPLATE


@pytest.mark.parametrize("depth", [100, 5000, 50_000])
@pytest.mark.parametrize("nest", [("(", "1", ")"), ("[", "1", "]"), ("-", "1", ""), ("not ", "1", "")])
def test_a_template_that_is_deep(nest: tuple[str, str, str], depth: int) -> None:
    """The parser is recursive."""
    opening, inner, closing = nest
    try:
        render("{{ " + opening * depth + inner + closing * depth + " }}", TALK, {})
    except UsageError:
        return
    assert depth == 100


def test_long_conversations_have_room() -> None:
    """The limits grow with what is to be written."""
    talk = [{"role": "user", "content": "word " * 2000}] * 500
    looped = "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content }}{% endfor %}"
    assert len(render(looped, talk, {})) == 500 * 10_000
    grown = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.role %}"
        "{% endfor %}{{ ns.t }}"
    )
    assert render(grown, talk, {}) == "user" * 500


# ---- the same text as elsewhere -------------------------------------------------------------------

GOOD = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.previtem }};"
    "{% endfor %}",
    "{% for m in messages if m.role != 'user' %}{{ loop.revindex }}{{ m['content'] | trim }}"
    "{% else %}-{% endfor %}",
    "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.length }}"
    "{{ loop.first }}{% endfor %}",
    "{% for a, b in messages[0].items() %}{{ a }}={{ b }}{% endfor %}"
    "{% for a, b in {'x': 1} | items %}{{ a }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }},{% endfor %}",
    "{% for x in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ x.role }}{% endfor %}",
    "{{ 'a' ~ 1 ~ [1, 'b'] ~ none }} {{ [1, 'b'] }} {{ {'a': 1} }} {{ (1, 2) }} {{ (1,) * 3 }} "
    "{{ 'ab' * 2 }}",
    "{{ 7 // 2 }} {{ 7 % 2 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ -3 }} {{ 2 - 3 }} {{ [1] + [2] }} {{ 'a' + 'b' }}",
    "{{ '%s-%03d' % ('a', 3) }} {{ '%s' | format('x') }} {{ '{}-{:>5}'.format(1700000000, 'x') }} "
    "{{ '{a!r}'.format(a='b') }}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | tojson }} "
    "{{ {'é': '<'} | tojson(indent=2) }}",
    "{{ messages[1].content.split(' ') | join('+') }} {{ 'x'.upper() }} {{ 'abc'[::-1] }} "
    "{{ 'a.b'.rsplit('.', 1) }}",
    "{{ messages | length }} {{ messages[::-1] | first }} {{ messages | last }} "
    "{{ 'b,a' | replace(',', ';') }}",
    "{{ 'x' | center(9) }}|{{ 'a\nb' | indent(2) }}|{{ 'word word' | wordwrap(4) }}|"
    "{{ '<b>' | e }}|{{ 'x' | upper }}",
    "{{ 3.14159 | round(2) }} {{ [3, 1, 2] | sort }} {{ [1, 2] | sum }} "
    "{{ {'b': 1, 'a': 2} | dictsort }} {{ 'x' | default('y') }}",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ ns.found }}",
    "{% macro tag(name, x='d') %}<{{ name }}>{{ caller() if caller else x }}{% endmacro %}"
    "{{ tag('a') }}{% call tag('b') %}c{% endcall %}",
    "{% set x %}{{ bos_token }}block{% endset %}{{ x }}{{ x is string }}{{ missing }}"
    "{{ missing | default('d') }}{% for y in missing %}{% endfor %}",
    "{% set a, b = 1, 'two' %}{{ a }}{{ b }}{{ cycler('x', 'y').next() }}{{ joiner(',')() }}"
    "{{ dict(a=1) }}{{ range(3) | list }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ [1, 2, 3] | batch(2) | list }}"
    "{{ [1, 2, 3] | slice(2) | list }}",
    "{{ messages | groupby('role') | map('first') | list }}{{ ['b', 'a'] | min }}{{ ' x ' | trim }}"
    "{{ 'xxaxx'.strip('x') }}",
    "{{ ['a', 'b'] | map('upper') | list }}{{ 'x' in ['x'] }}{{ 'ell' in 'hello' }}"
    "{{ 1 if true else 2 }}{{ 'a b' | title }}",
]  # fmt: skip


@pytest.mark.parametrize("template", GOOD)
def test_the_same_text_as_in_jinja2s_own_sandbox(template: str) -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    plain.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    expected = plain.from_string(template).render(messages=TALK, bos_token="<s>")
    if "tojson" in template:  # without the escapes for HTML
        for escape, character in (("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&"), ("\\u0027", "'")):
            expected = expected.replace(escape, character)
    assert render(template, TALK, {"bos_token": "<s>"}) == expected


def test_control_jinja2s_own_sandbox_has_no_such_limits() -> None:
    plain = ImmutableSandboxedEnvironment()
    assert len(plain.from_string("{{ '%3000000d' % 1 }}").render()) == 3_000_000
    assert len(plain.from_string(GROW.replace("60", "20") % ("'a'", "ns.v ~ ns.v")).render()) == 1 << 20


# ---- tojson, and the sandbox of the oldest jinja2 that is allowed ----------------------------------


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("tojson", '"é"'),
        ("tojson(ensure_ascii=False)", '"é"'),
        ("tojson(true)", '"\\u00e9"'),
        ("tojson(false, 2)", '"é"'),
        ("tojson(indent=2)", '"é"'),
        ("tojson(separators=(',', ':'), sort_keys=true)", '"é"'),
    ],
)
def test_tojson_has_transformers_signature(call: str, expected: str) -> None:
    assert (
        render("{{ messages[0].content | " + call + " }}", [{"role": "user", "content": "é"}], {}) == expected
    )


@pytest.mark.parametrize("option", ["default", "cls", "skipkeys", "check_circular", "allow_nan"])
def test_no_other_option_reaches_json(option: str) -> None:
    """`default` is called by the encoder, outside the sandbox."""
    with pytest.raises(UsageError, match=option):
        render("{{ messages | tojson(" + option + "='{0.x}'.format) }}", TALK, {})


ESCAPES = [
    "{{ namespace(a=1) | tojson(default='{0.__init__.__globals__}'.format) }}",
    "{{ ('{0.__init__.__globals__}' | attr('format'))(cycler) }}",
    "{{ '{0.__init__.__globals__}'['format'](cycler) }}",
    "{% set f = '{0.__init__.__globals__}'.format %}{{ f(cycler) }}",
    "{{ (['{0.__init__.__globals__}'] | map('attr', 'format') | first)(cycler) }}",
    "{{ [cycler] | map('format', '%s') | list }}{{ ('%(a)s' | attr('format_map'))({'a': 1}) }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ESCAPES)
def test_known_escapes(template: str) -> None:
    with pytest.raises(UsageError, match="chat template"):
        render(template, TALK, {})


IN_ANOTHER_JINJA2 = """
import sys, jinja2
from minillm.errors import UsageError
from minillm.text.chat_template import render
from jinja2.sandbox import ImmutableSandboxedEnvironment
*escapes, good = sys.argv[1:]
print(jinja2.__file__)
print(render(good, [{"role": "user", "content": "hi"}], {}))
for escape in escapes:
    try:
        print("rendered", render(escape, [{"role": "user", "content": "hi"}], {}))
    except UsageError as error:
        print("refused")
    try:
        print("rendered" if ImmutableSandboxedEnvironment().from_string(escape).render() else "empty")
    except Exception:
        print("refused")
"""


def installed(folder: Path, version: str) -> Path:
    """That jinja2 and nothing else in a folder; skips where it cannot be had."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, f"jinja2=={version}"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"jinja2 {version} cannot be had here")
    return folder


def said_under(folder: Path) -> list[str]:
    paths = os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[2])])
    arguments = [*ESCAPES, "{{ messages[0].content | upper }}"]
    command = [sys.executable, "-c", IN_ANOTHER_JINJA2, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    path, good, *said = done.stdout.splitlines()
    assert path.startswith(str(folder)) and good == "HI"
    return said


def test_the_floor_in_the_metadata_is_the_one_that_is_tested() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"jinja2>=3.1.6"' in text
    assert tuple(map(int, importlib.metadata.version("jinja2").split(".")[:3])) >= (3, 1, 6)


@pytest.mark.slow
def test_the_oldest_jinja2_that_is_allowed(tmp_path: Path) -> None:
    said = said_under(installed(tmp_path, "3.1.6"))
    assert said == ["refused"] * len(said) and len(said) == 2 * len(ESCAPES)


@pytest.mark.slow
def test_control_an_older_one_lets_templates_out(tmp_path: Path) -> None:
    said: list[Any] = said_under(installed(tmp_path, "3.1.5"))
    assert "rendered" in said[1::2], "jinja2's own sandbox, which the floor keeps away"


def test_a_syntax_error_is_called_one() -> None:
    with pytest.raises(UsageError, match="not valid in line 2") as caught:
        render("x\n{% for %}", TALK, {})
    assert "roles" not in caught.value.hint
    with pytest.raises(jinja2.TemplateSyntaxError):
        jinja2.Environment().from_string("x\n{% for %}")
