"""References of several turns: what the assistant wrote is trained on, what tools and users said is masked."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import tokenizers_of

from npd_ascend.data.conversation import split
from npd_ascend.data.template import Template, Trajectory
from npd_ascend.data.tokenizer import eos_token_ids, load_tokenizer
from npd_ascend.errors import UserError

ASK = [{"role": "user", "content": "weather in Oslo?"}]
TURNS = [
    {"role": "assistant", "content": "I look it up."},
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": "7 degrees"},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "Yes."},
]
WRITTEN = ["I look it up.", "It rains.", "Yes."]
# Qwen3's habit: a turn of reasoning is put before the last answer only.
THINKING = tokenizers_of.CHATML.replace(
    "{{ m['content'] }}",
    ("{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"),
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)


def chatml(folder, template=tokenizers_of.CHATML):
    return tokenizers_of.chatml(folder, template=template)


MODELS = {
    "chatml": (chatml, "<|im_end|>", ""),
    "thinking": (lambda f: chatml(f, THINKING), "<|im_end|>", "<think>\n\n</think>\n\n"),
    "headers": (lambda f: tokenizers_of.llama(f, tokenizers_of.HEADERS), "<|eot|>", ""),
    "pangu": (tokenizers_of.pangu, "[unused10]", ""),
}


def load(folder) -> Template:
    tokenizer = load_tokenizer(folder)
    return Template(tokenizer, "chat", eos_token_ids(folder, tokenizer))


def read(template, messages=ASK, turns=TURNS, tools=None):
    """(ids, spans) of one trajectory."""
    heads = template.render([messages], [tools])
    return template.trajectories([Trajectory(messages, turns, tools, heads[0], template.prompts(heads)[0])])[0]


def pieces(template, ids, spans):
    """(text, masked) of each run of tokens."""
    edges = [0, *spans, len(ids)]
    runs = [
        (template.tokenizer.decode(ids[a:b]), i % 2 == 1)
        for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False))
    ]
    return [run for run in runs if run[0]]


@pytest.mark.parametrize("name", MODELS)
def test_the_assistants_tokens_and_no_others(name, tmp_path):
    make, end, before_last = MODELS[name]
    template = load(make(tmp_path / "model"))
    ids, spans = read(template)
    runs = pieces(template, ids, spans)
    assert [text for text, masked in runs if not masked] == [
        WRITTEN[0] + end,
        WRITTEN[1] + end,
        before_last + WRITTEN[2] + end,
    ]
    hidden = [text for text, masked in runs if masked]
    assert "rain" in hidden[0] and "7 degrees" in hidden[0] and "sure?" in hidden[1]
    header = template.tokenizer.decode(template.header_ids).removeprefix("<s>")
    assert all(text.endswith(header) for text in hidden)  # the header is given to the model
    whole = template.render([ASK + TURNS[:5]])[0].removeprefix(template.render([ASK])[0])
    assert "".join(text for text, _ in runs) == whole + before_last + WRITTEN[2] + end


def test_tokenizer_that_treats_the_start_of_a_text_apart(metaspace, tmp_path):
    """SentencePiece: tokens of a turn are those that follow what stands before it."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((metaspace / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": MARKED}))
    (folder / "tokenizer.json").write_bytes((metaspace / "tokenizer.json").read_bytes())
    template = load(folder)
    turns = [
        {"role": "assistant", "content": "The way"},
        {"role": "tool", "content": "is long"},
        {"role": "assistant", "content": "from here"},
    ]
    ids, spans = read(template, [{"role": "user", "content": "How many"}], turns)
    prompt = template.prompts(template.render([[{"role": "user", "content": "How many"}]]))[0]
    assert prompt + ids == template.prompts(["[INST]How many[/INST]The way</s>[INST]is long[/INST]from here</s>"])[0]
    shown = [
        template.tokenizer.convert_ids_to_tokens(ids[a:b])
        for a, b in zip([0, *spans[1::2]], [*spans[::2], len(ids)], strict=True)
    ]
    assert ["".join(t).replace("▁", " ").strip() for t in shown] == ["The way</s>", "from here</s>"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text("ab <\n", min_size=1, max_size=9).filter(str.strip),
            st.text("xy >\n", min_size=1, max_size=9).filter(str.strip),
        ),
        min_size=1,
        max_size=5,
    ),
    st.text("ab \n", min_size=1, max_size=9).filter(str.strip),
)
def test_any_trajectory_is_cut_where_its_turns_begin_and_end(session_template, rounds, last):
    turns = [
        m
        for answer, result in rounds
        for m in ({"role": "assistant", "content": answer}, {"role": "tool", "content": result})
    ]
    ids, spans = read(session_template, ASK, [*turns, {"role": "assistant", "content": last}])
    written = [text for text, masked in pieces(session_template, ids, spans) if not masked]
    assert written == [f"{text}<|im_end|>" for text in (*(answer for answer, _ in rounds), last)]


@pytest.fixture(scope="module")
def session_template(tmp_path_factory):
    return load(chatml(tmp_path_factory.mktemp("model") / "chatml"))


def test_one_turn_that_calls_a_tool_has_nothing_masked(tmp_path):
    shown = "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    template = load(chatml(tmp_path / "model", tokenizers_of.CHATML.replace("{{ m['content'] }}", shown)))
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    ids, spans = read(template, turns=[{"role": "assistant", "content": "", "tool_calls": calls}])
    assert spans == [] and template.tokenizer.decode(ids) == (
        '{"name": "weather", "arguments": {"city": "Oslo"}}<|im_end|>'
    )


CALLS = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
NO_TOOLS = tokenizers_of.CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
REWRITTEN = "{% if messages | length > 3 %}other{% endif %}" + tokenizers_of.CHATML
ENDLESS = tokenizers_of.CHATML.replace("<|im_end|>", "{% if loop.last %}<|im_end|>{% else %}|{% endif %}")
REFUSED = {
    "calls left out": (tokenizers_of.CHATML, CALLS, "leaves out the tool calls in message 2"),
    "tools left out": (NO_TOOLS, TURNS, "leaves out the turn of role 'tool' in message 3"),
    "another text once others follow": (REWRITTEN, TURNS, "renders what comes before message"),
    "no end before others": (ENDLESS, TURNS, "renders what comes before message|ends the assistant's turns in no"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_template_that_does_not_serve_is_refused(case, tmp_path):
    text, turns, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as e:
        read(load(chatml(tmp_path / "model", text)), turns=turns)
    assert "data.reference_turns: last" in str(e.value)


def test_long_trajectories_are_read_and_endless_ones_refused(session_template):
    def turns(n):
        return [
            m
            for i in range(n)
            for m in ({"role": "assistant", "content": f"a{i}"}, {"role": "tool", "content": f"t{i}"})
        ][:-1]

    ids, spans = read(session_template, turns=turns(100))
    assert len(spans) == 198 and [text for text, masked in pieces(session_template, ids, spans) if not masked] == [
        f"a{i}<|im_end|>" for i in range(100)
    ]
    with pytest.raises(UserError, match="has 501 turns of the assistant, at most 500 are read"):
        read(session_template, turns=turns(501))


def test_refusal_names_the_row(lines, prepare, tmp_path):
    chat = {"messages": [*ASK, *TURNS]}
    fine, bad = {"prompt": "a", "response": "b"}, {"messages": [*ASK, *CALLS]}
    with_model = {"tokenizer": chatml(tmp_path / "model"), "need_reference": True}
    made = prepare(lines(fine, chat), **with_model).read_all()
    assert made["reference_masked"].null_count == 1
    with pytest.raises(UserError, match=r"prompts.jsonl, line 2: the chat template leaves out the tool calls"):
        prepare(lines(fine, bad), out="bad", **with_model)


def test_which_turns_are_the_reference():
    chat = [*ASK, *TURNS]
    assert split(chat, "auto") == split(chat, "all") == (ASK, TURNS)
    assert split(chat, "last") == (chat[:-1], chat[-1:])
    plain = [*ASK, TURNS[3], TURNS[4], TURNS[5]]
    assert split(plain, "auto") == (plain[:-1], plain[-1:]) and split(plain, "all") == (ASK, plain[1:])
    assert split(chat[:-1], "auto") == (ASK, TURNS[:4])  # what follows the last answer is not asked for
    assert split(plain[:-1], "auto") == (plain[:-1], [])


def test_rollouts_of_references_carry_the_spans(lines, prepare, tmp_path):
    from npd_ascend.config.schema import RolloutConfig
    from npd_ascend.rollout.job import RolloutJob
    from npd_ascend.rollout.stage import run
    from npd_ascend.store.dataset import Dataset

    prompts = prepare(
        lines({"messages": [*ASK, *TURNS]}, {"prompt": "a", "response": "b"}),
        need_reference=True,
        tokenizer=chatml(tmp_path / "model"),
        shard_size=1,
    )
    run(
        RolloutJob(
            out=tmp_path / "rollouts",
            fingerprint="r",
            prompts=prompts.folder,
            model=tmp_path,
            generation=0,
            seed=0,
            settings=RolloutConfig(source="reference"),
            max_model_len=512,
            eos_token_ids=[2],
            vocabulary=512,
        )
    )
    rollouts = Dataset.open(tmp_path / "rollouts", "rollouts")
    assert rollouts.read_all(["masked"])["masked"].to_pylist() == [prompts.read(0)["reference_masked"][0].as_py(), None]
    assert "masked" not in rollouts.read(1).column_names
