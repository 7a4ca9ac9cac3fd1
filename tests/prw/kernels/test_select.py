"""Which kernel is taken, who may force it, and that it is said."""

import pytest
import torch

import prw
from prw.kernels import NAMES, VARIABLE, Case, choose, cpu, dense, forced
from prw.kernels.select import DENSE_UP_TO

CUDA, LIMIT = torch.device("cuda"), DENSE_UP_TO["cuda"]


@pytest.fixture
def hopper(monkeypatch):
    """A CUDA device of compute capability 9.0, as far as choosing can tell."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def cuda(experts, rank, dtype=torch.bfloat16, **more):
    return choose(Case(CUDA, dtype, experts, rank, **more))


def test_a_host_sorts_whatever_the_size():
    for experts, rank in ((1, 1), (64, 128)):
        assert choose(Case(torch.device("cpu"), torch.float64, experts, rank)).name == "grouped"


def test_a_device_that_was_not_measured_gets_what_runs_anywhere():
    choice = choose(Case(torch.device("meta"), torch.float32, 64, 128))
    assert choice.name == "dense"
    assert "meta was not measured" in choice.why


def test_cuda_is_dense_up_to_a_limit_that_grows_with_the_choices(hopper):
    rank = 8
    assert cuda(LIMIT // rank, rank).name == "dense"
    assert cuda(LIMIT // rank + 1, rank).name == "grouped"
    assert cuda(LIMIT // rank + 1, rank, top_k=2).name == "dense"
    assert cuda(2 * LIMIT // rank + 1, rank, top_k=2).name == "grouped"
    assert str(LIMIT) in cuda(64, 128).why
    assert str(64 * 128) in cuda(64, 128).why


@pytest.mark.parametrize(
    ("case", "lacks"),
    [
        ({"dtype": torch.float32}, "16-bit"),
        ({"dtype": torch.float64}, "16-bit"),
        ({"rank": 12}, "multiple of 8"),
    ],
)
def test_cuda_says_what_grouped_lacks(hopper, case, lacks):
    choice = cuda(**{"experts": 640, "rank": 16, **case})
    assert choice.name == "dense"
    assert lacks in choice.why


def test_an_older_card_and_an_older_torch_stay_dense(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert "9.0" in cuda(64, 16).why
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    assert "torch 2.10" in cuda(64, 16).why
    assert cuda(64, 16).name == "dense"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "auto"])
def test_a_name_is_taken_and_the_reason_is_that_it_was_asked_for(name):
    assert choose(Case(torch.device("cpu"), torch.float32, 64, 16), name) == (name, "asked for")
    if name != "grouped":
        assert choose(Case(CUDA, torch.float32, 64, 16), name) == (name, "asked for")


def test_grouped_is_refused_on_cuda_where_torch_would_wait_for_the_device():
    with pytest.raises(prw.ConfigError, match=r"needs 16-bit arithmetic.*Take kernel='auto'"):
        choose(Case(CUDA, torch.float32, 64, 16), "grouped")
    samples = Case(CUDA, torch.float32, 64, 16, tokens_per_item=9)
    assert choose(samples, "grouped").name == "grouped"
    assert choose(samples).name == "grouped"


def test_unknown_names_are_refused_wherever_they_come_from(make_plain, monkeypatch):
    with pytest.raises(prw.ConfigError, match="no kernel 'fast'; kernels are auto, dense, grouped, triton"):
        choose(Case(torch.device("cpu"), torch.float32, 2, 4), "fast")
    with pytest.raises(prw.ConfigError, match="kernel"):
        prw.inject(make_plain(), rank=2, kernel="fast")
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(prw.ConfigError, match=f"{VARIABLE} is 'fast'.*kernels are auto"):
        prw.inject(make_plain(), rank=2)


def test_the_environment_goes_before_the_setting_and_is_read_when_the_pool_is_made(
    make_plain, monkeypatch, tmp_path
):
    monkeypatch.setenv(VARIABLE, " reference ")
    assert forced("dense") == ("reference", f"the environment variable {VARIABLE}")
    weave = prw.inject(make_plain(), rank=2, experts=["a"], kernel="dense")
    monkeypatch.setenv(VARIABLE, "grouped")
    assert f"kernel: reference (asked for by the environment variable {VARIABLE})" in weave.summary()
    weave.save_pretrained(tmp_path)
    assert "kernel: grouped (asked for" in prw.load(make_plain(), tmp_path).summary()
    monkeypatch.delenv(VARIABLE)
    assert forced("dense") == ("dense", "the setting `kernel`")
    assert "kernel: dense (asked for by the setting" in prw.load(make_plain(), tmp_path).summary()


def test_the_summary_says_which_and_why(make_plain):
    weave = prw.inject(make_plain(), rank=2)
    assert "kernel: auto, once there is an expert" in weave.summary()
    weave.add_expert("a")
    assert "kernel: grouped (on a CPU, cost does not grow with the experts)" in weave.summary()


@pytest.mark.parametrize("name", ["dense", "grouped", "reference"])
def test_the_setting_decides_what_computes(make_plain, wake, name, monkeypatch):
    called = []
    for module in (dense, cpu):
        was = module.shrink
        monkeypatch.setattr(
            module, "shrink", lambda *a, was=was, of=module.__name__: called.append(of) or was(*a)
        )
    reference = prw.kernels.reference
    monkeypatch.setattr(
        prw.layers.routed_linear, "reference", lambda *a: called.append("reference") or reference(*a)
    )
    model = make_plain().eval()
    wake(prw.inject(model, rank=2, experts=["a", "b"], kernel=name))
    model(torch.randn(1, 4, 8))
    expected = {"grouped": "prw.kernels.cpu", "dense": "prw.kernels.dense"}.get(name, name)
    assert called == [expected] * 4, "once for K and once for V, at two sites"
