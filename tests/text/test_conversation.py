"""Which messages of a long conversation stay: whole turns go, in large steps; the system message stays."""

from itertools import pairwise

import pytest

from minillm.text.conversation import kept_messages

ROLES = ("user", "assistant")


def conversation(num_turns, system=False, tokens=10):
    """`num_turns` questions, all but the last with an answer; every message has `tokens` tokens."""
    turns = [{"role": ROLES[i % 2], "content": "x" * tokens} for i in range(2 * num_turns - 1)]
    return [*([{"role": "system", "content": "x" * tokens}] if system else []), *turns]


def kept(messages, limit):
    return kept_messages(messages, lambda kept: sum(len(messages[i]["content"]) for i in kept), limit)


def test_a_conversation_that_fits_stays_whole():
    messages = conversation(5)
    assert kept(messages, 90) == list(range(9))
    assert kept(messages, 89) != list(range(9))


def test_turns_go_until_half_the_limit_is_left():
    messages = conversation(6, system=True)  # 12 messages, 120 tokens
    assert kept(messages, 119) == [0, 9, 10, 11]  # with one turn more it would be 60, above 59
    assert messages[9]["role"] == "user"


@pytest.mark.parametrize("limit", [100, 130, 200])
def test_the_beginning_stays_the_same_for_many_turns(limit):
    starts = []
    for num_turns in range(1, 60):
        messages = conversation(num_turns)
        stay = kept(messages, limit)
        assert sum(10 for _ in stay) <= limit and stay[-1] == len(messages) - 1
        assert stay == list(range(stay[0], len(messages)))
        starts.append(stay[0])
    changes = sum(a != b for a, b in pairwise(starts))
    # Each change drops half of the limit: between two changes there are limit / 2 tokens of new turns.
    assert 0 < changes <= 59 * 20 / (limit / 2) + 1


def test_a_last_message_that_is_too_long_stays_alone():
    messages = [*conversation(3)[:-1], {"role": "user", "content": "x" * 500}]
    assert kept(messages, 100) == [4]


def test_answers_go_with_their_question_and_system_messages_stay():
    messages = [
        {"role": "system", "content": "x" * 10},
        {"role": "user", "content": "x" * 40},
        {"role": "assistant", "content": "x" * 40},
        {"role": "tool", "content": "x" * 5},
        {"role": "user", "content": "x" * 20},
    ]
    assert kept(messages, 114) == [0, 4]
