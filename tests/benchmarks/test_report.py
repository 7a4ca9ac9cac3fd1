"""A verdict follows from the numbers: made-up results with known answers, good and bad."""

from typing import Any

import pytest

from benchmarks.cases import CACHED, KONTEXT, LORA, PLAIN, PLAIN_TEXT, UNCACHED, at
from benchmarks.page import page, provisional, summary
from benchmarks.plots import PLOTS
from benchmarks.report import (
    Found,
    Ratio,
    Verdict,
    at_least,
    at_most,
    beside_lora,
    crossing,
    crossings,
    faster_than,
    gpu_verdicts,
    growth,
    mean_at_most,
    model_verdicts,
    over_floor,
    threshold,
    verdicts,
)
from benchmarks.schema import Memory, Picture, Result, Routed, Row, Step
from benchmarks.store import origin
from benchmarks.timing import Device

ORIGIN = origin(Device()).model_copy(update={"changed": False})


def row(case: str, ratio: float, experts: int = 0, rank: int = 0, tokens: int = 1024, **more: Any) -> Row:
    routed = Routed(newest=1, least=0, most=1) if case == "prw" else None
    point = at(tokens, 512, rank, experts)
    return Row(case=case, point=point, median_ms=1, iqr_ms=0, ratio=ratio, ratio_iqr=0, routed=routed, **more)


def result(kind: str, passes: str | None, **rows: Any) -> Result:
    name = f"{kind}-{passes or 'all'}"
    return Result(kind=kind, name=name, set="full", origin=ORIGIN, passes=passes, rounds=5, **rows)  # type: ignore[arg-type]


def grid(passes: str, pools: dict[int, float], lora: float = 1.2, floor: float = 1.1) -> Result:
    rows = [row(PLAIN, 1.0), row(LORA, lora, 1, 16)]
    rows += [row("prw", ratio, experts, 16, floor=floor) for experts, ratio in pools.items()]
    # Too few tokens for a target:
    rows += [row(PLAIN, 1.0, tokens=256), row(LORA, 1.0, 1, 16, tokens=256)]
    rows += [row("prw", 9.0, experts, 16, tokens=256, floor=floor) for experts in (1, 8, 64)]
    return result("grid", passes, times=rows)


def found(*results: Result) -> Found:
    return Found(tuple(results))


def values(ratios: list[Ratio]) -> list[float]:
    return [pytest.approx(ratio.value) for ratio in ratios]


def words(which: Found) -> dict[str, bool | None]:
    return {verdict.target: verdict.met for verdict in verdicts(which)}


def test_questions_to_the_grid() -> None:
    whole = found(grid("forward", {1: 1.2, 8: 1.32, 64: 1.8}))
    assert values(over_floor(whole, "forward")) == [1.2 / 1.1, 1.32 / 1.1, 1.8 / 1.1]
    assert values(growth(whole, "forward")) == [1.5]
    assert values(beside_lora(whole, "forward", 8)) == [1.1]
    assert over_floor(whole, "training") == []


def test_a_target_holds_at_every_point_or_not_at_all() -> None:
    ratios = [Ratio(1.0, "a"), Ratio(1.3, "b"), Ratio(1.1, "c")]
    assert at_most("t", ratios, 1.3).met is True
    assert at_most("t", ratios, 1.29).met is False
    assert at_most("t", ratios, 1.29).measured.startswith("worst 1.30 (b)")
    assert "holds at 2 of 3" in at_most("t", ratios, 1.29).measured
    assert at_least("t", ratios, 1.0).met is True
    assert at_least("t", ratios, 1.05).met is False
    assert at_least("t", ratios, 1.05).measured.startswith("worst 1.00 (a)")
    assert mean_at_most("t", [Ratio(1.0, "a"), Ratio(4.0, "b")], 2.0).met is True
    assert mean_at_most("t", [Ratio(1.0, "a"), Ratio(4.0, "b")], 1.99).met is False


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    assert {verdict.word for verdict in verdicts(found())} == {"not measured"}
    assert Verdict("t", "", False).word == "**NOT met**"


def test_a_peer_is_compared_with_a_pool_as_large_and_with_what_the_floor_allows() -> None:
    rows = [row(PLAIN, 1.0), row("prw", 1.2, 8, 16, floor=1.05), row("prw", 1.1, 1, 16, floor=1.05)]
    rows.append(row("PEFT Arrow", 4.2, 8, 16))
    (ratio,) = faster_than(found(result("peers", "forward", times=rows)), "forward", "PEFT Arrow")
    assert ratio.value == pytest.approx(3.5)
    assert ratio.reach == pytest.approx(4.0)
    assert words(found(result("peers", "forward", times=rows)))[
        "forward: at N = 8 ≥ 3 times faster than PEFT Arrow"
    ]


def kept(case: str, experts: int, saved: float, peak: float = 10) -> Memory:
    point = row(case, 1.0, experts, 16).point
    return Memory(case=case, point=point, saved_mib=saved, peak_mib=peak)


@pytest.mark.parametrize(
    ("ours", "as_lora", "a_third"), [(4.0, True, True), (4.1, False, True), (7.0, False, False)]
)
def test_memory_is_judged_beside_lora_and_arrow(ours: float, as_lora: bool, a_third: bool) -> None:
    rows = [kept(LORA, 1, 4.0), kept("prw", 4, ours), kept("PEFT Arrow", 4, 18.0), kept("PEFT Arrow", 8, 1.0)]
    said = words(found(result("memory", None, memory=rows)))
    assert said["activation memory kept for backward ≤ PEFT LoRA's, N = 1, 4, 8"] is as_lora
    assert said["activation memory kept for backward ≤ a third of Arrow's, N = 4"] is a_third


@pytest.mark.parametrize(("ratio", "met"), [(1.05, True), (1.06, False)])
def test_a_flux_training_step_is_judged_beside_lora(ratio: float, met: bool) -> None:
    steps = [
        Step(
            case=case,
            what=what,
            experts=1,
            trainable=1,
            median_ms=1,
            iqr_ms=0,
            ratio=1,
            ratio_iqr=0,
            ratio_to_lora=to_lora,
        )
        for case, what, to_lora in (
            (LORA, "training step", 9),
            ("prw, N=1", "training step", ratio),
            ("prw, N=1", "denoising step", 9),
        )
    ]
    said = words(found(result("flux", None, steps=steps, setup={"width": 64, "rank": 4})))
    assert said["FLUX training step ≤ 1.05 times the step with PEFT LoRA, N = 1, 5, 8"] is met


def test_losses_are_named_in_the_first_sentence() -> None:
    lost = found(grid("forward", {1: 1.3, 8: 1.3, 64: 1.3}))
    assert "Not met: forward: N = 1 no slower than PEFT LoRA." in summary(lost)
    won = found(grid("forward", {1: 1.1, 8: 1.1, 64: 1.1}))
    assert summary(won) == "**5 of 5 targets were met.**"


def test_provisional_results_say_so() -> None:
    whole = grid("forward", {1: 1.1})
    assert provisional(found(whole)) == ""
    assert "provisional" in provisional(found(whole.model_copy(update={"set": "default"})))
    changed = whole.model_copy(update={"origin": ORIGIN.model_copy(update={"changed": True})})
    assert "provisional" in provisional(found(changed))


def test_a_page_and_plots_of_few_results_can_be_made(tmp_path: Any) -> None:
    few = found(grid("forward", {1: 1.1, 8: 1.2}))
    assert "| 1024 | 512 | 16 | 1.00 | 1.20 | 1.10 (1.00) | 1.20 (0.92) |" in page(few)
    for name, plot in PLOTS.items():
        plot(few, tmp_path / name)
        assert (tmp_path / name).exists()


def picture(
    case: str, experts: int, ratio: float, kontext: float, time: float = 1, weights: float = 1
) -> Picture:
    return Picture(
        case=case,
        steps=28,
        text=128,
        noise=1024,
        source=1024,
        experts=experts,
        median_ms=time,
        iqr_ms=0,
        ratio=ratio,
        ratio_iqr=0,
        kontext_ratio=kontext,
        weights_mib=weights,
        peak_mib=1,
    )


def judged(*rows: Picture) -> list[bool | None]:
    whole = result("generation", None, setup={"width": 1024}, pictures=rows)
    return [verdict.met for verdict in model_verdicts(found(whole))[1:]]


@pytest.mark.parametrize(
    ("five", "expected"),
    [
        (picture(f"{CACHED}, N=5", 5, 1.2, 1.5, 1.05, 1.1), [True, True, True, True]),
        (picture(f"{CACHED}, N=5", 5, 1.21, 1.5, 1.05, 1.1), [False, True, True, True]),
        (picture(f"{CACHED}, N=5", 5, 1.2, 1.49, 1.05, 1.1), [True, False, True, True]),
        (picture(f"{CACHED}, N=5", 5, 1.2, 1.5, 1.06, 1.1), [True, True, False, True]),
        (picture(f"{CACHED}, N=5", 5, 1.2, 1.5, 1.05, 1.2), [True, True, True, False]),
    ],
)
def test_generating_is_judged_by_its_own_numbers(five: Picture, expected: list[bool]) -> None:
    others = [
        picture(PLAIN_TEXT, 0, 1.0, 1.8),
        picture(KONTEXT, 0, 1.8, 1.0),
        picture(f"{UNCACHED}, N=5", 5, 1.9, 0.9),
    ]
    assert judged(*others, picture(f"{CACHED}, N=1", 1, 1.1, 1.6), five) == expected


def test_a_gpus_targets_are_judged_by_their_worst_point() -> None:
    assert {verdict.met for verdict in gpu_verdicts([])} == {None}

    def gpu(case: str, experts: int, ms: float, ratio: float, rank: int = 128) -> Row:
        point = at(4096, 3072, rank, experts, dtype="bfloat16")
        times = {"median_ms": ms, "iqr_ms": 0, "ratio": ratio, "ratio_iqr": 0}
        return Row(case=case, point=point, launch="graph", cache="cold", **times)

    rows = [
        gpu("prw", 1, 230, 1.18),
        gpu("prw", 8, 200, 1.5),
        gpu("PEFT Arrow", 8, 700, 4),
        gpu("prw", 1, 230, 1.1, rank=16),
        gpu("prw", 8, 260, 1.3, rank=16),
    ]
    judged = {one.target: one for one in gpu_verdicts([result("kernels", "forward", times=rows)])}
    assert judged["two nn.Linear, forward, r = 128, N = 1"].met is True
    assert judged["two nn.Linear, forward, r = 128, N = 8"].met is False
    worst = judged["two nn.Linear, forward, r = 16, N ≤ 8"]
    assert (worst.measured, worst.met) == ("1.300 (N=8)", False)
    assert judged["PEFT Arrow, N = 8"].met is True
    assert judged["PEFT Arrow, N = 8"].measured.startswith("3.500")


def test_kernels_cross_where_they_take_equally_long() -> None:
    dense = [(16, 1.0), (64, 2.0), (256, 4.0), (1024, 16.0)]
    assert crossing(dense, [(size, 4.0) for size, _ in dense]) == pytest.approx(256)
    assert 64 < crossing(dense, [(size, 3.0) for size, _ in dense]) < 256
    assert crossing(dense, [(size, 0.5) for size, _ in dense]) == 16, "no slower from the first point on"
    assert crossing(dense, [(size, 99.0) for size, _ in dense]) is None


def test_a_threshold_is_proposed_from_even_routing_recorded_with_a_cold_cache() -> None:
    def rows(case: str, ms: float, **more: str) -> list[Row]:
        points = [at(4096, 3072, 16, experts, dtype="bfloat16") for experts in (8, 16, 32)]
        times = [{"median_ms": float(one.experts) if case == "prw dense" else ms} for one in points]
        how = {"iqr_ms": 0, "ratio": 1, "ratio_iqr": 0, "launch": "graph", "cache": "cold"} | more
        return [Row(case=case, point=one, **how, **time) for one, time in zip(points, times, strict=True)]

    many = rows("prw dense", 0) + rows("prw triton", 16.0) + rows("prw grouped", 99.0)
    many += rows("prw triton", 0.1, cache="warm") + rows("prw", 0.1)
    results = [result("kernels", "forward", times=many)]
    assert crossings(results) == {"triton": [pytest.approx(256)]}
    assert threshold(results).endswith("dense up to experts x rank = 256, then triton")
    assert "nothing measured" in threshold([result("kernels", "training", times=many)])
