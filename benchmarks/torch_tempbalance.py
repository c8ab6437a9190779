"""TempBalance as one writes it in PyTorch: a loop over layers, singular values, and a loop over thresholds.

Written for the benchmark from the method's formulas (Zhou et al., NeurIPS 2023, and its appendix), in the way that the
authors' released code computes: layer by layer, each metric read back from the device, a learning rate for each group of
the optimizer.
"""

from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]


def refresh(optimizer: torch.optim.Optimizer, base_lr: float, fit: str = "median") -> dict[str, float]:
    """Sets the learning rate of every parameter group, each of one weight, from 0.5 to 1.5 of `base_lr` (Eq. 2).

    Returns:
      Each group's alpha, by the group's name.
    """
    alphas = {}
    for group in optimizer.param_groups:
        alphas[group["name"]] = _FITS[fit](spectrum(group["params"][0].detach())).item()
    low, high = min(alphas.values()), max(alphas.values())
    for group in optimizer.param_groups:
        group["lr"] = base_lr * (0.5 + (alphas[group["name"]] - low) / (high - low))
    return alphas


def spectrum(weight: torch.Tensor) -> torch.Tensor:
    """The ascending eigenvalues of `W Wᵀ`, those of all places of a convolution's window together."""
    weight = weight.float()
    if weight.ndim == 4:
        weight = weight.flatten(2).permute(2, 0, 1) * 0.5**0.5
    return torch.linalg.svdvals(weight).square().flatten().sort().values


def median(values: torch.Tensor) -> torch.Tensor:
    logs = values.log()
    start = len(values) // 2
    return _alpha(logs, start)


def goodness_of_fit(values: torch.Tensor) -> torch.Tensor:
    return _search(values, range(len(values) - 1))


def fix_finger(values: torch.Tensor) -> torch.Tensor:
    logs = values.log10()
    low, high = logs.min(), logs.max()
    counts = torch.histc(logs, bins=100, min=low.item(), max=high.item())
    peak = 10 ** (low + counts.argmax() * (high - low) / 100)
    near = (values >= (0.95 * peak).log10()) & (values <= 1.5 * peak)
    return _search(values, torch.nonzero(near[:-1]).flatten().tolist())


def _search(values: torch.Tensor, thresholds: range | list[int]) -> torch.Tensor:
    """The exponent at the threshold of least Kolmogorov-Smirnov distance."""
    logs = values.log()
    alphas, distances = [], []
    for start in thresholds:
        tail = len(values) - start
        alpha = _alpha(logs, start)
        fitted = 1 - (values[start:] / values[start]) ** (1 - alpha)
        empirical = torch.arange(tail, device=values.device) / tail
        alphas.append(alpha)
        distances.append((fitted - empirical).abs().max())
    return alphas[int(torch.stack(distances).argmin())]


def _alpha(logs: torch.Tensor, start: int) -> torch.Tensor:
    tail = len(logs) - start
    return 1 + tail / (logs[start:].sum() - tail * logs[start])


_FITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "median": median,
    "goodness_of_fit": goodness_of_fit,
    "fix_finger": fix_finger,
}
