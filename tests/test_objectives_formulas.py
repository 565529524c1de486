"""Every objective against a short NumPy reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nonn.distill.objectives.activations import activation_transfer, at, hint, partial_logits, srrl
from nonn.distill.objectives.flow import fsp, lckd, spectral_norm, transmitting
from nonn.distill.objectives.learned import Crd, Simreg, Srm, Vid, crd, srm, vid
from nonn.distill.objectives.logits import cross_entropy, dkd, kd, mutual, standardise
from nonn.distill.objectives.relations import pkt, rkd, sp
from nonn.distill.targets import revise_labels
from nonn.errors import ShapeError
from tests.objectives import LABELS, RNG, S1, T1, ZS, ZT, Array, B, C, K, S, T, W, Y, tensor

# ---- logits ----------------------------------------------------------------------------------------------------


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def kl(p: Array, q: Array) -> Array:
    return np.asarray((p * np.log(p / q)).sum(axis=-1))


def test_kd_is_multiplied_by_the_square_of_its_temperature() -> None:
    for tau in (1.0, 4.0):
        expected = tau**2 * kl(softmax(ZT / tau), softmax(ZS / tau)).mean()
        assert float(kd(tensor(ZS), tensor(ZT), tau)) == pytest.approx(expected, rel=1e-4)
    # so that its gradient at a high temperature is that of half the squared distance of centred logits, over K
    student = tensor(ZS).requires_grad_()
    kd(student, tensor(ZT), 1e3).backward()  # type: ignore[no-untyped-call]
    gap = (ZS - ZS.mean(1, keepdims=True)) - (ZT - ZT.mean(1, keepdims=True))
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), gap / K / B, rtol=0.05, atol=1e-4)


def test_standardised_logits_have_mean_zero_and_deviation_one_and_forget_the_scale() -> None:
    z = standardise(tensor(ZS))
    np.testing.assert_allclose(z.mean(1).numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(1).numpy(), 1, rtol=1e-5)
    np.testing.assert_allclose(standardise(tensor(3 * ZS + 5)).numpy(), z.numpy(), atol=1e-5)
    expected = (ZS - ZS.mean(1, keepdims=True)) / (ZS.std(1, ddof=1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(z.numpy(), expected, atol=1e-5)


def test_dkd_equals_its_formula_and_is_kd_with_the_weights_that_kd_hides() -> None:
    tau, rows = 4.0, np.arange(B)
    p, q = softmax(ZT / tau), softmax(ZS / tau)

    def split(x: Array) -> tuple[Array, Array]:
        rest = np.array([np.delete(row, y) for row, y in zip(x, Y, strict=True)])
        return np.stack([x[rows, Y], 1 - x[rows, Y]], axis=1), rest / rest.sum(1, keepdims=True)

    (bt, rt), (bs, rs) = split(p), split(q)
    expected = tau**2 * (1.5 * kl(bt, bs) + 3.0 * kl(rt, rs)).mean()
    assert float(dkd(tensor(ZS), tensor(ZT), LABELS, tau, 1.5, 3.0)) == pytest.approx(expected, rel=1e-4)
    for i in range(B):
        one = slice(i, i + 1)
        beta = float(1 - p[i, Y[i]])
        same = dkd(tensor(ZS[one]), tensor(ZT[one]), LABELS[one], tau, 1.0, beta)
        assert float(same) == pytest.approx(float(kd(tensor(ZS[one]), tensor(ZT[one]), tau)), rel=1e-3)
    with pytest.raises(ShapeError, match="at least two classes"):
        dkd(torch.rand(2, 1), torch.rand(2, 1), torch.zeros(2, dtype=torch.int64), tau)


def test_mutual_learning_averages_the_divergences_from_the_others() -> None:
    own, tau = RNG.normal(size=(3, B, K)), 2.0
    p = softmax(own / tau)
    pairs = [kl(p[j], p[i]).mean() for i, j in itertools.permutations(range(3), 2)]
    z = [tensor(x).requires_grad_() for x in own]
    loss = mutual(z, tau)
    assert loss.item() == pytest.approx(tau**2 * np.mean(pairs), rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    for i in range(3):  # the teaching side is a constant: the gradient is that of the mean of the others' answers
        gap = p[i] - np.mean([p[j] for j in range(3) if j != i], axis=0)
        gradient = z[i].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient.numpy(), tau * gap / B / 3, atol=1e-5)
    with pytest.raises(ShapeError, match="at least two devices"):
        mutual([tensor(ZS)])


def test_cross_entropy_smooths_labels() -> None:
    log_q = np.log(softmax(ZS))
    target = 0.9 * np.eye(K)[Y] + 0.1 / K
    assert float(cross_entropy(tensor(ZS), LABELS, 0.1)) == pytest.approx(-(target * log_q).sum(1).mean(), rel=1e-4)


# ---- label revision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("eta", [0.5, 0.9, 1.0])
def test_revised_labels_equal_their_formula(tau: float, eta: float) -> None:
    p = softmax(ZT / tau)
    beta = eta / (p.max(1) - p[np.arange(B), Y] + 1)
    expected = beta[:, None] * p + (1 - beta)[:, None] * np.eye(K)[Y]
    revised = revise_labels(tensor(ZT), LABELS, tau, eta)
    np.testing.assert_allclose(softmax(revised.double().numpy() / tau), expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 30), st.floats(0.05, 0.95))
def test_the_true_class_leads_a_revised_answer_and_the_others_keep_their_order(
    seed: int, scale: float, eta: float
) -> None:
    rng = np.random.default_rng(seed)
    z, y = tensor(rng.normal(size=(8, 5)) * scale), torch.from_numpy(rng.integers(0, 5, 8))
    revised = revise_labels(z, y, 2.0, eta)
    assert torch.isfinite(revised).all()
    assert torch.equal(revised.argmax(1), y)
    for row, before, target in zip(revised, z, y.tolist(), strict=True):
        others = [k for k in range(5) if k != target]
        assert torch.equal(row[others].argsort(stable=True), before[others].argsort(stable=True))


def test_only_the_answers_that_the_teacher_gets_wrong_are_revised_if_asked() -> None:
    z, right = tensor(ZT), torch.arange(B) % 2 == 0
    labels = torch.where(right, z.argmax(1), z.argmin(1))
    every, some = (revise_labels(z, labels, 4.0, 0.8, only_wrong=only) for only in (False, True))
    assert not torch.allclose(every[right], z[right])
    torch.testing.assert_close(some[right], z[right])
    torch.testing.assert_close(some[~right], every[~right])


def test_a_revised_label_stays_finite_where_the_teacher_is_sure_and_wrong() -> None:
    z = torch.zeros(2, 3)
    z[:, 0] = 1e4
    assert torch.isfinite(revise_labels(z, torch.tensor([0, 2]), 1.0, 0.8)).all()


# ---- activations -----------------------------------------------------------------------------------------------


def normed(v: Array) -> Array:
    flat = v.reshape(len(v), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


def gap(x: Array) -> Array:
    return np.asarray(x.mean(axis=(2, 3)))


def test_hint_attention_and_partial_logits_equal_their_formula() -> None:
    expected = 0.5 * ((T - S) ** 2).reshape(B, -1).sum(1).mean()
    assert float(hint(tensor(S), tensor(T))) == pytest.approx(expected, rel=1e-4)
    expected = ((normed((S**2).sum(1)) - normed((T**2).sum(1))) ** 2).sum(1).mean()
    assert float(at(tensor(S), tensor(T))) == pytest.approx(expected, rel=1e-4)
    logits = gap(T) @ W.T - gap(S) @ W.T
    expected = ((logits**2).sum(1) + 0.5 * ((gap(T) - gap(S)) ** 2).sum(1)).mean()
    assert float(srrl(tensor(S), tensor(T), tensor(W), 0.5)) == pytest.approx(expected, rel=1e-4)


def test_attention_of_one_position_is_refused_for_it_has_no_gradient() -> None:
    for shape in ((3, C, 1, 1), (3, C, 1), (3, C)):
        with pytest.raises(ShapeError, match="one position"):
            at(torch.rand(shape), torch.rand(shape))


def test_partial_logits_of_all_parts_sum_to_the_answer() -> None:
    parts = [[0, 3], [1], [2, 4]]
    classifier = tensor(W).requires_grad_()
    assert not partial_logits(tensor(T), classifier).requires_grad  # the teacher's weights are not trained
    summed = sum(partial_logits(tensor(T[:, p]), tensor(W[:, p])) for p in parts)
    assert isinstance(summed, Tensor)
    np.testing.assert_allclose(summed.numpy(), gap(T) @ W.T, atol=1e-5)


# ---- relations -------------------------------------------------------------------------------------------------


def test_similarities_are_normalised_by_row_in_l2() -> None:
    def similarity(x: Array) -> Array:
        flat = x.reshape(B, -1)
        return normed(flat @ flat.T)

    expected = ((similarity(S) - similarity(T)) ** 2).sum() / B**2
    assert float(sp(tensor(S), tensor(T))) == pytest.approx(expected, rel=1e-4)
    assert float(sp(tensor(7 * S), tensor(S))) == pytest.approx(0, abs=1e-6)


def test_relational_kd_equals_its_formula_over_distinct_samples() -> None:
    def huber(d: float) -> float:
        return 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5

    def distances(x: Array) -> Array:
        d = np.linalg.norm(x[:, None] - x[None], axis=2)
        return np.asarray(d / (d.sum() / (B * (B - 1))))

    def angle(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    s, t = gap(S), gap(T)
    pairs = [huber(distances(s)[i, j] - distances(t)[i, j]) for i, j in itertools.permutations(range(B), 2)]
    triplets = [huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in itertools.permutations(range(B), 3)]
    expected = 25 * np.mean(pairs) + 50 * np.mean(triplets)
    assert float(rkd(tensor(S), tensor(T))) == pytest.approx(expected, rel=1e-3)


def test_distances_of_a_collapsed_student_are_all_the_same() -> None:
    d = np.linalg.norm(gap(T)[:, None] - gap(T)[None], axis=2)
    ratio = np.array([d[i, j] for i, j in itertools.permutations(range(B), 2)]) * B * (B - 1) / d.sum()
    apart = np.abs(1 - ratio)
    expected = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    assert float(rkd(torch.zeros(B, C), tensor(T), 1.0, 0.0)) == pytest.approx(expected, rel=1e-3)


def test_relational_kd_of_one_or_two_samples_is_finite() -> None:
    assert float(rkd(tensor(S[:1]), tensor(T[:1]))) == 0
    assert torch.isfinite(rkd(tensor(S[:2]), tensor(T[:2])))


def test_probabilistic_transfer_equals_its_formula() -> None:
    def affinities(x: Array) -> Array:
        kernel = (normed(gap(x)) @ normed(gap(x)).T + 1) / 2
        return np.asarray(kernel / kernel.sum(1, keepdims=True))

    expected = kl(affinities(T), affinities(S)).mean()
    assert float(pkt(tensor(S), tensor(T))) == pytest.approx(expected, rel=1e-3)


def test_opposite_features_have_a_finite_affinity() -> None:
    s = torch.tensor([[1e3, 0.0], [-1e3, 0.0], [0.0, 1e3]], requires_grad=True)
    loss = pkt(s, -s.detach().roll(1, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


# ---- flow ------------------------------------------------------------------------------------------------------


def flow_matrix(first: Array, second: Array) -> Array:
    coarse = first.reshape(B, 4, 3, 2, 2, 2).mean(axis=(3, 5))
    return np.asarray(np.einsum("baxy,bcxy->bac", coarse, second) / 6)


def test_the_flow_matrix_averages_products_at_the_coarser_resolution() -> None:
    matrix = transmitting(tensor(S1), tensor(S))
    np.testing.assert_allclose(matrix.numpy(), flow_matrix(S1, S), atol=1e-5)
    np.testing.assert_allclose(transmitting(tensor(S), tensor(S1)).mT.numpy(), matrix.numpy(), atol=1e-6)
    expected = ((flow_matrix(S1, S) - flow_matrix(T1, T)) ** 2).sum((1, 2)).mean()
    assert float(fsp((tensor(S1), tensor(S)), (tensor(T1), tensor(T)))) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ShapeError, match="lckd compares layers of any widths"):
        fsp((tensor(S1[:, :3]), tensor(S)), (tensor(T1), tensor(T)))


@pytest.mark.parametrize("shape", [(4, 5, 8), (4, 8, 5)])
def test_the_spectral_norm_is_the_largest_singular_value_and_so_is_its_gradient(shape: tuple[int, ...]) -> None:
    matrix = tensor(RNG.normal(size=shape)).requires_grad_()
    norm = spectral_norm(matrix, 10)
    u, s, v = np.linalg.svd(matrix.detach().numpy())
    np.testing.assert_allclose(norm.detach().numpy(), s[:, 0], rtol=1e-4)
    norm.sum().backward()  # type: ignore[no-untyped-call]
    assert matrix.grad is not None
    np.testing.assert_allclose(matrix.grad.numpy(), u[:, :, :1] * v[:, :1], atol=1e-3)


def test_lipschitz_kd_weighs_later_layers_more_and_widths_may_differ() -> None:
    def norms(a: Array, b: Array) -> Array:
        return np.asarray(np.linalg.norm(flow_matrix(a, b), ord=2, axis=(1, 2)))

    last_s = RNG.normal(size=(B, 3, 3, 2))
    middle = np.linalg.norm(np.einsum("baxy,bcxy->bac", S, last_s) / 6, ord=2, axis=(1, 2))
    middle_t = np.linalg.norm(np.einsum("baxy,bcxy->bac", T, T) / 6, ord=2, axis=(1, 2))
    expected = ((norms(S1, S) - norms(T1, T)) ** 2).mean() / 2 + ((middle - middle_t) ** 2).mean()
    got = lckd([tensor(S1), tensor(S), tensor(last_s)], [tensor(T1), tensor(T), tensor(T)], 10)
    assert float(got) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ShapeError, match="0 student and 0 teacher norms"):
        lckd([tensor(S)], [tensor(T)])


def test_lipschitz_kd_really_trains() -> None:
    student = tensor(S).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    losses = []
    for _ in range(150):
        loss = lckd([student[:, :2], student], [tensor(3 * T[:, :2]), tensor(3 * T)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


# ---- objectives with parameters --------------------------------------------------------------------------------


def test_vid_is_a_gaussian_log_likelihood_without_its_constant() -> None:
    variance = np.linspace(0.5, 3, C)
    expected = (0.5 * np.log(variance)[:, None, None] + (T - S) ** 2 / (2 * variance[:, None, None])).sum((1, 2, 3))
    assert float(vid(tensor(S), tensor(T), tensor(variance))) == pytest.approx(expected.mean(), rel=1e-4)
    at_teacher = 6 * 0.5 * np.log(variance).sum()
    assert float(vid(tensor(T), tensor(T), tensor(variance))) == pytest.approx(at_teacher, rel=1e-4)


def test_vid_learns_which_filters_a_student_cannot_have() -> None:
    module = Vid(C, 2.0)
    torch.testing.assert_close(module.variance(), torch.full((C,), 2.0))
    noise = np.array([0.1, 0.3, 0.5, 1.0, 2.0])[:, None, None]
    student = T + noise * RNG.normal(size=T.shape)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        module(tensor(student), tensor(T), LABELS).backward()
        optimizer.step()
    expected = ((student - T) ** 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(module.variance().detach().numpy(), expected, rtol=0.05)


def test_contrasts_are_with_other_classes_only_and_either_way() -> None:
    s, t = RNG.normal(size=(B, 4)), RNG.normal(size=(B, 4))
    similarity = normed(s) @ normed(t).T / 0.5
    expected = 0.0
    for i in range(B):
        others = [j for j in range(B) if Y[j] != Y[i] or j == i]
        expected += np.log(np.exp(similarity[i, others]).sum()) - similarity[i, i]
        expected += np.log(np.exp(similarity[others, i]).sum()) - similarity[i, i]
    assert float(crd(tensor(s), tensor(t), LABELS, 0.5)) == pytest.approx(expected / B, rel=1e-3)


def test_contrasts_are_least_where_student_and_teacher_agree() -> None:
    z = torch.eye(B)
    agree = crd(z, z, torch.arange(B))
    assert float(agree) < 1e-4
    assert float(crd(z.roll(1, 0), z, torch.arange(B))) > 10


def test_sparse_labels_and_reconstruction_equal_their_formula() -> None:
    atoms, top = 8, 2
    d, z = RNG.normal(size=(C, atoms)), RNG.normal(size=(B, 6, atoms))
    positions = T.reshape(B, C, 6).transpose(0, 2, 1)
    product = positions @ d
    similarity = 1 / (1 + np.exp(-product))
    code = np.where(product >= np.sort(product, axis=2)[:, :, -top, None], similarity, 0)
    reconstruction = ((positions - code @ d.T) ** 2).sum(2).mean()
    pixel = -np.take_along_axis(np.log(softmax(z)), product.argmax(2)[:, :, None], 2).mean()
    mean = code.mean(1)
    wanted = (mean >= np.sort(mean, axis=1)[:, -top, None]).astype(float)
    q = 1 / (1 + np.exp(-z.mean(1)))
    image = -(wanted * np.log(q) + (1 - wanted) * np.log(1 - q)).sum(1).mean()
    got = float(srm(tensor(z), tensor(T), tensor(d), top))
    assert got == pytest.approx(reconstruction + pixel + image, rel=1e-3)


def test_a_dictionary_learns_to_rebuild_the_teacher_and_labels_do_not_move_it() -> None:
    torch.manual_seed(0)
    module = Srm(C, 12, 3)
    student = tensor(S).requires_grad_()
    module(student, tensor(T), LABELS).backward()
    dictionary = module.dictionary.grad
    assert dictionary is not None
    module.zero_grad()
    module(3 * student, tensor(T), LABELS).backward()
    assert module.dictionary.grad is not None
    torch.testing.assert_close(module.dictionary.grad, dictionary)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = module(tensor(T), tensor(T), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_simreg_is_two_less_twice_the_cosine_of_the_mlps_answer() -> None:
    torch.manual_seed(0)
    module = Simreg(C, 10)
    with torch.no_grad():
        answer = module.mlp(tensor(gap(S))).double().numpy()
        cosine = (normed(answer) * normed(gap(T))).sum(1)
        assert float(module(tensor(S), tensor(T), LABELS)) == pytest.approx((2 - 2 * cosine).mean(), rel=1e-3)
        assert float(activation_transfer(tensor(answer), tensor(answer))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "module", [Vid(C, 1.0), Crd(C, 8, 0.1), Srm(C, 10, 2), Simreg(C, 10)], ids=["vid", "crd", "srm", "simreg"]
)
def test_the_gradient_reaches_every_parameter_of_an_objective(module: torch.nn.Module) -> None:
    module(tensor(S).requires_grad_(), tensor(T), LABELS).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
