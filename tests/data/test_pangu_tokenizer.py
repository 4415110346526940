"""openPangu-Embedded's tokenizer from released-layout files, against SentencePiece itself and a naive reference."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import sentencepiece as spm
from zoo.tokenizers_of import PANGU_CORPUS, pangu_released
from zoo.tokenizers_of import PANGU_MARKS as MARKS
from zoo.tokenizers_of import PANGU_RELEASED as TEMPLATE

from npd_ascend.data.compat import check_pair
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import encode, eos_token_ids, load_tokenizer, tokenizer_size
from npd_ascend.errors import UserError

TEXTS = [
    "", " ", "Hi", " Hi  there ", "\n\tdef f(x):\n    return x", "你好，世界。", "混合 mixed 文本 text", "𠮷野家 😀 ½",
    "[unused9]用户：48 + 24[unused10][unused9]助手：", "[unused1][unused10]0]", "[unused1", "[unused100]",
    "a [unused16] b [unused17] c",
    "<s></s><unk>", "<s> x", "x</s>y", "▁▁", "\u3000全角　空格", "[[unused9]]", "aa[unused33]", "\x00\x07", "ﬁ Ａ é é",
]  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "prefix"])
def released(request, tmp_path_factory):
    """A folder as it is released, with a Python file that must not run."""
    folder = pangu_released(tmp_path_factory.mktemp("pangu") / "m", request.param)
    return folder, spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


class Naive:
    """What the released class does, spelt out: the longest added token at each place, SentencePiece in between."""

    def __init__(self, sp):
        self.sp, self.marks = sp, sorted(["<unk>", "<s>", "</s>", *MARKS], key=len, reverse=True)

    def ids(self, text):
        out, run = [], ""
        while text:
            mark = next((m for m in self.marks if text.startswith(m)), None)
            if mark is None:
                run, text = run + text[0], text[1:]
            else:
                out += self._run(run) + [self.sp.piece_to_id(mark)]
                run, text = "", text[len(mark) :]
        return out + self._run(run)

    def _run(self, text):
        return [self.sp.piece_to_id(p) for p in self.sp.encode(text, out_type=str)] if text else []

    def text(self, ids, skip=()):
        out, run = "", []
        for token in map(self.sp.id_to_piece, ids):
            if token in self.marks:
                out, run = out + (self.sp.decode(run) if run else "") + ("" if token in skip else token), []
            else:
                run.append(token)
        return out + (self.sp.decode(run) if run else "")


def test_ids_and_texts_are_those_of_the_released_class(released):
    folder, sp = released
    ours, naive = load_tokenizer(folder), Naive(sp)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, sp.piece_to_id("[unused10]"), 0)
    assert tokenizer_size(ours) == sp.get_piece_size() == len(ours)
    for text in TEXTS:
        want = naive.ids(text)
        assert ours(text, add_special_tokens=False)["input_ids"] == want, text
        assert ours(text)["input_ids"] == [1, *want] == ours.encode(text)
        assert ours.decode(want) == naive.text(want), text
        skipped = ours.decode([1, *want], skip_special_tokens=True)
        assert skipped == naive.text(want, {"<s>", "<unk>", "[unused10]"}), text
    assert encode(ours, TEXTS) == [naive.ids(t) for t in TEXTS]
    assert encode(ours, TEXTS, special=True) == [[1, *naive.ids(t)] for t in TEXTS]
    assert encode(ours, []) == []


def test_plain_text_is_what_sentencepiece_makes_of_it(released):
    folder, sp = released
    ours = load_tokenizer(folder)
    for text in (t for t in TEXTS if "unused" not in t and "<" not in t):
        assert encode(ours, [text])[0] == sp.encode(text)
    for text in ("Hi there", "你好，世界。", "𠮷野家 😀", "def f(x):\n    return x"):
        assert ours.decode(encode(ours, [text])[0]) == text
    assert any(sp.is_byte(i) for i in encode(ours, ["𠮷"])[0])


def test_prompts_begin_with_bos_once_and_turns_are_as_released(released):
    folder, sp = released
    tokenizer, naive = load_tokenizer(folder), Naive(sp)
    template = Template(tokenizer, "auto", eos_token_ids(folder, tokenizer))
    assert template.chat
    asked = [{"role": "user", "content": "48 + 24? /no_think"}]
    (head,) = template.render([asked])
    assert head == "[unused9]系统：[unused10][unused9]用户：48 + 24? /no_think[unused10][unused9]助手："
    assert template.prompts([head]) == [[1, *naive.ids(head)]]
    assert template.prompts(["<s>" + head]) == template.prompts([head])
    assert template.header_ids == [1, *naive.ids("[unused9]助手：")]
    assert template.end_ids == [sp.piece_to_id("[unused10]")]
    (answer,) = template.answers([asked], [head], template.prompts([head]), ["[unused16]sum[unused17]72"])
    whole = naive.ids(head + "[unused16]sum[unused17]72[unused10]")
    assert template.prompts([head])[0] + answer == [1, *whole]


def test_remote_code_stays_unread_even_when_it_is_trusted(released):
    assert type(load_tokenizer(released[0], trust_remote_code=True)).__module__ == "npd_ascend.data.pangu_tokenizer"


def test_template_file_and_missing_template(released, tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(released[0] / name, tmp_path / name)
    path = tmp_path / "tokenizer_config.json"
    tree = json.loads(path.read_text())
    del tree["chat_template"]
    path.write_text(json.dumps(tree))
    asked = [{"role": "user", "content": "x"}]
    put_in = Template(load_tokenizer(tmp_path), "auto", [1])
    assert put_in.prompts(put_in.render([asked]))[0][:1] == [1] and put_in.prompts(put_in.render([asked]))[0][1] != 1
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert load_tokenizer(tmp_path).chat_template == TEMPLATE
    of_file = Template(load_tokenizer(tmp_path), "auto", [1])
    assert of_file.prompts(of_file.render([asked])) == put_in.prompts(put_in.render([asked]))


@pytest.mark.parametrize(
    "content,why",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (None, "tokenizer.model is missing"),
    ],
)
def test_unusable_model_files(released, tmp_path, content, why):
    shutil.copy(released[0] / "tokenizer_config.json", tmp_path)
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=why):
        load_tokenizer(tmp_path)


def tokenizer_end(folder):
    return load_tokenizer(folder).convert_tokens_to_ids("[unused10]")


def test_pairs(released, tmp_path):
    for name in ("teacher", "student"):
        shutil.copytree(released[0], tmp_path / name)
        (tmp_path / name / "config.json").write_text(
            json.dumps(
                {
                    "model_type": "PanguEmbedded",
                    "architectures": ["PanguEmbeddedForCausalLM"],
                    "vocab_size": 544,
                    "hidden_size": 8,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "rms_norm_eps": 1e-5,
                    "max_position_embeddings": 64,
                    "rope_theta": 16e6,
                    "bias": True,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                    "pad_token_id": 0,
                    "hidden_act": "silu",
                    "auto_map": {"AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig"},
                }
            )
        )
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    check_pair(teacher, student)
    path = teacher / "tokenizer_config.json"
    whole = path.read_text()
    tree = json.loads(whole)
    path.write_text(json.dumps({**tree, "chat_template": TEMPLATE.replace("用户", "人类")}))
    check_pair(teacher, student)  # by its config.json the student ends in </s>: a base model, which takes the teacher's
    for folder in (teacher, student):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer_end(folder)}))
    with pytest.raises(UserError, match="different chat templates.*set data.chat_template"):
        check_pair(teacher, student)
    path.write_text(json.dumps({k: v for k, v in tree.items() if k != "chat_template"}))
    check_pair(teacher, student)  # the one put in is the released one, its BOS aside
    path.write_text(whole)
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PANGU_CORPUS),
        model_writer=out,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        user_defined_symbols=MARKS,
        minloglevel=2,
    )
    (teacher / "tokenizer.model").write_bytes(out.getvalue())
    with pytest.raises(UserError, match="different vocabularies"):
        check_pair(teacher, student)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(UserError, match="logits cover 100 ids"):
        check_pair(student, student)
