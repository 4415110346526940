"""GKD's loss against TRL's implementation of it: figures recorded from TRL 1.16.0, and TRL itself where it is there.

The figures are ``GKDTrainer.generalized_jsd_loss`` on the logits below; the last row of each is the loss of rows 0, 2
and 3 together, and the first four entries of its gradient with respect to the student's logits of row 0.
"""

import numpy as np
import pytest
from scipy.special import log_softmax

ms = pytest.importorskip("mindspore")

from npd_ascend.config.schema import LossConfig  # noqa: E402
from npd_ascend.objectives.chunked import ChunkedLoss  # noqa: E402

pytestmark = pytest.mark.mindspore
RECORDED = {  # beta: (loss of each row, loss of three rows, gradient)
    0.0: ([3.2615838, 1.3115771, 2.1021757, 3.2493975], 2.8710525, [-0.0438223, 0.0259937, -0.013134, -0.0024586]),
    0.1: ([0.214895, 0.1118319, 0.148789, 0.21344], 0.1923746, [-0.0041523, 0.0011802, -0.0015058, -0.0003297]),
    0.5: ([0.5046635, 0.297493, 0.3433523, 0.4613643], 0.43646, [-0.0101332, 0.0026933, -0.0044202, -0.00108]),
    0.9: ([0.238494, 0.1314974, 0.1457644, 0.1815736], 0.1886107, [-0.0043921, 0.0013564, -0.0021718, -0.0005758]),
    1.0: ([4.6322651, 1.8354856, 2.0477378, 2.2639298], 2.9813108, [-0.0869952, 0.0099275, -0.046426, -0.0129312]),
}
NAMES = {0.0: "forward_kl", 1.0: "reverse_kl"}


def logits():
    """Student's and teacher's, float32 [4, 11] each."""
    rng = np.random.default_rng(7)
    return tuple((rng.standard_normal((4, 11)) * 2).astype(np.float32) for _ in range(2))


def ours(beta, student, teacher, weights):
    """Loss sum of the weighted rows, and its gradient towards the student's logits: the head is the identity."""
    n, v = student.shape
    loss = LossConfig(kd_weight=1.0, ce_labels="none", topk_norm="both", divergence=NAMES.get(beta, f"jsd:{beta}"))
    ids = np.tile(np.arange(v, dtype=np.int32), (n, 1))
    out = ChunkedLoss(loss, 100)(*(ms.Tensor(np.ascontiguousarray(a, t)) for a, t in (
        (student, np.float32), (np.eye(v), np.float32), (np.concatenate([ids[:, :1], ids], 1), np.int32),
        (log_softmax(teacher.astype(np.float64), -1), np.float32), (np.tile(weights[:, None], (1, 2)), np.float32),
        (np.full((n, 1), beta), np.float32))))
    return float(out[0].asnumpy()), out[3].asnumpy()


@pytest.mark.parametrize("beta", RECORDED)
def test_recorded(beta):
    student, teacher = logits()
    rows, three, gradient = RECORDED[beta]
    for i, expected in enumerate(rows):
        assert ours(beta, student, teacher, np.eye(4)[i])[0] == pytest.approx(expected, rel=2e-5)
    value, towards = ours(beta, student, teacher, np.array([1, 0, 1, 1]) / 3)
    assert value == pytest.approx(three, rel=2e-5)
    np.testing.assert_allclose(towards[0, :4], gradient, atol=2e-6)


@pytest.mark.parametrize("beta", RECORDED)
def test_trl_itself(beta):
    torch = pytest.importorskip("torch")
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = (torch.tensor(x)[None] for x in logits())
    labels = torch.tensor([[1, -100, 2, 3]])
    assert float(gkd.generalized_jsd_loss(student, teacher, labels=labels, beta=beta)) == pytest.approx(
        RECORDED[beta][1], rel=1e-5)
