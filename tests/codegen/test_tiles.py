"""The choice of register tiles, and packing."""

from __future__ import annotations

import pytest

from plait.codegen.core import AVX2, AVX512, Core, making_for
from plait.codegen.tiles import (
    L2_BYTES,
    GemmShape,
    block_count,
    ceil_div,
    choose_tile,
    gemm_cycles,
    gemm_tiles,
    register_tiles,
)
from tests.codegen.graphs import both_cores


def test_tiles_fit_the_registers() -> None:
    tiles = register_tiles(128, 768)
    assert {(4, 24), (6, 16), (2, 40), (1, 64)} <= set(tiles)
    assert not {(3, 32), (7, 16), (2, 48)} & set(tiles)
    assert all(mr * nr // 8 < 16 for mr, nr in tiles)


def test_wider_vectors_fill_more_registers() -> None:
    with making_for(AVX512):
        tiles = register_tiles(128, 768)
    assert {(10, 32), (9, 48), (6, 64), (1, 128)} <= set(tiles)
    assert not {(10, 48), (11, 32), (7, 64)} & set(tiles)
    assert all(nr % 16 == 0 and mr * nr // 16 < 32 for mr, nr in tiles)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 128, 768, 768), (4, 24)),
        ((1, 49, 512, 4608), (5, 16)),
        ((1, 1, 4096, 4096), (1, 64)),
        ((1, 3, 1, 5), (3, 8)),
    ],
)
def test_choice(shape: tuple[int, int, int, int], tile: tuple[int, int]) -> None:
    chosen = choose_tile(GemmShape(*shape), threads=2)
    assert (chosen.mr, chosen.nr) == tile


def test_many_rows_pass_in_blocks_that_stay_in_cache() -> None:
    chosen = choose_tile(GemmShape(1, 12000, 768, 384), threads=2)
    rows = 12000 / chosen.blocks
    assert chosen.outer == "n"
    assert 4 * rows * 384 <= L2_BYTES / 2
    assert choose_tile(GemmShape(1, 64, 768, 768), threads=2).blocks == 1


@both_cores
@pytest.mark.parametrize(
    ("m", "n", "k", "asks"),
    [
        (3136, 96, 384, True),
        (784, 768, 192, True),
        (3136, 96, 96, True),
        (3136, 384, 96, False),  # short sums, read by many panels
        (340, 96, 384, False),  # rows of 510 KiB
        (784, 1000, 192, False),  # weights of 750 KiB
        (3136, 96, 1024, False),  # rows of two tiles would share sets of L1
    ],
)
def test_tiles_ask_for_rows_where_these_come_from_beyond_l2_and_weights_do_not(
    core: Core, m: int, n: int, k: int, asks: bool
) -> None:
    shape = GemmShape(1, m, n, k)
    assert shape.asks == (asks and core == AVX2)
    if shape.asks:
        assert {choose_tile(shape, threads).outer for threads in (1, 2)} == {"m"}


@pytest.mark.parametrize(("tiles", "least"), [(375, 9), (1, 1), (3, 7), (3000, 71), (10, 0)])
def test_blocks_have_little_padding(tiles: int, least: int) -> None:
    count = block_count(tiles, max(1, least))
    assert min(least, tiles) <= count <= tiles
    assert ceil_div(tiles, count) * count <= tiles * 1.02


def test_products_that_pack_their_panels_have_one_block() -> None:
    tiles = gemm_tiles(GemmShape(1, 12000, 384, 384), threads=2, packed=False)
    assert {(tile.blocks, tile.depth) for _, tile in tiles} == {(1, 1)}


@pytest.mark.parametrize(
    ("m", "k", "depths"),
    [(128, 768, (1, 1)), (128, 1536, (2, 1)), (128, 3072, (4, 2)), (128, 3067, (1, 1)),
     (1, 3072, (1, 1))],
)  # fmt: skip
def test_sums_are_cut_into_equal_parts_whose_panels_leave_room_in_the_cache(
    m: int, k: int, depths: tuple[int, int]
) -> None:
    for core, depth in zip((AVX512, AVX2), depths, strict=True):
        with making_for(core):
            assert choose_tile(GemmShape(1, m, 768, k), threads=1).depth == depth


def test_one_row_reads_whole_panels_once() -> None:
    """So it does not matter that L2 holds none of them: wide ones are few."""
    assert choose_tile(GemmShape(1, 1, 768, 3072), threads=2).nr == 64


def test_few_rows_are_one_tile_where_all_tiles_wait_for_weights() -> None:
    with making_for(AVX512):
        chosen = choose_tile(GemmShape(1, 4, 256, 1152), threads=2)
    assert (chosen.mr, chosen.nr, chosen.depth) == (4, 64, 1)


def test_threads_share_whole_panels_where_sums_go_on_in_parts() -> None:
    shape = GemmShape(1, 128, 48, 3072)
    with making_for(AVX512):
        assert gemm_cycles(shape, 8, 48, 2, depth=4) == gemm_cycles(shape, 8, 48, 1, depth=4)
        assert gemm_cycles(shape, 8, 48, 2) < gemm_cycles(shape, 8, 48, 1)
        assert choose_tile(shape, threads=2).depth == 1


def test_parts_of_several_panels_take_turns_where_all_rows_would_be_read_for_each() -> None:
    shape = GemmShape(1, 1024, 768, 3072)
    with making_for(AVX512):
        chosen = choose_tile(shape, threads=2)
    assert (chosen.mr, chosen.nr, chosen.depth) == (8, 48, 4)
    assert 1 < chosen.span < 16
    rows = 1024 // chosen.blocks
    assert 4 * rows * 3072 // chosen.depth <= L2_BYTES // 2


@pytest.mark.parametrize("shape", [(64, 48, 3072), (128, 768, 768), (1024, 768, 3072), (7, 9, 5)])
def test_candidates_differ(shape: tuple[int, int, int]) -> None:
    with making_for(AVX512):
        tiles = [tile for _, tile in gemm_tiles(GemmShape(1, *shape), threads=1)]
    assert len(tiles) == len(set(tiles))


def test_rows_that_fall_into_one_set_of_l1_are_no_more_than_its_ways() -> None:
    with making_for(AVX512):
        assert gemm_cycles(GemmShape(1, 72, 768, 1024), 9, 48, 1) > gemm_cycles(
            GemmShape(1, 72, 768, 1025), 9, 48, 1
        )


@pytest.mark.parametrize("n", [768, 50257])
def test_rows_beyond_the_cache_pass_by_wide_panels_in_blocks_that_stay_in_it(n: int) -> None:
    with making_for(AVX512):
        chosen = choose_tile(GemmShape(1, 512, n, 768), threads=2)
    assert chosen.nr >= 48
    assert 4 * 768 * 512 / chosen.blocks <= L2_BYTES


def test_of_estimates_that_differ_by_less_than_they_can_tell_the_largest_tile_is_first() -> None:
    shape = GemmShape(1, 512, 768, 768)
    with making_for(AVX512):
        (least, chosen), *others = gemm_tiles(shape, threads=2)
        near = [tile for cycles, tile in others if cycles <= least * (1 + AVX512.doubt)]
    assert least == min(cycles for cycles, _ in others)
    assert near and all(tile.mr * tile.nr <= chosen.mr * chosen.nr for tile in near)


def test_small_products_stay_on_one_thread() -> None:
    assert not choose_tile(GemmShape(1, 1, 10, 128), threads=2).parallel
    assert choose_tile(GemmShape(1, 128, 768, 768), threads=2).parallel


def test_two_threads_take_half() -> None:
    shape = GemmShape(1, 128, 768, 768)
    assert gemm_cycles(shape, 4, 24, 2) == gemm_cycles(shape, 4, 24, 1) / 2
