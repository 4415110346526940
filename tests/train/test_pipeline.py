"""Three stages called by hand, one after the other in one process: losses and gradients of the whole model."""

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import Parameter  # noqa: E402

from npd_ascend.models import network  # noqa: E402
from npd_ascend.models.group import Group  # noqa: E402
from npd_ascend.models.network import build  # noqa: E402
from npd_ascend.models.peers import Peers  # noqa: E402
from npd_ascend.models.spec import ModelSpec  # noqa: E402
from npd_ascend.models.weights import load_hf  # noqa: E402
from npd_ascend.objectives.chunked import ChunkedLoss  # noqa: E402
from npd_ascend.train.adamw import AdamW  # noqa: E402
from npd_ascend.train.pipeline import LastStage, StageBackward  # noqa: E402
from npd_ascend.train.stage import _reader  # noqa: E402
from npd_ascend.train.step import PackedLoss  # noqa: E402

pytestmark = pytest.mark.mindspore


def test_stages_make_the_gradients_of_the_whole_model(world, kept, monkeypatch):
    monkeypatch.setattr(network, "Sum", lambda peers: None)  # there is nobody to add anything
    job = world.job(student=world.student("deep", num_hidden_layers=4), settings={"vocab_chunk_rows": 1000})
    spec, group = ModelSpec.from_folder(job.student), Group(job.device)
    reader = _reader(job, spec, group, kept.align)
    batches, tokens = list(reader.micro_batches(0, 0)), reader.tokens(0, 0)
    assert len(batches) == 2
    whole = kept.trainer(job, spec, reader, group)
    load_hf(whole.net, job.student)
    losses = whole.accumulate_all(batches, tokens)
    want = {g.name: g.asnumpy().copy() for g in whole.optimizer.gradients}

    nets = [build(spec, job.device, job.row_length, stages=Peers(rank=s, size=3)) for s in range(3)]
    optimizers = [AdamW(n.trainable_params(), job.settings) for n in nets]
    sums = Parameter(ms.Tensor(np.zeros(3, np.float32)), name="sums")
    for net in nets:
        load_hf(net, job.student)
    names = [[p.name for p in n.trainable_params()] for n in nets]
    assert sorted(sum(names, [])) == sorted(p.name for p in whole.net.trainable_params())
    layers = [{n.split(".")[3] for n in own if ".layers." in n} for own in names]
    assert layers == [{"0", "1"}, {"2"}, {"3"}]  # what does not come out even goes to the first
    assert "lm_head" in names[2] and "model.embedding.word_embeddings.weight" in names[0]

    first, middle = (StageBackward(nets[s], optimizers[s]) for s in range(2))
    last = LastStage(PackedLoss(nets[2], ChunkedLoss(job.settings.loss, reader.chunk)), optimizers[2], sums)
    inputs = [nets[0].inputs(b.rows) for b in batches]
    ones = [nets[0](*x) for x in inputs]  # both in flight, as in a pipeline
    twos = [nets[1](*x, one) for x, one in zip(inputs, ones, strict=True)]
    for batch, loss, x, one, two in zip(batches, losses, inputs, ones, twos, strict=True):
        assert one.shape == two.shape == nets[1].no_hidden(batch.rows).shape
        assert one.dtype == nets[1].no_hidden(batch.rows).dtype
        scale = ms.Tensor(np.float32(1 / tokens))
        got, gradient = last(*x, *(ms.Tensor(a) for a in batch.arrays), scale, two)
        assert float(got.asnumpy()) == pytest.approx(loss, rel=1e-6)
        first(*x, None, middle(*x, one, gradient))
    assert sums.asnumpy()[0] == pytest.approx(sum(losses), rel=1e-6)
    found = {g.name: g.asnumpy() for o in optimizers for g in o.gradients}
    assert found.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name)
