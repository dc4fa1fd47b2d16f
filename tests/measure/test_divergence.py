"""KL of tiny and of large steps against exact numbers, at the edges, in every format, with its gradients."""

import math
from decimal import Decimal, localcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build, make_batch

from commit_tuning.measure import divergence
from commit_tuning.measure.displacement import CALIBRATION_INTERVAL, Displacement
from commit_tuning.measure.divergence import token_kl
from commit_tuning.measure.forward import forward_pass
from commit_tuning.measure.probe import DriftProbe

F32, F64 = torch.float32, torch.float64
INF = math.inf


def by_definition(old, new):
    """The sum of p (log p - log q) of one row, with fifty digits."""
    with localcontext(prec=50):
        log_p, log_q = (log_shares([Decimal(float(z)) for z in row]) for row in (old, new))
        return float(sum(p.exp() * (p - q) for p, q in zip(log_p, log_q, strict=True)))


def log_shares(logits):
    total = sum(z.exp() for z in logits).ln()
    return [z - total for z in logits]


def exact_kl(old, new):
    """By rows in float64, with the words that P cannot say left to Q alone; checked against `by_definition`."""
    old, new = old.double(), new.double()
    p = old.softmax(-1)
    p = p / p.sum(-1, keepdim=True)
    step = (new - old).masked_fill(p == 0, 0)
    mean = (p * step).sum(-1, keepdim=True)
    lost = (new.softmax(-1) * (p == 0)).sum(-1)  # of Q, on words that P cannot say
    c = step - mean
    terms = sum(c ** (power + 2) / math.factorial(power + 2) for power in range(15))
    gain = torch.where(c.abs() < 0.5, terms, torch.expm1(c) - c)
    return (p * gain).sum(-1).log1p() - torch.log1p(-lost)


def two_log_softmaxes(old, new):
    """The form that this package had first: slower, and less exact where the step is small."""
    wide = torch.promote_types(old.dtype, F32)
    log_p, log_q = old.to(wide).log_softmax(-1), new.to(wide).log_softmax(-1)
    p = log_p.exp()
    delta = (log_q - log_p).masked_fill(p == 0, 0)
    series = p * delta**2 * (1 / 2 + delta * (1 / 6 + delta * (1 / 24 + delta / 120)))
    return torch.where((delta.abs() < 0.02) & (p > 0), series, log_q.exp() - p - p * delta).sum(-1)


def normal(rows, vocabulary, spread=1.0, seed=0, dtype=F32):
    return (spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=F64)).to(dtype)


def stepped(old, step, dtype=F32):
    return (old.double() + step * normal(*old.shape, seed=1, dtype=F64)).to(dtype)


def relative_error(found, exact):
    return ((found.double() - exact) / exact).abs()


STEPS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]


@pytest.mark.parametrize("step", [1e-6, 1e-3, 0.3, 1.0, 3.0])
def test_exact_numbers_are_those_of_the_definition(step):
    old = normal(3, 12, spread=2.0)
    new = stepped(old, step)
    exact = exact_kl(old, new)
    assert exact.tolist() == pytest.approx([by_definition(*rows) for rows in zip(old, new, strict=True)], rel=1e-9)
    assert token_kl(old.double(), new.double()).tolist() == pytest.approx(exact.tolist(), rel=1e-9)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("vocabulary", [3, 24, 1000, 50_000])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_no_scale_of_the_step_loses_digits(vocabulary, spread, step):
    old = normal(4, vocabulary, spread)
    new = stepped(old, step)
    exact = exact_kl(old, new) if step < 10 else by_largest(old, new)
    assert relative_error(token_kl(old, new), exact).max() < 3e-6
    assert relative_error(token_kl(old.double(), new.double()), exact).max() < 1e-9


def by_largest(old, new):
    """Large drifts, for which the textbook form in float64 is exact enough."""
    log_p, log_q = old.double().log_softmax(-1), new.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def one_word_moves(by):
    new = torch.zeros(1, 50)
    new[0, 7] = by
    return torch.zeros(1, 50), new


PLAIN = normal(4, 300, spread=3.0)
CASES = {
    **{f"all logits move by {step:g}": (PLAIN, stepped(PLAIN, step)) for step in STEPS},
    **{f"all rise by {rise:g}, too": (PLAIN, stepped(PLAIN, 0.01) + rise) for rise in (0.5, 0.99, 1.01, 20.0, 3e4)},
    **{f"one word of many moves by {by:g}": one_word_moves(by) for by in (-60.0, -1.0, -1e-3, 1e-3, 0.49, 0.51, 7.9)},
    **{f"one word of many moves far, by {by:g}": one_word_moves(by) for by in (8.1, 17.0, 60.0)},
    "two words": (torch.tensor([[0.3, -0.2]]), torch.tensor([[0.31, -0.2]])),
    "a word that is almost certain": (torch.tensor([[20.0, 0.0, 1.0]]), torch.tensor([[20.0, 0.1, 0.9]])),
    "a word that almost cannot be said": (torch.tensor([[0.0, -80.0]]), torch.tensor([[0.0, -60.0]])),
    "a rare word that becomes less rare": (torch.tensor([[0.0, 21.5, 29.0]]), torch.tensor([[9.0, 21.5, 29.0625]])),
    "a word that comes from nowhere": (torch.tensor([[0.0, -80.0]]), torch.tensor([[0.0, 2.0]])),
    "a word that goes": (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -300.0]])),
    "large logits": (normal(4, 300, spread=100.0), stepped(normal(4, 300, spread=100.0), 0.01)),
    "large logits that change places": (normal(4, 300, spread=100.0), normal(4, 300, spread=100.0, seed=3)),
    "a large vocabulary with few words in use": (normal(2, 200_000, 4.0), stepped(normal(2, 200_000, 4.0), 0.03)),
    "bfloat16": (PLAIN.bfloat16(), stepped(PLAIN, 0.05, torch.bfloat16)),
    "float16": (PLAIN.half(), stepped(PLAIN, 0.05, torch.float16)),
    "float16 near its largest": (PLAIN.half() + 65_000, stepped(PLAIN, 40.0, torch.float16) + 65_000),
}


@pytest.mark.parametrize("case", CASES)
def test_never_farther_off_than_two_log_softmaxes(case):
    old, new = CASES[case]
    exact = exact_kl(old, new)
    exact = torch.where(exact > 3, by_largest(old, new), exact)
    found, before = relative_error(token_kl(old, new), exact), relative_error(two_log_softmaxes(old, new), exact)
    assert (found <= before.clamp(min=6e-7)).all()  # five of the smallest differences there are, where both are exact


def test_it_is_nearer_where_steps_are_small():
    old = normal(16, 5000, spread=3.0)
    new = stepped(old, 1e-4)
    exact = exact_kl(old, new)
    found, before = relative_error(token_kl(old, new), exact), relative_error(two_log_softmaxes(old, new), exact)
    assert found.max() < before.max() / 30


numbers = st.floats(-30, 30, width=32)


@given(
    st.lists(
        st.tuples(numbers, st.one_of(numbers, st.floats(-(2.0**-10), 2.0**-10, width=32))), min_size=1, max_size=12
    )
)
@settings(max_examples=150, deadline=None)
def test_any_logits(words):
    old = torch.tensor([[z for z, _ in words]])
    new = old + torch.tensor([[step for _, step in words]])
    kl, exact = token_kl(old, new).item(), by_definition(old[0], new[0])
    before = abs(two_log_softmaxes(old, new).item() - exact)
    assert kl >= 0
    assert abs(kl - exact) <= max(2 * before, 2e-5 * exact, 1e-15)


def test_formats_may_differ():
    new = stepped(PLAIN, 0.1)
    assert token_kl(PLAIN.double(), new).dtype == F64
    torch.testing.assert_close(token_kl(PLAIN.double(), new), exact_kl(PLAIN, new), rtol=1e-9, atol=0)
    assert torch.equal(token_kl(PLAIN.bfloat16(), new), token_kl(PLAIN.bfloat16().float(), new))


def test_one_word_and_no_row():
    assert token_kl(torch.tensor([[2.0], [-5.0]]), torch.tensor([[3.0], [900.0]])).tolist() == [0.0, 0.0]
    assert token_kl(torch.zeros(0, 7), torch.zeros(0, 7)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64])
def test_half_precision_is_widened(dtype):
    old, new = PLAIN.to(dtype), stepped(PLAIN, 0.1, dtype)
    wide = torch.promote_types(dtype, F32)
    assert token_kl(old, new).dtype == wide
    assert torch.equal(token_kl(old, new), token_kl(old.to(wide), new.to(wide)))
    assert torch.equal(token_kl(old, old), torch.zeros(4, dtype=wide))


LEAST = torch.finfo(F32).min
MASKED = {
    "masked before and after": ([1.0, 2.0, -INF], [1.1, 2.0, -INF], None),
    "with the least number": ([1.0, 2.0, LEAST], [1.1, 2.0, LEAST], None),
    "with two numbers": ([1.0, 2.0, LEAST], [1.1, 2.0, -INF], None),
    "masked before": ([0.0, -INF], [0.0, 0.0], math.log(2.0)),
    "masked before and large after": ([0.0, -INF], [0.0, 50.0], 50.0),
    "masked after": ([0.0, 0.0], [0.0, -INF], INF),
    "as good as masked before": ([0.0, -200.0], [0.0, -INF], 0.0),
    "everything masked": ([-INF, -INF], [-INF, -INF], math.nan),
    "everything masked before": ([-INF, -INF], [0.0, 1.0], math.nan),
    "not a number before": ([0.0, math.nan], [0.0, 1.0], math.nan),
    "not a number after": ([0.0, 1.0], [0.0, math.nan], math.nan),
    "infinite before": ([0.0, INF], [0.0, 1.0], math.nan),
    "infinite after": ([0.0, 1.0], [0.0, INF], math.nan),
}


@pytest.mark.parametrize("case", MASKED)
def test_logits_that_are_not_finite(case):
    """A row of them alone, and among others, which do not mind."""
    old, new, expected = MASKED[case]
    old, new = torch.tensor([old]), torch.tensor([new])
    expected = token_kl(old[:, :2], new[:, :2]).item() if expected is None else expected
    assert token_kl(old, new).item() == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert two_log_softmaxes(old, new).item() == pytest.approx(expected, rel=1e-5, nan_ok=True)
    others = normal(2, old.shape[1])
    rows = torch.cat((others[:1], old, others[1:])), torch.cat((stepped(others[:1], 0.01), new, others[1:]))
    alone = token_kl(others[:1], stepped(others[:1], 0.01)).item()
    assert token_kl(*rows).tolist() == pytest.approx([alone, expected, 0.0], rel=1e-6, nan_ok=True)


def test_a_masked_vocabulary_costs_no_digits():
    old, mask = (
        normal(4, 5000, spread=3.0),
        torch.zeros(5000).bernoulli_(generator=torch.Generator().manual_seed(5)) > 0,
    )
    new = stepped(old, 1e-4)
    found = token_kl(old.masked_fill(mask, -INF), new.masked_fill(mask, -INF))
    assert relative_error(found, exact_kl(old[:, ~mask], new[:, ~mask])).max() < 3e-6


@pytest.mark.parametrize("elements", [1, 700, 2400, 1 << 30])
def test_rows_do_not_depend_on_their_chunk(elements, monkeypatch):
    """Near rows, far rows and rows that are not finite, in whatever company: equal to the last bit."""
    old = normal(12, 600, spread=3.0)
    new = stepped(old, 0.01)
    new[2] += 5.0
    new[5, 17] += 1.0
    new[7, 3], new[8] = -INF, normal(1, 600, seed=8) * 20
    alone = torch.cat([token_kl(*rows) for rows in zip(old.split(1), new.split(1), strict=True)])
    monkeypatch.setattr(divergence, "_CPU_CHUNK", elements)
    assert torch.equal(token_kl(old, new), alone)
    assert alone.isfinite().tolist() == [row != 7 for row in range(12)]


def test_chunks_by_device(monkeypatch):
    logits = SimpleNamespace(device=torch.device("cpu"), shape=(64, 1 << 15))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert divergence._rows_at_once(logits) == 8
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert divergence._rows_at_once(logits) == 32
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert divergence._rows_at_once(logits) == 512
    assert divergence._rows_at_once(torch.empty(64, 1 << 15, device="meta")) == 512
    assert divergence._rows_at_once(torch.empty(64, 1 << 30, device="meta")) == 1


def gradients(function, old, new):
    old, new = old.clone().requires_grad_(), new.clone().requires_grad_()
    weights = torch.linspace(0.5, 2, len(old), dtype=F64)
    return torch.autograd.grad((function(old, new).double() * weights).sum(), (old, new))


def textbook(old, new):
    log_p, log_q = old.log_softmax(-1), new.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("step", STEPS)
def test_gradients_are_those_of_the_definition(step):
    old = normal(5, 40, spread=2.0, dtype=F64)
    new = stepped(old, step, F64)
    for found, expected in zip(gradients(token_kl, old, new), gradients(textbook, old, new), strict=True):
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_gradients_by_finite_differences():
    old, new = normal(3, 7, dtype=F64).requires_grad_(), normal(3, 7, seed=4, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(token_kl, (old, new))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("rise", [0.0, 5.0])
def test_gradients_never_farther_off_than_two_log_softmaxes(step, rise):
    old = normal(5, 2000, spread=3.0)
    new = stepped(old, step) + rise
    exact = gradients(textbook, old.double(), new.double())
    found, before = gradients(token_kl, old, new), gradients(two_log_softmaxes, old, new)
    for mine, theirs, truth in zip(found, before, exact, strict=True):
        error, bound = (float((g.double() - truth).norm() / truth.norm()) for g in (mine, theirs))
        assert error <= max(bound, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, F32])
def test_gradients_where_words_are_masked(dtype):
    old, new = normal(4, 30, dtype=dtype), normal(4, 30, seed=2, dtype=dtype)
    old[0, 3] = new[0, 3] = old[1, 4] = -INF  # masked in both, before alone; far away
    new[2, 5] += 100.0
    found = gradients(token_kl, old, new)
    assert [g.dtype for g in found] == [dtype, dtype]
    expected = gradients(two_log_softmaxes, old.double(), new.double())
    for mine, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_a_gradient_keeps_the_logits_alone():
    old, new = normal(4, 30), normal(4, 30, seed=2).requires_grad_()
    kl = token_kl(old, new)  # an older torch drops with it what it keeps
    kept = kl.grad_fn.saved_tensors
    assert [tensor.data_ptr() for tensor in kept[:2]] == [old.data_ptr(), new.data_ptr()]
    assert [tensor.numel() for tensor in kept[2:]] == [4]


def test_rounding_is_looked_at_when_asked_for(monkeypatch):
    """What the floor is taken from: at the first of twenty measurements, and of a module that comes later."""
    asked, rounding = [], DriftProbe._rounding
    monkeypatch.setattr(DriftProbe, "_rounding", lambda probe: asked.append(1) or rounding(probe))
    displacement, always = Displacement("auto"), Always("auto")
    model, partition = build("plain", F64)
    probe = DriftProbe(forward_pass(model), partition, [make_batch("plain", 3, F64)], shift=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    counts = []
    for _ in range(CALIBRATION_INTERVAL + 1):
        found = probe.measure(displacement, ["language_model"])
        counts.append(len(asked))
        assert found == probe.measure(always, ["language_model"])
        asked.clear()
    assert counts == [1] + [0] * (CALIBRATION_INTERVAL - 1) + [1]
    assert displacement.looks_at_floor(["language_model", "vision"])
    assert not displacement.looks_at_floor(["language_model"])
    probe.measure(Displacement(1.0))
    assert not asked


class Always(Displacement):
    """The rounding is looked at each time."""

    def looks_at_floor(self, modules):
        del modules
        return True
