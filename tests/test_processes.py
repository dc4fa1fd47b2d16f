"""How processes end."""

from __future__ import annotations

import gc
import signal

import pytest

from commit_tuning.processes import HeldBack, StoppedError, terminable, uncollected


def test_sigterm_raises_and_names_itself() -> None:
    with pytest.raises(StoppedError, match=r"^stopped by SIGTERM; the same") as stopped, terminable():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    before, held = signal.getsignal(number), HeldBack()
    with held:
        signal.raise_signal(number)
        assert held.number == number
        with pytest.raises(StoppedError):
            signal.raise_signal(number)
        held.number = None
    assert signal.getsignal(number) == before


def test_a_held_signal_is_not_lost() -> None:
    with pytest.raises(StoppedError, match="interrupted"), HeldBack():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_signals_that_others_handle_are_theirs(handler: object) -> None:
    before = signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    try:
        with HeldBack() as held:
            signal.raise_signal(signal.SIGTERM)
        assert held.number is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_garbage_collection_is_put_back() -> None:
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with uncollected():
                assert not gc.isenabled()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
