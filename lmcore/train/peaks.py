"""What a device could compute at most: by its vendor's data sheet, or by a matrix product done here."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from lmcore.config import CostsConfig
from lmcore.model.linear import multiply
from lmcore.parallel.apply import DTYPES, Precision

# Dense matrix products, TFLOP/s, from the vendors' data sheets: 16-bit floats, eight-bit ones, TF32, FP32.
# The first that stands in a device's name as words of their own counts.
_PEAKS: tuple[tuple[str, float, float | None, float | None, float | None], ...] = (
    ("B200", 2250, 4500, 1125, 75),
    ("GB200", 2450, 4900, 1225, 80),
    ("H200", 989, 1979, 495, 67),
    ("GH200", 989, 1979, 495, 67),
    ("H100 NVL", 835, 1671, 418, 60),
    ("H100 PCIe", 756, 1513, 378, 51),
    ("H100", 989, 1979, 495, 67),
    ("H20", 148, 296, 74, 44),
    ("A100", 312, None, 156, 19.5),
    ("A40", 149.7, None, 74.8, 37.4),
    ("A10", 125, None, 62.5, 31.2),
    ("L40S", 362, 733, 183, 91.6),
    ("L40", 181, 362, 90.5, 90.5),
    ("L4", 121, 242, 60, 30.3),
)
_COLUMNS = {"16-bit": 1, "8-bit": 2, "TF32": 3, "FP32": 4}
_SMALLEST, _TELLING, _LARGEST = 256, 1024, 8192
_LONG_ENOUGH_SECONDS = 0.005
_MAX_SECONDS = 0.3
_REPEATS = 10


@dataclass(frozen=True)
class Peak:
    """What one device could do.

    Attributes:
        flops: Floating-point operations a second.
        source: Where the figure is from, in words.
        is_measured: Whether it was measured here, on a machine that may have been busy.
    """

    flops: float
    source: str
    is_measured: bool = False

    def raised(self, flops: float, device: torch.device, dtype: torch.dtype, *, anew: bool) -> Peak | None:
        """Return a peak that is not below ``flops``, which the device was seen to do; None: there is none.

        Args:
            flops: A second.
            device, dtype: What computes.
            anew: Whether to measure once more.
        """
        if not self.is_measured:  # what settings or a vendor say is not for us to change
            return None
        again = measure_peak(device, dtype) if anew else self
        if again.flops >= flops:
            return again
        return Peak(flops, "the fastest step of this run, above every product that was measured", True)


def find_peak(config: CostsConfig, device: torch.device, precision: Precision) -> Peak | None:
    """Return the peak that MFU is a share of: that of the settings, the vendor's, or a measured one.

    None: there is no vendor's figure, and none may be measured.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    anew = config.measure_peak == "always" and config.peak_tflops is None
    peak = None if anew else known_peak(config, name, precision)
    if peak is None and config.measure_peak != "never":
        peak = measure_peak(device, DTYPES[precision])
    return peak


def known_peak(config: CostsConfig, device_name: str, precision: Precision) -> Peak | None:
    """Return the peak of the settings, or else the vendor's for the precision; None: there is neither."""
    if config.peak_tflops is not None:
        return Peak(config.peak_tflops * 1e12, "train.costs.peak_tflops")
    return vendor_peak(device_name, computing_type(precision))


def computing_type(precision: Precision) -> str:
    """What the products of a precision are, as data sheets say it."""
    if precision == "fp32":
        return "TF32" if torch.backends.cuda.matmul.allow_tf32 else "FP32"
    return "8-bit" if precision == "fp8" else "16-bit"


def vendor_peak(device_name: str, kind: str) -> Peak | None:
    """Return the vendor's figure for dense products of ``kind``; None if it is not in the table."""
    for row in _PEAKS:
        if re.search(rf"\b{row[0]}\b", device_name):
            tflops = row[_COLUMNS[kind]]
            return (
                None
                if not isinstance(tflops, (int, float))
                else Peak(tflops * 1e12, f"the vendor's figure for {row[0]}, {kind}")
            )
    return None


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Time products of square matrices, with the threads that training has; the fastest counts.

    They grow until one takes 5 ms and they are 1,024 wide, or until they are 8,192 wide; all of it takes a
    tenth of a second, at most some 0.3. Where others keep the machine busy all the while, the figure is too
    low: ``Peak.raised`` mends it when a step shows it.
    """
    deadline = time.perf_counter() + _MAX_SECONDS
    size, fastest, best = _SMALLEST, 0.0, (0.0, _SMALLEST)
    while True:
        left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        _product_seconds(left, right)  # the first one also looks for its kernel
        fastest = min(_product_seconds(left, right) for _ in range(3))
        best = max(best, (2 * size**3 / fastest, size))
        # A small product that took long was interrupted: it says nothing of larger ones.
        long_enough = fastest >= _LONG_ENOUGH_SECONDS and size >= _TELLING
        if long_enough or size == _LARGEST or time.perf_counter() > deadline:
            break
        size *= 2
    for _ in range(_REPEATS):
        if time.perf_counter() > deadline:
            break
        fastest = min(fastest, _product_seconds(left, right))
    flops, size = max(best, (2 * size**3 / fastest, size))
    name = str(dtype).removeprefix("torch.")
    return Peak(flops, f"a product of {size} x {size} matrices in {name}, measured", is_measured=True)


def _product_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    on_gpu = left.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(left.device)
    start = time.perf_counter()
    multiply(left, right)  # by the library that layers take
    if on_gpu:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - start
