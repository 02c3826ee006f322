"""One worked example of each format of preferences, and what every one of them refuses."""

import pytest

from picollm_lite.formats import preference

WHERE = "prefs.jsonl:3"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(**row):
    return preference(row, WHERE)


def columns(row):
    return [row["prompt"], row["chosen"], row["rejected"]]


def transcripts(chosen, rejected="\n\nHuman: Hi\n\nAssistant: Bye.", **rest):
    return columns(read(chosen=chosen, rejected=rejected, **rest))


def refused(row, error):
    with pytest.raises(ValueError) as raised:
        preference(row, WHERE)
    assert str(raised.value) == f"{WHERE}{error}"


ANSWERS = [[user("Hi")], [assistant("Hello.")], [assistant("Bye.")]]


# HH-RLHF


def test_transcripts_share_their_first_turns():
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why is the sky blue?\n\nAssistant: "
    row = read(chosen=start + "Light\nscatters.\n\nBlue most.", rejected=start + "It is not.", source="helpful")
    assert row == {
        "prompt": [user("Hi"), assistant("Hello."), user("Why is the sky blue?")],
        "chosen": [assistant("Light\nscatters.\n\nBlue most.")],
        "rejected": [assistant("It is not.")],
        "source": "helpful",
    }


def test_transcripts_part_between_turns_only():
    """ "Why" begins both second questions, but the prompt is made of whole turns."""
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why"
    assert transcripts(f"{start} me?\n\nAssistant: A.", f"{start} not?\n\nAssistant: B.") == [
        [user("Hi"), assistant("Hello.")],
        [user("Why me?"), assistant("A.")],
        [user("Why not?"), assistant("B.")],
    ]


def test_a_last_turn_is_an_answer_even_where_both_give_it():
    longer = "\n\nHuman: Hi\n\nAssistant: Bye.\n\nHuman: So soon?\n\nAssistant: Yes."
    assert transcripts(longer) == [
        [user("Hi")],
        [assistant("Bye."), user("So soon?"), assistant("Yes.")],
        [assistant("Bye.")],
    ]


@pytest.mark.parametrize(
    "chosen",
    [
        "Human: Hi\n\nAssistant: Hello.",
        "\r\n\r\nHuman: Hi\r\n\r\nAssistant: Hello.\r\n",
        "\n\nHuman:Hi  \n \t\n\nAssistant:  Hello.\n\n",
    ],
    ids=["no blank line at the start", "CRLF", "more white space"],
)
def test_white_space_around_turns_does_not_matter(chosen):
    assert transcripts(chosen) == ANSWERS


@pytest.mark.parametrize(
    "text",
    [
        "Say Human: or Assistant: first.",
        "A form:\nHuman: yes\nAssistant: no",
        "Superhuman:\n\nHumans: many.\n\nNote: few.\n\nA Human: one.",
        "ça va ? 数据 🙂",
    ],
    ids=["in a line", "without a blank line", "other words", "non-ASCII"],
)
def test_text_that_looks_like_a_marker_stays_text(text):
    assert transcripts(f"\n\nHuman: Hi\n\nAssistant: {text}") == [[user("Hi")], [assistant(text)], [assistant("Bye.")]]


def test_crlf_within_a_turn_becomes_a_newline():
    assert transcripts("\r\n\r\nHuman: Hi\r\n\r\nAssistant: a\r\nb")[1] == [assistant("a\nb")]


@pytest.mark.parametrize("prompt", ["\n\nHuman: Hi\n\nAssistant:", "Human: Hi\n\nAssistant: "])
def test_a_transcript_may_stand_apart_as_prompt(prompt):
    assert transcripts(" Hello.", " Bye.", prompt=prompt) == ANSWERS


@pytest.mark.parametrize("prompt", ["Hi", " Hi\n", None])
def test_whole_transcripts_may_have_their_question_beside_them(prompt):
    assert transcripts("\n\nHuman: Hi\n\nAssistant: Hello.", prompt=prompt) == ANSWERS


GOOD = "\n\nHuman: Hi\n\nAssistant: Bye."
ODD = ": a turn opens with 'Human:' or 'Assistant:' after a blank line, got '{}:': rename it or, where it is text, "
PLAIN = (
    ": expected an HH-RLHF transcript, which begins with 'Human:', got {}: "
    "where these are plain answers, add their question as `prompt`"
)


@pytest.mark.parametrize("name", ["User", "System", "Bot", "GPT", "AI", "human", "HUMAN", "assistant"])
@pytest.mark.parametrize("text", ["\n\n{}: Hi\n\nAssistant: Hello.", "\n\nHuman: Hi\n\nAssistant: Hello.\n\n{}: So?"])
def test_an_odd_speaker_is_named(text, name):
    refused({"chosen": GOOD, "rejected": text.format(name)}, f", rejected{ODD.format(name)}take out the blank line")


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (
            {"chosen": "\n\nHuman: Hi", "rejected": GOOD},
            ": `chosen` must end with the assistant's answer to the prompt",
        ),
        (
            {"chosen": GOOD, "rejected": f"{GOOD}\n\nHuman: So?"},
            ": `rejected` must end with the assistant's answer to the prompt",
        ),
        (
            {"chosen": GOOD, "rejected": "\n\nHuman: Hi\n\nAssistant: \n"},
            ", rejected: message 2 (assistant) is empty: give it text or take it out",
        ),
        (
            {"chosen": "\n\nHuman:\n\nAssistant: Hello.", "rejected": "\n\nHuman:\n\nAssistant: Bye."},
            ", chosen: message 1 (user) is empty: give it text or take it out",
        ),
        (
            {"chosen": GOOD, "rejected": "\n\nHuman: Ho\n\nAssistant: Bye."},
            ": no prompt: give one, or begin `chosen` and `rejected` with the same message",
        ),
        ({"chosen": "It is blue.", "rejected": "No."}, f", chosen{PLAIN.format(repr('It is blue.'))}"),
        ({"chosen": GOOD, "rejected": "x" * 50}, f", rejected{PLAIN.format(repr('x' * 40 + '...'))}"),
        ({"chosen": GOOD, "rejected": f"So. {GOOD}"}, f", rejected{PLAIN.format(repr(f'So. {GOOD}'))}"),
        ({"chosen": GOOD, "rejected": ""}, f", rejected{PLAIN.format(repr(''))}"),
        ({"chosen": GOOD, "rejected": "Bye.", "prompt": "Hi"}, f", rejected{PLAIN.format(repr('Bye.'))}"),
        (
            {"chosen": GOOD, "rejected": GOOD, "prompt": "Ho"},
            ": `prompt` and the user's first message, which both sides share, must be the same text, got 'Ho' and 'Hi'",
        ),
        (
            {"chosen": GOOD, "rejected": GOOD, "prompt": "\n\nHuman: Hi\n\nAssistant:"},
            ": `prompt` and the user's first message, which both sides share, must be the same text, "
            r"got '\n\nHuman: Hi\n\nAssistant:' and 'Hi'",
        ),
    ],
)
def test_transcripts_that_cannot_be_read(row, error):
    refused(row, error)


# UltraFeedback


def test_ultrafeedback_has_the_prompt_in_both_sides_and_as_a_text():
    rest = {"prompt_id": "f3", "messages": [user("Hi"), assistant("Hello.")], "score_chosen": 8.5, "score_rejected": 2}
    row = read(prompt="Hi", chosen=[user("Hi"), assistant("Hello.")], rejected=[user("Hi"), assistant("Bye.")], **rest)
    assert row == {**dict(zip(("prompt", "chosen", "rejected"), ANSWERS, strict=True)), **rest}


def test_a_text_as_prompt_is_the_first_question_of_a_longer_conversation():
    talk = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello."), user("Why?")]
    row = read(prompt="Hi", chosen=[*talk, assistant("So.")], rejected=[*talk, assistant("No.")])
    assert columns(row) == [talk, [assistant("So.")], [assistant("No.")]]


AGREE = ": `prompt` and the user's first message, which both sides share, must be the same text, got "
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("prompt", "head", "error"),
    [
        ("Ho", [user("Hi")], f"{AGREE}'Ho' and 'Hi'"),
        ("", [user("Hi")], f"{AGREE}'' and 'Hi'"),
        ("Hi", [SYSTEM], f"{AGREE}'Hi' and ''"),
        ("Hi", [], ": no prompt: give one, or begin `chosen` and `rejected` with the same message"),
    ],
)
def test_a_text_as_prompt_must_agree_with_the_messages(prompt, head, error):
    refused({"prompt": prompt, "chosen": [*head, assistant("A")], "rejected": [*head, assistant("B")]}, error)


# TRL


def test_three_texts_are_kept_to_the_letter():
    assert columns(read(prompt="Hi ", chosen=" Hello.\r\n", rejected="Bye.", id=7)) == [
        [user("Hi ")],
        [assistant(" Hello.\r\n")],
        [assistant("Bye.")],
    ]
    same = read(prompt="Hi", chosen="Hello.", rejected="Hello.")  # of use to nobody, but no error of the format
    assert columns(same) == [[user("Hi")], [assistant("Hello.")], [assistant("Hello.")]]


@pytest.mark.parametrize("prompt", [[user("Hi")], [SYSTEM, user("Hi"), assistant("Hello."), user("Why?")]])
def test_conversations_may_have_their_prompt_apart_or_inside(prompt):
    expected = [prompt, [assistant("A")], [assistant("B")]]
    assert columns(read(prompt=prompt, chosen=[assistant("A")], rejected=[assistant("B")])) == expected
    inside = {"chosen": [*prompt, assistant("A")], "rejected": [*prompt, assistant("B")]}
    assert columns(read(**inside)) == columns(read(prompt=None, **inside)) == expected


def test_a_prompt_that_stands_apart_stays_as_it_is():
    """Although the sides go on alike."""
    sides = [[assistant("Hm."), user("So?"), assistant(text)] for text in ("A", "B")]
    assert columns(read(prompt=[user("Hi")], chosen=sides[0], rejected=sides[1])) == [[user("Hi")], *sides]


def test_the_row_that_was_given_is_not_written_into():
    row = {"chosen": [user("Hi"), assistant("A")], "rejected": [user("Hi"), assistant("B")]}
    preference(row, WHERE)
    assert row == {"chosen": [user("Hi"), assistant("A")], "rejected": [user("Hi"), assistant("B")]}


# What is refused in every format

MIX = ": expected texts or lists of messages, all alike, got {} as `prompt`, {} as `chosen` and {} as `rejected`"
ONE = "a single message (put it in a list)"
DEMOS = ": demonstrations are read with load_demos"


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ([user("Hi"), assistant("Hello.")], f": expected an object with `chosen` and `rejected`, got a list{DEMOS}"),
        ({"messages": [user("Hi"), assistant("Hello.")]}, f": a preference needs `chosen` and `rejected`{DEMOS}"),
        (3, ": expected an object with `chosen` and `rejected`, got int"),
        (None, ": expected an object with `chosen` and `rejected`, got nothing"),
        ("Hi", ": expected an object with `chosen` and `rejected`, got a text"),
        ({}, ": a preference needs `chosen` and `rejected`"),
        ({"prompt": "Hi", "chosen": "Hello."}, ": a preference needs `rejected`"),
        ({"prompt": "Hi", "chosen": None, "rejected": "Bye."}, ": a preference needs `chosen`"),
        ({"messages": [user("Hi")], "chosen": [assistant("Hello.")]}, ": a preference needs `rejected`"),
        ({"prompt": "Hi", "chosen": assistant("A"), "rejected": assistant("B")}, MIX.format("a text", ONE, ONE)),
        ({"prompt": "Hi", "chosen": "A", "rejected": [assistant("B")]}, MIX.format("a text", "a text", "a list")),
        ({"prompt": [user("Hi")], "chosen": "A", "rejected": "B"}, MIX.format("a list", "a text", "a text")),
        ({"prompt": 3, "chosen": "A", "rejected": "B"}, MIX.format("int", "a text", "a text")),
        ({"prompt": user("Hi"), "chosen": [], "rejected": []}, MIX.format(ONE, "a list", "a list")),
        ({"chosen": 1.5, "rejected": True}, MIX.format("nothing", "float", "bool")),
        (
            {"prompt": " ", "chosen": "A", "rejected": "B"},
            ", chosen: message 1 (user) is empty: give it text or take it out",
        ),
        (
            {"prompt": "Hi", "chosen": "A", "rejected": "\n"},
            ", rejected: message 2 (assistant) is empty: give it text or take it out",
        ),
        (
            {"prompt": [{"role": "human", "content": "Hi"}], "chosen": [assistant("A")], "rejected": [assistant("B")]},
            ", chosen: message 1 has the unknown role 'human': use system, user, assistant",
        ),
        (
            {"prompt": [user("Hi")], "chosen": [assistant("A")], "rejected": [{"role": "gpt", "content": "B"}]},
            ", rejected: message 2 has the unknown role 'gpt': use system, user, assistant",
        ),
        (
            {"chosen": [{"from": "human", "value": "Hi"}], "rejected": [{"from": "human", "value": "Hi"}]},
            ", chosen: message 1 must be an object with `role` and `content`",
        ),
    ],
)
def test_what_no_format_has_is_refused(row, error):
    refused(row, error)
