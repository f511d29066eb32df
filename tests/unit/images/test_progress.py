"""What is shown of running pulls."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from bridge.images.progress import Board, LayerState, PullProgress, Wanted


async def pieces() -> AsyncGenerator[bytes]:
    yield b"123"
    yield b"45"


def seen(board: Board) -> list[tuple[int, LayerState]]:
    (pull,) = board.show()
    return [(layer.received, layer.state) for layer in pull.layers]


async def test_a_layer_from_waiting_to_done() -> None:
    there = {"base"}
    board = Board(there.__contains__)
    with board.pull("example.com/a:1") as pull:
        assert board.show() == [PullProgress("example.com/a:1", pull.started_ns)]
        pull.announce([Wanted("base", "sha256:b", 9), Wanted("top", "sha256:t", 5)])
        assert seen(board) == [(9, LayerState.PRESENT), (0, LayerState.WAITING)]
        states = [seen(board)[1] async for _ in board.counted("top", pieces())]
        assert states == [(3, LayerState.DOWNLOADING), (5, LayerState.UNPACKING)]
        there.add("top")
        board.landed("top")
        assert seen(board) == [(9, LayerState.PRESENT), (5, LayerState.DONE)]
    assert board.show() == []


async def test_a_second_try_counts_from_nothing() -> None:
    board = Board(lambda _: False)
    with board.pull("a") as pull:
        pull.announce([Wanted("top", "sha256:t", 5)])
        _ = [piece async for piece in board.counted("top", pieces())]
        board.landed("top")
        assert seen(board) == [(0, LayerState.WAITING)]
        async for _ in board.counted("top", pieces()):
            assert seen(board)[0][0] in (3, 5)
