"""Joules by recorded counters: NVML's in millijoules, RAPL's in microjoules that wrap around."""

import pytest

from lmcore.train.energy import GpuMeter, MachineMeter, open_machine

RANGE = 262_143_328_850  # of a server's package


@pytest.fixture
def rapl(tmp_path):
    """A tree as the kernel shows it: two packages, one with cores and memory, and the whole platform."""

    def write(**counts):
        zones = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
        for zone, name in zones.items():
            folder = tmp_path / f"intel-rapl:{zone}"
            folder.mkdir(exist_ok=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
            (folder / "energy_uj").write_text(f"{counts.get(name.replace('-', ''), 0)}\n")
        return tmp_path

    return write


def test_packages_and_memory_are_added_up_and_nothing_twice(rapl):
    meter = MachineMeter(rapl(package0=5_000_000, core=1, dram=10, package1=7))
    assert meter.joules() == 0
    rapl(package0=6_500_000, core=900_000_000, dram=250_010, package1=1_000_007, psys=900_000_000)
    assert meter.joules() == pytest.approx(1.5 + 0.25 + 1.0)
    assert meter.joules() == pytest.approx(2.75)


def test_a_counter_that_wraps_around_goes_on(rapl):
    meter = MachineMeter(rapl(package0=RANGE - 999_999))
    counted = [
        (RANGE, 0.999999),
        (2_000_000, 3.0),
        (RANGE - 1_000_000, 262_143.32885),
        (500_000, 262_144.828851),
    ]
    for reading, joules in counted:
        rapl(package0=reading)
        assert meter.joules() == pytest.approx(joules, abs=1e-6)


def test_a_counter_that_may_have_wrapped_around_twice_is_not_guessed_at(rapl):
    now = [0.0]
    meter = MachineMeter(rapl(), clock=lambda: now[0])
    for _ in range(20):
        now[0] += 200
        meter.keep_up()
    assert meter.joules() == 0
    now[0] += meter.seconds_to_wrap + 1
    assert meter.joules() is None
    assert meter.joules() is None  # what was lost is not found again


def test_what_cannot_be_read_is_not_measured(rapl, tmp_path, monkeypatch):
    assert open_machine(tmp_path / "nowhere") is None
    root = rapl()
    assert open_machine(root).joules() == 0
    meter = open_machine(root)
    (root / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None
    assert open_machine(root) is None
    rapl()
    monkeypatch.setenv("LOCAL_RANK", "1")  # another process of this machine reads it
    assert open_machine(root) is None


def test_a_gpu_counts_from_where_it_was_opened():
    # As an H100 under training counted, read every 100 ms.
    readings = iter([912_345_678, 912_345_678, 912_398_112, 912_465_034, 912_529_870])
    meter = GpuMeter(lambda: next(readings))
    found = [meter.joules() for _ in range(4)]
    assert found == pytest.approx([0.0, 52.434, 119.356, 184.192])


def test_a_gpu_whose_driver_was_loaded_anew_is_not_measured():
    readings = iter([1_000, 5_000, 10])
    meter = GpuMeter(lambda: next(readings))
    assert meter.joules() == 4.0
    assert meter.joules() is None


def test_a_gpu_that_does_not_answer_is_not_measured():
    answers = iter([1_000])

    def read():
        for count in answers:
            return count
        raise RuntimeError("NVML answered 15")

    assert GpuMeter(read).joules() is None
